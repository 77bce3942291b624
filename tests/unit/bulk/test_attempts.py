# SPDX-License-Identifier: Apache-2.0

"""From the first request to the verdict: what is asked again, what ends an attempt, and who is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pydantic
import pytest

from airflow_provider_distribute.bulk.attempt import Ended, Reports
from airflow_provider_distribute.bulk.manifest import read_manifest
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.bulk.submission import Submitted
from airflow_provider_distribute.exceptions import BudgetSpent, RunIncomplete, WorkerStopped
from tests.unit.bulk.world import World, prompts, statuses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_distribute.bulk.landing import Landing
    from airflow_provider_distribute.bulk.run import Run


class Word(pydantic.BaseModel):
    """What answers must be."""

    word: str


class Deferred(BaseException):
    """Leaves whoever waits."""


class Told(Reports):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def sent(self, run: Run, submitted: Submitted) -> None:
        """Note how many were accepted, and how many were left."""
        self.heard.append((submitted.accepted, len(run.state.open)))

    def landed(
        self, run: Run, landing: Landing, manifest: Mapping[str, Any], before: Mapping[str, Any]
    ) -> None:
        """Note how many are good now, and were before."""
        good = before["counts"]["succeeded"] if before else None
        self.heard.append((manifest["counts"]["succeeded"], good))


TYPED: dict[str, Any] = {"output_type": output_type_from(Word)}
GOOD = '{"word": "yes"}'
NO_CREDIT = httpx.Response(402, json={"message": "no credit"})


def begin(world: World, count: int, *, deadline: float | None = None, **more: Any) -> Ended:
    """Take up a run and make an attempt at it."""
    of_attempt = {name: more.pop(name) for name in ("wait", "before_step", "reports") if name in more}
    run, staged = world.take_up(prompts(count), **more)
    until = world.now() + 3600 if deadline is None else deadline
    return world.attempt_at(run, deadline=until, **of_attempt).begin(staged)


class TestVerdict:
    """Everything there is was landed, whatever ended the sending."""

    def test_a_good_run_ends_well(self, timeless: World) -> None:
        """With the manifest that is in its directory."""
        ended = begin(timeless, 3)
        assert ended.error is None
        assert ended.manifest == read_manifest(timeless.directory())

    def test_what_was_accepted_before_a_key_was_rejected_is_landed(self, timeless: World) -> None:
        """Only a person can put that right."""
        timeless.service.submit = lambda prompt, time: NO_CREDIT if timeless.service.paid >= 2 else None
        ended = begin(timeless, 5)
        assert (ended.manifest["counts"]["succeeded"], ended.manifest["counts"]["not_submitted"]) == (2, 3)
        assert isinstance(ended.error, RunIncomplete)
        assert "no credit" in str(ended.error)
        assert not ended.error.transient

    def test_what_was_accepted_within_the_limit_is_landed(self, timeless: World) -> None:
        """The rest waits for a higher one."""
        _, staged = timeless.take_up(prompts(5))
        ended = begin(timeless, 5, max_cost=2.5 * staged.costs[0])
        assert (ended.manifest["counts"]["succeeded"], timeless.service.paid) == (2, 2)
        assert isinstance(ended.error, BudgetSpent)

    def test_what_was_accepted_before_the_deadline_is_landed(self, timeless: World) -> None:
        """A retry asks the rest."""
        timeless.fields["requests_per_second"] = 1
        ended = begin(timeless, 5, deadline=timeless.now() + 1.5)
        assert 0 < ended.manifest["counts"]["succeeded"] < 5
        assert ended.error is not None
        assert ended.error.transient
        assert begin(timeless, 5).error is None


class TestStopping:
    """Somebody else ends the attempt."""

    def test_a_worker_that_is_told_to_stop_lands_nothing(self, timeless: World) -> None:
        """What it has sent is recorded, and the next attempt goes on with it."""
        run, staged = timeless.take_up(prompts(3))
        told = WorkerStopped("Told to.")
        with pytest.raises(WorkerStopped):
            timeless.attempt_at(run, submit=lambda budget, folder: Submitted(stopped=told)).begin(staged)
        assert (run.state.stopped, timeless.directory().read("results.jsonl")) == (None, None)
        assert begin(timeless, 3).error is None

    def test_nothing_is_sent_after_that(self, timeless: World) -> None:
        """The first step is not taken."""

        def stop() -> None:
            raise WorkerStopped("Told to.")

        with pytest.raises(WorkerStopped):
            begin(timeless, 3, before_step=stop)
        assert timeless.service.paid == 0


class TestWaiting:
    """Whoever makes the attempt says how."""

    def test_a_later_process_lands_what_an_earlier_one_left_to_wait_for(self, timeless: World) -> None:
        """It sends nothing that was sent."""

        def leave(collection: Any) -> None:
            raise Deferred

        run, staged = timeless.take_up(prompts(3))
        with pytest.raises(Deferred):
            timeless.attempt_at(run, wait=leave).begin(staged)
        ended = timeless.resume(run)
        assert (ended.error, ended.manifest["counts"]["succeeded"], timeless.service.paid) == (None, 3, 3)

    def test_nobody_waits_for_nothing(self, timeless: World) -> None:
        """A clear of a good run lands it again."""
        begin(timeless, 3)
        assert begin(timeless, 3, wait=lambda collection: pytest.fail("waited")).error is None


class TestAfterAnAttemptThatCouldNotLand:
    """Its rows are landed, and those that failed are asked again at once: the author may allow one retry."""

    @pytest.fixture
    def bad(self, timeless: World) -> set[str]:
        """Questions that the service cannot answer."""
        bad = {"Question 1"}
        timeless.service.answer = lambda prompt: "ERROR" if prompt in bad else "Fine."
        return bad

    def damage_the_last_record(self, world: World) -> None:
        """Cut the end off."""
        assert world.store
        last = max(path for path in world.store.objects if "/journal/" in path)
        world.store.objects[last] = world.store.objects[last][:-10]

    def check(self, world: World) -> None:
        """Check that the next attempt asks the bad row and no other."""
        assert begin(world, 3).error is None
        assert list(statuses(world.results())) == ["succeeded"] * 3
        assert world.service.sent == {"Question 0": 1, "Question 1": 2, "Question 2": 1}

    def test_the_worker_was_killed_before(self, timeless: World, bad: set[str]) -> None:
        """The triggerer had kept everything."""

        def leave(collection: Any) -> None:
            raise Deferred

        run, staged = timeless.take_up(prompts(3))
        with pytest.raises(Deferred):
            timeless.attempt_at(run, wait=leave).begin(staged)
        timeless.run(timeless.collect())
        bad.clear()
        self.check(timeless)

    def test_the_record_of_it_was_damaged(self, timeless: World, bad: set[str]) -> None:
        """As if it had never been written."""
        assert begin(timeless, 3).error is not None
        self.damage_the_last_record(timeless)
        bad.clear()
        self.check(timeless)

    def test_what_fails_again_is_left_to_the_next_attempt(self, timeless: World, bad: set[str]) -> None:
        """Nothing is asked for ever."""
        begin(timeless, 3)
        self.damage_the_last_record(timeless)
        assert begin(timeless, 3).error is not None
        assert timeless.service.sent["Question 1"] == 2


class TestRepairs:
    """What is invalid is asked again, and nothing else."""

    def test_as_often_as_the_author_says(self, timeless: World) -> None:
        """Within one attempt."""
        timeless.service.answer = lambda prompt: "no JSON" if prompt == "Question 1" else GOOD
        begin(timeless, 3, repair_attempts=2, **TYPED)
        assert timeless.service.sent == {"Question 0": 1, "Question 1": 3, "Question 2": 1}
        assert list(statuses(timeless.results())) == ["succeeded", "invalid", "succeeded"]

    def test_not_after_the_deadline(self, timeless: World) -> None:
        """The last look brought the answer that does not fit."""
        ended_at = timeless.now() + 5
        timeless.service.answer = lambda prompt: "no JSON" if timeless.now() > ended_at else None
        begin(timeless, 1, deadline=timeless.now() + 2, repair_attempts=2, **TYPED)
        assert timeless.service.paid == 1

    def test_not_once_sending_was_stopped(self, timeless: World) -> None:
        """The limit that stopped it holds for repairs as well."""
        timeless.service.answer = lambda prompt: "no JSON"
        timeless.service.submit = lambda prompt, time: NO_CREDIT if timeless.service.paid >= 1 else None
        begin(timeless, 2, repair_attempts=2, **TYPED)
        assert timeless.service.sent == {"Question 0": 1, "Question 1": 1}


class TestReports:
    """Who is told."""

    def test_each_sending_and_the_landing_that_counts(self, timeless: World) -> None:
        """A landing that is repaired is not told of."""
        bad = {"Question 0": "no JSON"}
        timeless.service.answer = lambda prompt: bad.get(prompt, GOOD)
        told = Told()
        begin(timeless, 3, repair_attempts=1, reports=told, **TYPED)
        bad.clear()
        begin(timeless, 3, repair_attempts=1, reports=told, **TYPED)
        assert told.heard == [(3, 0), (1, 0), (2, None), (1, 0), (3, 2)]
