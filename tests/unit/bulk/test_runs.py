# SPDX-License-Identifier: Apache-2.0

"""Whole runs: what a retry pays for, what the results say, what is noticed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pydantic
import pytest

from airflow_provider_distribute.bulk.costs import Budget, Costs, Tokens
from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.inputs import Defaults
from airflow_provider_distribute.bulk.landing import land
from airflow_provider_distribute.bulk.manifest import dry_run_manifest
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.exceptions import (
    InputChanged,
    InvalidInput,
    LedgerTaken,
)
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.ledger.requests import RequestWriter
from airflow_provider_distribute.models import ChatRequest
from tests.unit.bulk.world import World, planned, prompts, statuses

pytestmark = pytest.mark.usefixtures("impatient")


class Word(pydantic.BaseModel):
    """What answers must be."""

    word: str


class TestRetries:
    """A retry asks only what is missing or bad."""

    def test_a_retry_sends_only_the_bad_rows(self, timeless: World) -> None:
        """Invalid, failed and expired rows are asked again; the good ones stay."""
        bad = {"Question 1": "no JSON", "Question 2": "ERROR", "Question 3": None}
        timeless.service.answer = lambda prompt: bad.get(prompt, '{"word": "yes"}')
        plan: dict[str, Any] = {"output_type": output_type_from(Word)}
        first = timeless.attempt(prompts(20), deadline=timeless.now() + 2, **plan)
        assert first["counts"] == {
            "succeeded": 17,
            "failed": 1,
            "invalid": 1,
            "expired": 1,
            "unknown": 0,
            "not_submitted": 0,
        }
        assert first["going_on"] == {"jobs": 1, "job_ids": ["Question 3#0"]}
        bad.clear()
        second = timeless.attempt(prompts(20), **plan)
        assert (second["counts"]["succeeded"], timeless.service.paid, second["attempt"]) == (20, 23, 2)
        assert [row["attempts"] for row in timeless.results()][:5] == [1, 2, 2, 2, 1]

    def test_a_clear_of_a_good_run_pays_nothing(self, world: World) -> None:
        """It lands the same rows again."""
        world.attempt(prompts(5))
        before = world.results()
        world.attempt(prompts(5))
        assert (world.service.paid, world.results()) == (5, before)

    def test_another_input_is_noticed(self, world: World) -> None:
        """Nothing is sent, and the message says what is at stake."""
        world.attempt(prompts(5))
        with pytest.raises(InputChanged, match="5 jobs were accepted"):
            world.attempt(prompts(6))
        assert world.service.paid == 5

    @pytest.mark.parametrize(
        "change",
        [
            {"defaults": Defaults(model="Llama-3.3 70B")},
            {"defaults": Defaults(system_prompt="Be brief.")},
            {"defaults": Defaults(params={"temperature": 0.5})},
            {"output_type": output_type_from(Word)},
            {"dedupe": True},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_whatever_changes_the_question_is_another_input(
        self, world: World, change: dict[str, Any]
    ) -> None:
        """The model, the prompts, the parameters, and what answers must be."""
        world.take_up(prompts(5))
        with pytest.raises(InputChanged):
            world.take_up(prompts(5), **change)

    @pytest.mark.parametrize(
        "change",
        [{"output_type": output_type_from(Word)}, {"dedupe": True}, {"split": 2, "shard": 1}],
        ids=lambda change: next(iter(change)),
    )
    def test_a_dag_that_changes_while_its_task_waits_lands_nothing(
        self, world: World, change: dict[str, Any]
    ) -> None:
        """What was asked would be taken for something else, and paid for again."""
        world.take_up(prompts(5))
        with pytest.raises(InputChanged, match="it changed while the task waited"):
            Run(world.directory(), planned(world.settings, **change)).check_resumed()
        Run(world.directory(), planned(world.settings, **change, on_input_change="restart")).check_resumed()
        Run(world.directory(), planned(world.settings)).check_resumed()

    def test_another_input_may_start_over(self, world: World) -> None:
        """The old jobs are left behind; those that had ended do not go on."""
        world.attempt(prompts(5))
        manifest = world.attempt(["Something else"], on_input_change="restart")
        assert (manifest["rows"], manifest["counts"]["succeeded"], manifest["going_on"]["jobs"]) == (1, 1, 0)

    def test_an_input_that_changes_while_it_is_read_is_refused(self, world: World) -> None:
        """Its fingerprint would be that of neither."""
        world.attempt(prompts(5))

        class Shifty(list[str]):
            reads = 0

            def __iter__(self) -> Any:
                self.reads += 1
                return iter([f"{self.reads}"])

        with pytest.raises(InputChanged, match="changes while it is read"):
            world.take_up(Shifty(), on_input_change="restart")

    def test_a_directory_of_another_task_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two task instances never mix."""
        world.take_up(prompts(5))
        monkeypatch.setattr("tests.unit.bulk.world.OWNER", Owner("dag", "run", "other", 2))
        with pytest.raises(LedgerTaken, match=r"not of task dag\.other in run 'run', map index 2\. Nothing"):
            world.take_up(prompts(5))

    def test_unknown_rows_end_unknown(self, world: World) -> None:
        """And are named, without being sent again."""
        lost = httpx.ReadError("reset")
        world.service.submit = lambda prompt, time: lost if prompt == "Question 1" else None
        manifest = world.attempt(prompts(3), on_unknown="leave")
        assert list(statuses(world.results())) == ["succeeded", "unknown", "succeeded"]
        assert manifest["unknown"] == {"rows": 1, "custom_ids": ["row-1"]}
        world.attempt(prompts(3), on_unknown="leave")
        assert len(world.service.bodies) == 3

    def test_a_bad_row_whose_second_request_is_unanswered_is_unknown(self, world: World) -> None:
        """What is running may be a better answer than the one that is there."""
        lost = httpx.ReadError("reset")
        world.service.answer = lambda prompt: "ERROR"
        world.service.submit = lambda prompt, time: lost if time == 2 else None
        world.attempt(prompts(1), on_unknown="leave")
        world.attempt(prompts(1), on_unknown="leave")
        assert list(statuses(world.results())) == ["unknown"]

    def test_a_run_that_was_never_opened_asks_nothing(self, world: World) -> None:
        """There is no folder of requests."""
        assert list(Run(world.directory(), Plan(world.settings, Owner("d", "r", "t"))).requests()) == []

    def test_rows_that_were_not_sent_say_so(self, world: World) -> None:
        """One row for each input, always."""
        run, _staged = world.take_up(prompts(3))
        world.resume(run)
        assert list(statuses(world.results())) == ["not_submitted"] * 3
        assert world.results()[0]["error"]["type"] == "not_submitted"

    def test_a_refused_row_keeps_the_words(self, world: World) -> None:
        """It was never accepted, so it has no job."""
        world.service.submit = lambda prompt, time: httpx.Response(400, json={"message": "too odd"})
        world.attempt(prompts(1))
        (row,) = world.results()
        assert (row["status"], row["error"]["type"], row["job_id"]) == ("failed", "refused", None)
        assert "too odd" in row["error"]["message"]


class TestResults:
    """What the rows hold."""

    def test_a_row_says_everything(self, world: World) -> None:
        """In input order, with the author's own id."""
        world.attempt([{"custom_id": "a", "prompt": "What?"}])
        (row,) = world.results()
        assert row.pop("submitted_at")
        assert row.pop("finished_at")
        assert row == {
            "custom_id": "a",
            "index": 0,
            "status": "succeeded",
            "output": "Answer to What?",
            "raw_output": None,
            "error": None,
            "model": "Llama-3.1 8B",
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
            "cost": pytest.approx(4.2e-06),
            "job_id": "What?#0",
            "attempts": 1,
        }

    def test_a_model_the_price_list_does_not_name(self, world: World) -> None:
        """The service may call a model otherwise than the request: then the request's name counts."""
        world.fields["model"] = "unpriced"
        world.service._result = lambda job_id: httpx.Response(  # type: ignore[method-assign]
            200, json={"status": "COMPLETED", "choices": [], "model": "also unpriced"}
        )
        manifest = world.attempt(prompts(1))
        assert (manifest["cost"], manifest["counts"]["invalid"]) == (None, 1)

    def test_tool_calls_without_text_are_an_answer(self, world: World) -> None:
        """They stay in raw_output."""
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        world.service._result = lambda job_id: httpx.Response(  # type: ignore[method-assign]
            200, json={"status": "COMPLETED", "choices": [{"message": message}]}
        )
        world.attempt(prompts(1))
        (row,) = world.results()
        assert (row["status"], row["output"], json.loads(row["raw_output"])) == ("succeeded", None, [call])

    def test_identical_requests_are_sent_once(self, world: World) -> None:
        """All of them get the answer; only one is paid for."""
        asked = ["Same", "Other", "Same", {"prompt": "Same", "metadata": {"k": "v"}}]
        manifest = world.attempt(asked, dedupe=True)
        rows = world.results()
        assert (world.service.paid, manifest["counts"]["succeeded"]) == (2, 4)
        assert [row["output"] for row in rows] == [
            "Answer to Same",
            "Answer to Other",
            "Answer to Same",
            "Answer to Same",
        ]
        assert [row["attempts"] for row in rows] == [1, 1, 0, 0]
        assert manifest["tokens"] == {"prompt": 20, "completion": 40}

    def test_the_order_of_keys_makes_no_other_request(self, world: World) -> None:
        """JSON objects have none."""
        asked = [[{"role": "user", "content": "Same"}], [{"content": "Same", "role": "user"}]]
        assert world.attempt(asked, dedupe=True)["counts"]["succeeded"] == 2
        assert world.service.paid == 1

    def test_a_shard_takes_its_part(self, world: World) -> None:
        """Every n-th request, each with its place in the whole input."""
        world.attempt(prompts(7), shard=1, split=3)
        assert [(row["index"], row["custom_id"]) for row in world.results()] == [(1, "row-1"), (4, "row-4")]

    def test_repairs_ask_with_the_reason(self, world: World) -> None:
        """The wrong answer and what is wrong with it go into the conversation."""
        world.service.answer = lambda prompt: "wrong"
        plan: dict[str, Any] = {"output_type": output_type_from(Word)}
        world.attempt(prompts(2), **plan)
        run, _ = world.take_up(prompts(2), **plan)
        land(run, format_from("jsonl"), repair=RequestWriter(world.directory(), "repairs/x"))
        run.ask_again({0, 1})
        asked = {asked.row: asked.request for asked in run.requests("repairs/x")}
        assert [message["role"] for message in asked[0].messages] == ["system", "user", "assistant", "user"]
        assert asked[0].messages[2]["content"] == "wrong"
        assert "Invalid JSON" in asked[0].messages[3]["content"]
        assert run.state.rounds == 2


class TestCosts:
    """Estimates, and what they are made of."""

    def test_prices_of_the_connection_come_first(self, world: World) -> None:
        """In dollars per million tokens in and out."""
        world.fields["prices"] = '{"Llama-3.1 8B": [1, 2]}'
        costs = Costs(world.settings)
        assert costs.of("Llama-3.1 8B", Tokens(1_000_000, 500_000)) == 2.0
        assert costs.source == "the connection"

    def test_nothing_is_guessed(self, world: World) -> None:
        """No price or no count is no cost."""
        costs = Costs(world.settings)
        assert costs.of("unheard of", Tokens(1, 1)) is None
        assert costs.of("Llama-3.1 8B", None) is None
        assert (costs.knows("Llama-3.1 8B"), costs.knows("x")) == (True, False)

    @pytest.mark.parametrize(
        "usage", [None, {}, {"prompt_tokens": 1}, {"prompt_tokens": "1", "completion_tokens": 2}]
    )
    def test_a_count_that_cannot_be_read_is_none(self, usage: Any) -> None:
        """Services leave it out or send it otherwise."""
        assert Tokens.counted(usage) is None

    @pytest.mark.parametrize(
        ("content", "params", "tokens"),
        [
            ("x" * 40, {}, 10),
            ([{"type": "text", "text": "x" * 40}, {"type": "image_url"}, "odd"], {}, 10),
            (None, {}, 0),
            ("請" * 40, {}, 30),
            ("x" * 40, {"tools": [{"name": "x" * 400}], "temperature": 0.5}, 10 + 103),
            ("x" * 40, {"response_format": {"schema": "x" * 400}}, 10 + 103),
        ],
        ids=["text", "parts", "nothing", "another script", "tools", "schema"],
    )
    def test_an_estimate_counts_what_the_model_reads(
        self, world: World, content: Any, params: dict[str, Any], tokens: int
    ) -> None:
        """Text by its bytes, tools and schemas as well; pictures are not counted."""
        request = ChatRequest(messages=({"role": "user", "content": content},), params=params)
        assert Costs(world.settings).needs(request) == Tokens(tokens + 4, 600)

    def test_a_limit_counts_an_answer_without_one_in_full(self, world: World) -> None:
        """Distribute's -1 is no limit, and not an answer of one token."""
        asked = [{"prompt": "x", "params": {"max_completion_tokens": limit, "n": 2}} for limit in (-1, 10)]
        _, staged = world.take_up(asked)
        assert staged.tokens.completion == 2 * 1024 + 2 * 10

    def test_no_limit_allows_everything(self) -> None:
        """And counts nothing."""
        assert Budget(None, []).allows(7)

    def test_a_dry_run_says_what_a_run_would_take(self, world: World) -> None:
        """Requests are fewer than rows where they are the same."""
        _run, staged = world.take_up(["a", "a", "b"], dedupe=True)
        said = dry_run_manifest(staged, Costs(world.settings))
        assert (said["rows"], said["requests"], said["dry_run"]) == (3, 2, True)
        assert said["cost"] == pytest.approx(sum(staged.costs), abs=1e-6)

    def test_a_limit_needs_a_price(self, world: World) -> None:
        """Without one it could not be kept."""
        world.fields["model"] = "unheard of"
        with pytest.raises(InvalidInput, match="no known price"):
            world.take_up(prompts(1), max_cost=1.0)
        _, staged = world.take_up(prompts(1))
        assert dry_run_manifest(staged, Costs(world.settings))["cost"] is None
