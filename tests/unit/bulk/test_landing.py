# SPDX-License-Identifier: Apache-2.0

"""What is landed, what it cost, what goes on, and what the manifest says of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import httpx
import pydantic
import pytest

from airflow_provider_distribute.bulk.costs import Costs, Tokens, spent
from airflow_provider_distribute.bulk.formats import Row, format_from
from airflow_provider_distribute.bulk.landing import Landing, land
from airflow_provider_distribute.bulk.leaving import leave_behind
from airflow_provider_distribute.bulk.manifest import manifest_of_stopped, read_manifest
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.bulk.run import Run
from airflow_provider_distribute.exceptions import WorkerStopped
from airflow_provider_distribute.ledger.lines import checked
from airflow_provider_distribute.ledger.requests import RequestWriter
from airflow_provider_distribute.ledger.rows import RowWriter, read_rows
from airflow_provider_distribute.services import SERVICES
from tests.unit.bulk.world import World, planned, prompts, statuses
from tests.unit.storage import Failing


class Word(pydantic.BaseModel):
    """What answers must be."""

    word: str


TYPED: dict[str, Any] = {"output_type": output_type_from(Word)}
GOOD = '{"word": "yes"}'
UNANSWERED = httpx.Response(500, json={"message": "down"})
#: What one job of the world's service counts.
PROMPT, COMPLETION = 10, 20


@pytest.fixture
def world(timeless: World) -> World:
    return timeless


def soon(world: World) -> float:
    return world.now() + 5


def paid_for(manifest: dict[str, Any]) -> float:
    """Return for how many jobs a manifest has tokens."""
    assert manifest["tokens"]["prompt"] / PROMPT == manifest["tokens"]["completion"] / COMPLETION
    return float(manifest["tokens"]["prompt"] / PROMPT)


def repairs_of(run: Run, name: str) -> Landing:
    """Land, and write what is asked to repair the invalid rows."""
    run.state = run.journal.read()
    return land(run, format_from("jsonl"), repair=RequestWriter(run.directory, f"repairs/{name}"))


class TestCost:
    """Whatever was paid is in the manifest."""

    def test_an_answer_that_was_asked_again_is_still_paid(self, world: World) -> None:
        """Its tokens and its cost stay, although another answer counts."""
        world.service.answer = lambda prompt: "no JSON" if prompt == "Question 1" else GOOD
        first = world.attempt(prompts(3), **TYPED)
        world.service.answer = lambda prompt: GOOD
        second = world.attempt(prompts(3), **TYPED)
        assert (paid_for(first), paid_for(second), world.service.paid) == (3, 4, 4)
        assert second["cost"] == pytest.approx(first["cost"] * 4 / 3, abs=1e-6)

    def test_jobs_of_an_input_that_was_replaced_are_still_paid(self, world: World) -> None:
        """They are in the run's directory, and on the bill."""
        world.attempt(prompts(5))
        assert paid_for(world.attempt(["Something else"], on_input_change="restart")) == 6

    def test_what_two_triggerers_saw_is_paid_once(self, world: World) -> None:
        """Both wrote it down."""
        world.attempt(prompts(2))
        lines = [text for _, text in read_rows(world.directory())]
        world.service.answer = lambda prompt: None
        RowWriter(world.directory(), writer="other").write([checked(line) for line in lines])
        assert paid_for(world.attempt(prompts(2))) == 2

    def test_an_older_answer_that_two_triggerers_saw_is_paid_once(self, world: World) -> None:
        """Also when it does not count any more."""
        world.service.answer = lambda prompt: "no JSON"
        world.attempt(prompts(1), **TYPED)
        lines = [text for _, text in read_rows(world.directory())]
        RowWriter(world.directory(), writer="other").write([checked(line) for line in lines])
        world.service.answer = lambda prompt: GOOD
        assert paid_for(world.attempt(prompts(1), **TYPED)) == 2

    def test_a_model_without_a_price_costs_what_the_asked_one_does(self, world: World) -> None:
        """Services may call it otherwise; of an older answer, too."""
        look = world.service._result

        def renamed(job_id: str) -> httpx.Response:
            return httpx.Response(200, json={**look(job_id).json(), "model": "unheard of"})

        world.service._result = renamed  # type: ignore[method-assign]
        world.fields.update(model="asked", prices='{"asked": [1, 1]}')
        world.service.answer = lambda prompt: "no JSON"
        world.attempt(prompts(1), **TYPED)
        world.service.answer = lambda prompt: GOOD
        manifest = world.attempt(prompts(1), **TYPED)
        assert manifest["cost"] == pytest.approx(2 * (PROMPT + COMPLETION) / 1e6)

    def test_what_has_no_price_is_counted(self, world: World) -> None:
        """The cost is that of the others, and says so."""
        look = world.service._result

        def renamed(job_id: str) -> httpx.Response:
            return httpx.Response(200, json={**look(job_id).json(), "model": None})

        world.service._result = renamed  # type: ignore[method-assign]
        world.fields.update(prices='{"priced": [1, 1]}')
        manifest = world.attempt([{"prompt": "a", "model": "priced"}, {"prompt": "b", "model": "unheard of"}])
        assert manifest["cost"] == pytest.approx((PROMPT + COMPLETION) / 1e6)
        assert manifest["jobs_without_price"] == 1

    def test_a_job_without_a_count_costs_nothing_that_is_known(self, world: World) -> None:
        """The row is there all the same."""
        world.service.answer = lambda prompt: "ERROR"
        manifest = world.attempt(prompts(1))
        assert (manifest["cost"], paid_for(manifest), manifest["counts"]["failed"]) == (None, 0, 1)


class TestTwoTriggerers:
    """Both looked at the same jobs."""

    @pytest.mark.parametrize("typed", [{}, TYPED], ids=["newest", "older"])
    def test_an_answer_outlives_the_job(self, world: World, typed: dict[str, Any]) -> None:
        """One looked when the service had it no more; what the other had seen is what was paid for."""
        world.service.answer = lambda prompt: "no JSON"
        world.attempt(prompts(1), **typed)
        (head, _), *_ = read_rows(world.directory())
        gone = replace(head, succeeded=False).line(SERVICES["distribute"].lost(head.ticket).result())
        RowWriter(world.directory(), writer="later").write([gone])
        world.service.answer = lambda prompt: None
        manifest = world.attempt(prompts(1), deadline=soon(world), **typed)
        assert manifest["tokens"]["completion"] == COMPLETION
        if not typed:
            assert (world.results()[0]["status"], world.service.paid) == ("succeeded", 1)


class TestBudget:
    """Every sending counts against the limit, whichever attempt or round it was in."""

    def test_nothing_is_spent_before_anything_is_sent(self, world: World) -> None:
        """The requests are not even read."""
        run, _ = world.take_up(prompts(3))
        assert spent(iter([]), run.state, Costs(world.settings)) == 0.0

    def test_each_sending_counts_with_its_estimate(self, world: World) -> None:
        """Those of an earlier attempt as well."""
        world.service.answer = lambda prompt: "ERROR"
        world.attempt(prompts(3))
        run, staged = world.take_up(prompts(3))
        world.run(world.submit(run, staged))
        run.state = run.journal.read()
        assert spent(run.lines(), run.state, Costs(world.settings)) == pytest.approx(2 * staged.cost)

    def test_a_repair_counts_with_the_answer_that_it_reads_again(self, world: World) -> None:
        """The same in the round that sends it and in every later one."""
        world.service.answer = lambda prompt: "no JSON"
        world.attempt(prompts(1), **TYPED)
        run, staged = world.take_up(prompts(1), repair_attempts=1, **TYPED)
        world.run(world.submit(run, staged))
        world.run(world.collect())
        before = spent(run.lines(), run.journal.read(), Costs(world.settings))
        estimate = repairs_of(run, "estimate").repairs[0]
        world.resume(run)
        after = spent(run.lines(), run.journal.read(), Costs(world.settings))
        assert estimate > staged.costs[0]
        assert after - before == pytest.approx(estimate)

    def test_no_number_of_repairs_passes_the_limit(self, world: World) -> None:
        """Round after round asks again, until the next request might pass it."""
        world.service.answer = lambda prompt: "no JSON"
        _, staged = world.take_up(prompts(3), **TYPED)
        limit = 6 * staged.costs[0]
        world.attempt(prompts(3), max_cost=limit, repair_attempts=9, **TYPED)
        run = Run(world.directory(), planned(world.settings, **TYPED))
        assert spent(run.lines(), run.state, Costs(world.settings)) <= limit
        assert run.state.stopped is not None
        assert run.state.stopped.reason == "budget"
        assert 3 < world.service.paid < 6

    def test_a_repair_reads_the_longest_answer_there_may_be(self) -> None:
        """And what is wrong with it."""
        assert Tokens(100, 50).repair.prompt >= 150
        assert Tokens(100, 50).repair.completion == 50


class TestGoingOn:
    """Which jobs run on without anybody waiting."""

    def test_an_old_job_of_a_row_that_was_asked_again_goes_on(self, world: World) -> None:
        """Nobody looks at it any more, and it is billed."""
        world.service.answer = lambda prompt: None if prompt == "Question 1" else "Yes"
        first = world.attempt(prompts(2), deadline=soon(world))
        world.service.answer = lambda prompt: "Yes"
        second = world.attempt(prompts(2))
        assert first["going_on"] == {"jobs": 1, "job_ids": ["Question 1#0"]}
        assert second["going_on"] == {"jobs": 1, "job_ids": ["Question 1#0"]}
        assert second["counts"]["succeeded"] == 2

    def test_one_job_for_identical_requests_is_one_job(self, world: World) -> None:
        """However many rows it leaves expired."""
        world.service.answer = lambda prompt: None
        manifest = world.attempt(["Same"] * 3, dedupe=True, deadline=soon(world))
        assert manifest["counts"]["expired"] == 3
        assert manifest["going_on"] == {"jobs": 1, "job_ids": ["Same#0"]}

    def test_of_an_input_that_was_replaced_only_what_has_not_ended(self, world: World) -> None:
        """The others were seen."""
        world.service.answer = lambda prompt: None if prompt == "Question 1" else "Yes"
        world.attempt(prompts(3), deadline=soon(world))
        manifest = world.attempt(["Something else"], on_input_change="restart")
        assert manifest["going_on"] == {"jobs": 1, "job_ids": ["Question 1#0"]}


class TestNewestAndOldest:
    """Which of a row's jobs counts."""

    def test_an_old_job_is_waited_for_when_nothing_can_be_sent(self, world: World) -> None:
        """It is paid for."""
        world.service.answer = lambda prompt: None
        world.attempt(prompts(1), deadline=soon(world))
        world.service.answer = lambda prompt: "Late, but paid"
        manifest = world.attempt(prompts(1), max_cost=1e-12)
        assert (manifest["counts"]["succeeded"], world.service.paid) == (1, 1)

    def test_an_old_job_that_ended_well_beats_a_refusal(self, world: World) -> None:
        """There is an answer, whatever the service says about the question now."""
        world.service.answer = lambda prompt: None
        world.attempt(prompts(1), deadline=soon(world))
        world.service.submit = lambda prompt, time: httpx.Response(400, json={"message": "too odd"})
        world.service.answer = lambda prompt: "Late, but paid"
        assert world.attempt(prompts(1))["counts"]["succeeded"] == 1

    def test_a_row_that_its_old_job_answered_is_not_paid_again(self, world: World) -> None:
        """Although nobody knows what became of its newest request."""
        world.service.answer = lambda prompt: None
        world.attempt(prompts(1), deadline=soon(world))
        world.service.submit = lambda prompt, time: UNANSWERED
        world.service.answer = lambda prompt: "Late, but paid"
        assert world.attempt(prompts(1), on_unknown="leave")["counts"]["succeeded"] == 1
        sent = len(world.service.bodies)
        world.service.submit = lambda prompt, time: None
        assert world.attempt(prompts(1), on_unknown="resubmit")["counts"]["succeeded"] == 1
        assert len(world.service.bodies) == sent


class TestIdenticalRequests:
    """They are sent once, whatever happens to that one."""

    def test_one_that_failed_is_asked_again_once(self, world: World) -> None:
        """For all rows."""
        world.service.answer = lambda prompt: "ERROR"
        assert world.attempt(["Same"] * 3, dedupe=True)["counts"]["failed"] == 3
        world.service.answer = lambda prompt: "Yes"
        assert world.attempt(["Same"] * 3, dedupe=True)["counts"]["succeeded"] == 3
        assert world.service.paid == 2

    def test_one_that_expired_is_asked_again_once(self, world: World) -> None:
        """For all rows."""
        world.service.answer = lambda prompt: None
        world.attempt(["Same"] * 3, dedupe=True, deadline=soon(world))
        world.service.answer = lambda prompt: "Yes"
        assert world.attempt(["Same"] * 3, dedupe=True)["counts"]["succeeded"] == 3
        assert world.service.paid == 2

    def test_one_that_is_invalid_is_repaired_once(self, world: World) -> None:
        """The better answer is everybody's."""
        world.service.answer = lambda prompt: "no JSON"
        run, staged = world.take_up(["Same"] * 3, dedupe=True, repair_attempts=1, **TYPED)
        world.run(world.submit(run, staged))
        world.run(world.collect())
        world.service.answer = lambda prompt: GOOD
        assert world.resume(run).manifest["counts"]["succeeded"] == 3
        assert world.service.paid == 2

    def test_one_that_is_unknown_is_unknown_once(self, world: World) -> None:
        """Each row is named; only one request is in doubt."""
        world.service.submit = lambda prompt, time: UNANSWERED
        manifest = world.attempt(["Same"] * 3, dedupe=True, on_unknown="leave")
        run, _ = world.take_up(["Same"] * 3, dedupe=True, on_unknown="leave")
        assert manifest["unknown"] == {"rows": 3, "custom_ids": ["row-0", "row-1", "row-2"]}
        assert run.state.unknown == {0}


class TestManifest:
    """What a run says of itself."""

    def test_it_says_who_was_asked_for_what(self, world: World) -> None:
        """Every model, and the kind of output."""
        world.service.answer = lambda prompt: GOOD
        asked = ["a", {"prompt": "b", "model": "Llama-3.3 70B"}]
        manifest = world.attempt(asked, **TYPED)
        assert manifest["models"] == ["Llama-3.1 8B", "Llama-3.3 70B"]
        assert (manifest["output_type"], manifest["stopped"]) == ("Word", None)

    def test_text_is_a_kind_of_output(self, world: World) -> None:
        """The usual one."""
        assert world.attempt(prompts(1))["output_type"] == "text"

    def test_no_more_than_a_hundred_ids_are_named(self, world: World) -> None:
        """The rest is in the results."""
        world.service.answer = lambda prompt: None
        going_on = world.attempt(prompts(101), deadline=soon(world))["going_on"]
        assert (going_on["jobs"], len(going_on["job_ids"])) == (101, 100)

    def test_a_stopped_attempt_says_what_it_leaves(self, world: World) -> None:
        """What was accepted, what is unknown, what was not sent."""
        world.service.submit = lambda prompt, time: UNANSWERED if prompt == "Question 1" else None
        run, staged = world.take_up(prompts(3), on_unknown="leave")
        world.run(world.submit(run, staged))
        run.state = run.journal.read()
        manifest = manifest_of_stopped(run.directory, run.state, {}, why="Told to.", now=5.0)
        assert manifest["stopped"] == {
            "why": "Told to.",
            "at": "1970-01-01T00:00:05+00:00",
            "accepted": {"jobs": 2, "job_ids": ["Question 0#0", "Question 2#0"]},
            "unknown": {"rows": 1, "indexes": [1]},
            "not_sent": 0,
        }
        assert (manifest["rows"], manifest["attempt"], "results" in manifest) == (3, 1, False)

    def test_a_stopped_attempt_leaves_what_was_landed_before(self, world: World) -> None:
        """The results are there as they were; only what was accepted since is new."""
        world.service.answer = lambda prompt: "ERROR" if prompt == "Question 1" else "Yes"
        landed = world.attempt(prompts(3))
        assert world.clock
        world.clock.sleep(60)
        run, staged = world.take_up(prompts(3))
        world.run(world.submit(run, staged))
        run.state = run.journal.read()
        assert leave_behind(run.directory, attempt=2, why="Told to.")
        manifest = read_manifest(run.directory)
        assert (manifest["counts"], manifest["results"]) == (landed["counts"], landed["results"])
        assert manifest["stopped"]["accepted"] == {"jobs": 1, "job_ids": ["Question 1#1"]}
        assert manifest["attempt"] == 2

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 99}', "{}"])
    def test_a_manifest_that_cannot_be_read_is_none(self, world: World, text: str) -> None:
        """Nothing depends on it but what people are told."""
        run, _ = world.take_up(prompts(1))
        run.directory.overwrite("manifest.json", text.encode())
        assert read_manifest(run.directory) == {}


class TestStopping:
    """A landing that is told to stop."""

    def test_it_leaves_the_old_results(self, world: World) -> None:
        """A reader never sees a part."""
        world.attempt(prompts(3))
        before = world.results()
        rows = iter(range(1))

        def stop() -> None:
            if next(rows, None) is None:
                raise WorkerStopped("Told to.")

        run, _ = world.take_up(prompts(3))
        with pytest.raises(WorkerStopped):
            land(run, format_from("jsonl"), before_row=stop)
        assert world.results() == before
        assert list(statuses(before)) == ["succeeded"] * 3


class TestLost:
    """Jobs of which the service says nothing: they may have ended well, and been billed."""

    SAID = (
        ("lost", httpx.Response(404, json={"message": "no such job"})),
        ("withheld", httpx.Response(400, json={"message": "not for you"})),
    )

    @staticmethod
    def lose(world: World, answer: httpx.Response) -> None:
        """Let every look be answered so; nobody waits long for another answer."""
        world.fields["not_found_grace"] = 60
        world.service._result = lambda job_id: httpx.Response(  # type: ignore[method-assign]
            answer.status_code, content=answer.content
        )

    @pytest.mark.parametrize(("type_", "said"), SAID)
    def test_they_are_unknown(self, timeless: World, type_: str, said: httpx.Response) -> None:
        """Their rows say why, and which job it was; the manifest names them."""
        self.lose(timeless, said)
        manifest = timeless.attempt(prompts(3), poke_interval=30.0)
        assert (manifest["counts"]["unknown"], manifest["unknown"]["rows"]) == (3, 3)
        for row, told in enumerate(timeless.results()):
            assert (told["status"], told["error"]["type"], told["job_id"]) == (
                "unknown",
                type_,
                f"Question {row}#0",
            )

    def test_sending_them_again_may_pay_twice(self, timeless: World) -> None:
        """That is counted."""
        look = timeless.service._result
        self.lose(timeless, self.SAID[0][1])
        timeless.attempt(prompts(3), poke_interval=30.0)
        timeless.service._result = look  # type: ignore[method-assign]
        manifest = timeless.attempt(prompts(3))
        assert (manifest["counts"]["succeeded"], manifest["duplicates_possible"]) == (3, 3)
        assert timeless.service.paid == 6

    @pytest.mark.parametrize("policy", ["leave", "fail"])
    def test_the_author_decides_about_them(self, timeless: World, policy: str) -> None:
        """As about other unknown rows; they keep their reason."""
        self.lose(timeless, self.SAID[0][1])
        timeless.attempt(prompts(3), poke_interval=30.0, on_unknown=policy)
        manifest = timeless.attempt(prompts(3), on_unknown=policy)
        assert (manifest["counts"]["unknown"], timeless.service.paid) == (3, 3)
        assert {row["error"]["type"] for row in timeless.results()} == {"lost"}


class TestAskedInVain:
    """A row whose answer did not fit and whose next request came to nothing keeps the answer it paid for."""

    @pytest.fixture
    def run(self, timeless: World) -> Run:
        """A run with one answer that does not fit, which is about to be asked again."""
        timeless.service.answer = lambda prompt: "paid, but no JSON"
        run, staged = timeless.take_up(prompts(1), on_unknown="leave", repair_attempts=1, **TYPED)
        timeless.run(timeless.submit(run, staged))
        timeless.run(timeless.collect())
        return run

    @staticmethod
    def repaired(world: World, run: Run) -> dict[str, Any]:
        """Land, ask again, wait, and land; return the row."""
        world.resume(run, deadline=soon(world))
        (row,) = world.results()
        assert row["raw_output"] == "paid, but no JSON"
        assert row["usage"]["prompt_tokens"] == PROMPT
        assert row["cost"] > 0
        assert "Invalid JSON" in row["error"]["message"]
        return row

    @pytest.mark.parametrize(
        ("answer", "type_", "why"),
        [("ERROR", "repair_failed", "ended failed"), (None, "repair_expired", "not seen ended")],
    )
    def test_a_job_that_came_to_nothing(
        self, timeless: World, run: Run, answer: str | None, type_: str, why: str
    ) -> None:
        """It failed, or was pending at the deadline."""
        timeless.service.answer = lambda prompt: answer
        row = self.repaired(timeless, run)
        assert (row["status"], row["error"]["type"], row["job_id"]) == ("invalid", type_, "Question 0#1")
        assert why in row["error"]["message"]

    def test_a_request_that_was_refused(self, timeless: World, run: Run) -> None:
        """The service says why."""
        timeless.service.submit = lambda prompt, time: httpx.Response(400, json={"message": "too long"})
        row = self.repaired(timeless, run)
        assert (row["status"], row["error"]["type"]) == ("invalid", "repair_failed")
        assert "too long" in row["error"]["message"]
        assert not repairs_of(run, "y").repairs

    def test_a_request_that_was_not_answered(self, timeless: World, run: Run) -> None:
        """Nobody knows what it comes to, so the row is unknown, with the answer there is."""
        timeless.service.submit = lambda prompt, time: UNANSWERED
        row = self.repaired(timeless, run)
        assert (row["status"], row["error"]["type"]) == ("unknown", "unknown")

    def test_it_is_not_repaired_again_for_an_answer_of_before(self, timeless: World, run: Run) -> None:
        """The next attempt asks the question anew."""
        timeless.service.answer = lambda prompt: "ERROR"
        self.repaired(timeless, run)
        assert not repairs_of(run, "y").repairs
        timeless.service.answer = lambda prompt: GOOD
        assert timeless.attempt(prompts(1), **TYPED)["counts"]["succeeded"] == 1

    def test_an_answer_that_fits_by_now_counts(self, timeless: World) -> None:
        """An author's own check may have been too strict; what was asked since then failed."""
        strict = True

        class Checked(pydantic.BaseModel):
            word: str

            @pydantic.field_validator("word")
            @classmethod
            def _check(cls, word: str) -> str:
                if strict:
                    raise ValueError("too strict")
                return word

        timeless.service.answer = lambda prompt: GOOD
        output_type = output_type_from(Checked)
        assert timeless.attempt(prompts(1), output_type=output_type)["counts"]["invalid"] == 1
        strict = False
        timeless.service.answer = lambda prompt: "ERROR"
        assert timeless.attempt(prompts(1), output_type=output_type)["counts"]["succeeded"] == 1

    def test_an_answer_to_another_question_does_not(self, timeless: World) -> None:
        """The input was replaced: the same row asks something else now."""
        timeless.service.answer = lambda prompt: "no JSON"
        timeless.attempt(prompts(1), **TYPED)
        timeless.service.answer = lambda prompt: "ERROR"
        timeless.attempt(["Something else"], on_input_change="restart", **TYPED)
        (row,) = timeless.results()
        assert (row["status"], row["raw_output"]) == ("failed", None)


class TestReasons:
    """Why rows are bad, for people."""

    def test_the_most_frequent_one_is_told(self, timeless: World) -> None:
        """With how many rows have it."""
        timeless.service.submit = lambda prompt, time: (
            None if prompt == "Question 0" else httpx.Response(400, json={"message": "no such model"})
        )
        timeless.service.answer = lambda prompt: "ERROR"
        run, staged = timeless.take_up(prompts(30))
        timeless.run(timeless.submit(run, staged))
        timeless.run(timeless.collect())
        run.state = run.journal.read()
        reason = land(run, format_from("jsonl")).reason
        assert "no such model" in reason
        assert reason.endswith("(rows: 29)")

    def test_an_answer_is_not_quoted(self, timeless: World) -> None:
        """It goes into logs and errors, and what is wrong with an answer may quote it."""
        timeless.service.answer = lambda prompt: '{"word": {"secret": 1}}'
        run, staged = timeless.take_up(prompts(2), **TYPED)
        timeless.run(timeless.submit(run, staged))
        timeless.run(timeless.collect())
        run.state = run.journal.read()
        landing = land(run, format_from("jsonl"))
        assert landing.reason == "the answer does not fit output_type; the results say why (rows: 2)"

    def test_no_more_than_a_thousand_different_ones_are_counted(self) -> None:
        """However many rows say something of their own."""
        landing = Landing()
        for number in range(1100):
            landing.count(Row("x", number, "failed", error={"type": "failed", "message": str(number)}))
        landing.count(Row("x", 1100, "failed", error={"type": "failed", "message": "5"}))
        assert (len(landing.reasons), landing.reason) == (1000, "5 (rows: 2)")


class TestLeaving:
    """What an attempt says that ends before it could land."""

    def test_a_newer_attempts_manifest_stays(self, timeless: World) -> None:
        """What goes on is the newer one's to say."""
        timeless.take_up(prompts(3))
        manifest = timeless.attempt(prompts(3))
        assert leave_behind(timeless.directory(), attempt=1, why="Told to.")
        assert read_manifest(timeless.directory()) == manifest

    def test_nobody_finds_a_run_where_there_is_none(self, timeless: World) -> None:
        """And nothing is written there."""
        assert not leave_behind(timeless.directory(), attempt=None, why="Told to.")
        assert timeless.store is not None
        assert timeless.store.objects == {}

    @pytest.mark.parametrize("told", [True, False])
    def test_a_storage_that_does_not_answer(
        self, timeless: World, caplog: pytest.LogCaptureFixture, told: bool
    ) -> None:
        """Whoever wants to hear of it is told where the record is."""
        assert timeless.store is not None
        timeless.take_up(prompts(3))
        timeless.store.before = Failing("list", "/journal", times=1)
        logger = logging.getLogger("task") if told else None
        assert not leave_behind(timeless.directory(), attempt=1, why="Told to.", logger=logger)
        assert ("Told to. What was accepted goes on" in caplog.text) is told

    def test_indexes_are_those_of_the_whole_input(self, timeless: World) -> None:
        """Also where the run takes a part of it."""
        timeless.service.submit = lambda prompt, time: UNANSWERED if prompt == "Question 3" else None
        run, staged = timeless.take_up(prompts(6), on_unknown="leave", shard=1, split=2)
        timeless.run(timeless.submit(run, staged))
        assert leave_behind(run.directory, attempt=1, why="Told to.")
        assert read_manifest(run.directory)["stopped"]["unknown"] == {"rows": 1, "indexes": [3]}
