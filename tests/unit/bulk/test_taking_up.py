# SPDX-License-Identifier: Apache-2.0

"""Beginning an attempt: check the input, see what was recorded, overtake who still writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from upath import UPath

from airflow_provider_distribute.bulk.inputs import Defaults, source_of
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.bulk.run import Run, stage
from airflow_provider_distribute.exceptions import (
    InputChanged,
    InputUnreadable,
    InvalidInput,
    LedgerCorrupt,
    LedgerForbidden,
    LedgerTaken,
)
from airflow_provider_distribute.ledger.records import Accepted, Intended, Ticket
from airflow_provider_distribute.ledger.rows import Landed, RowWriter
from airflow_provider_distribute.models import Job, JobState
from airflow_provider_distribute.services.distribute import Distribute
from tests.unit.bulk.world import World, planned, prompts, question_in, statuses
from tests.unit.clock import Clock
from tests.unit.storage import Failing, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Meanwhile(list[Any]):
    """A list of requests; something happens while it is read."""

    def __init__(self, requests: list[Any], then: Callable[[], object]) -> None:
        super().__init__(requests)
        self._then = then

    def __iter__(self) -> Iterator[Any]:
        """Let it happen, and go on."""
        self._then()
        return super().__iter__()


def problems_of(world: World, requests: list[Any], **plan: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as refused:
        stage(source_of(requests, open_path=UPath), planned(world.settings, **plan))
    return refused.value.problems


class TestOvertaking:
    """The attempt that began last goes on, whoever still writes."""

    def test_an_older_attempt_that_writes_meanwhile_is_overtaken(self, timeless: World) -> None:
        """It had recorded more while the newer one read its input: that counts, and it is stopped."""
        older, _ = timeless.take_up(prompts(6))
        asked = Meanwhile(prompts(6), lambda: older.journal.append([Intended("0-1")]))
        newer, _ = timeless.take_up(asked)
        assert newer.state.opened is not None
        assert (newer.state.opened.attempt, newer.state.unknown) == (2, {0, 1})
        with pytest.raises(LedgerTaken):
            older.journal.append([Intended("2")])
        newer.journal.append([Intended("3")])

    def test_an_attempt_that_opens_the_run_meanwhile_is_overtaken(self, timeless: World) -> None:
        """Neither had found a run; the one that began first opened it."""
        assert timeless.clock
        older = World(timeless.path, store=timeless.store, clock=Clock())
        timeless.clock.sleep(60)
        newer, _ = timeless.take_up(Meanwhile(prompts(6), lambda: older.take_up(prompts(6))))
        assert newer.state.opened is not None
        assert newer.state.opened.attempt == 2

    def test_an_attempt_for_another_input_may_open_the_run_meanwhile(self, timeless: World) -> None:
        """The newer one may start over, and what it has kept of its own input is good for that."""
        assert timeless.clock
        older = World(timeless.path, store=timeless.store, clock=Clock())
        timeless.clock.sleep(60)
        asked = Meanwhile(prompts(6), lambda: older.take_up(prompts(5)))
        newer, _ = timeless.take_up(asked, on_input_change="restart")
        assert newer.state.opened is not None
        assert (newer.state.opened.attempt, newer.state.count, newer.state.open) == (2, 6, set(range(6)))

    def test_a_newer_attempt_is_not_overtaken(self, timeless: World) -> None:
        """It is this one that was taken for dead."""
        clock = timeless.clock
        assert clock

        def begin_anew() -> None:
            clock.sleep(60)
            timeless.take_up(prompts(6))

        with pytest.raises(LedgerTaken, match="another attempt"):
            timeless.take_up(Meanwhile(prompts(6), begin_anew))

    def test_another_input_that_is_recorded_meanwhile_is_noticed(self, timeless: World) -> None:
        """Nothing of it is wiped out."""
        opened: list[Run] = []

        def open_another() -> None:
            if not opened:
                opened.append(timeless.take_up(prompts(3))[0])

        with pytest.raises(InputChanged, match="3 rows then, 6 now"):
            timeless.take_up(Meanwhile(prompts(6), open_another))
        newer, _ = timeless.take_up(Meanwhile(prompts(6), open_another), on_input_change="restart")
        assert len(list(newer.lines())) == 6


class TestStorages:
    """What a storage cannot do is found before anything is paid."""

    def test_one_that_overwrites_what_exists_is_told_loudly(
        self, timeless: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two attempts at once are rare, but then jobs would be forgotten."""
        timeless.store = Store(exclusive=False)
        timeless.take_up(prompts(1))
        assert "paid twice and forgotten" in caplog.text

    @pytest.mark.parametrize("act", ["write", "open", "move", "remove"])
    def test_one_that_allows_too_little_is_refused(self, timeless: World, act: str) -> None:
        """Before the input is read."""
        assert timeless.store
        timeless.store.before = Failing(act, "", times=1, error=PermissionError("no"))
        asked = Meanwhile(prompts(1), lambda: pytest.fail("the input was read"))
        with pytest.raises(LedgerForbidden):
            timeless.take_up(asked)


class TestTheInputIsGone:
    """A run keeps its own copy."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """An input of three lines."""
        file = tmp_path / "input.jsonl"
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts(3)))
        return file

    def test_a_retry_goes_on_with_the_copy(
        self, world: World, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And says so; what it estimates is the same."""
        _, staged = world.take_up(str(file), dedupe=True)
        file.unlink()
        run, again = world.take_up(str(file), dedupe=True)
        assert again == staged
        assert "goes on with its own copy" in caplog.text
        assert [asked.request for asked in run.requests()]

    def test_a_retry_without_the_package_of_the_storage_goes_on_with_the_copy(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The input is what it was; the machine is another one."""
        run, _ = world.take_up(prompts(3))
        run, _ = world.take_up("odd://bucket/input.jsonl")
        assert "it cannot be opened (ValueError: " in caplog.text
        assert [asked.row for asked in run.requests()] == [0, 1, 2]

    def test_other_arguments_need_the_input(self, world: World, file: Path) -> None:
        """The copy was made with the old ones."""
        world.take_up(str(file))
        file.unlink()
        with pytest.raises(InputChanged, match=r"What differs: system_prompt .*cannot be read"):
            world.take_up(str(file), defaults=Defaults(system_prompt="Be brief."))

    def test_another_place_needs_the_input(self, world: World, file: Path) -> None:
        """What cannot be read there is not what was asked before."""
        world.take_up(str(file))
        with pytest.raises(InputChanged, match=r"What differs: requests .*cannot be"):
            world.take_up(str(file.with_name("other.jsonl")))

    def test_another_prompt_needs_the_input(self, world: World, tmp_path: Path) -> None:
        """The copy was made with the old one."""
        table = tmp_path / "in.csv"
        table.write_text("text\na\n")
        world.take_up(source_of(str(table), prompt="Summarise: {text}", open_path=UPath))
        table.unlink()
        with pytest.raises(InputChanged, match=r"What differs: prompt .*cannot be"):
            world.take_up(source_of(str(table), prompt="Translate: {text}", open_path=UPath))

    def test_a_limit_needs_a_price_for_the_copy(self, world: World, file: Path) -> None:
        """As it does for the input."""
        world.fields["model"] = "unheard of"
        world.take_up(str(file))
        file.unlink()
        with pytest.raises(InvalidInput, match="no known price"):
            world.take_up(str(file), max_cost=1.0)

    def test_wrong_lines_are_a_change(self, world: World, file: Path) -> None:
        """They were good when the run began, so its jobs are not forgotten over them."""
        world.take_up(str(file))
        file.write_text("{\n")
        with pytest.raises(InputChanged, match="wrong lines, such as line 1: not JSON"):
            world.take_up(str(file))
        with pytest.raises(InvalidInput):
            world.take_up(str(file), on_input_change="restart")

    def test_starting_over_needs_the_input(self, world: World, file: Path) -> None:
        """Nobody is told to set what is set; the input may come back."""
        world.take_up(str(file))
        file.unlink()
        with pytest.raises(InputUnreadable, match="FileNotFoundError") as raised:
            world.take_up(str(file), defaults=Defaults(system_prompt="Be brief."), on_input_change="restart")
        assert "on_input_change" not in str(raised.value)

    def test_a_copy_that_is_not_complete_is_an_error(self, timeless: World) -> None:
        """Results with fewer rows would look complete."""
        assert timeless.store
        run, _ = timeless.take_up(prompts(3))
        for path in [path for path in timeless.store.objects if "/requests/" in path]:
            del timeless.store.objects[path]
        with pytest.raises(LedgerCorrupt, match="holds 0 requests of 3"):
            list(run.lines())


class TestOtherChecks:
    """The input is what it was, and is refused all the same: nobody is told to pay for it anew."""

    def refused(self, world: World, asked: Any, **plan: Any) -> str:
        """Return what the refusal says."""
        with pytest.raises(InvalidInput) as raised:
            world.take_up(asked, **plan)
        assert "on_input_change" not in str(raised.value)
        return str(raised.value)

    def test_a_limit_that_needs_a_price(self, world: World) -> None:
        """It is the price that is missing."""
        world.fields["model"] = "unheard of"
        world.take_up(prompts(3))
        assert "put it into the connection's prices" in self.refused(world, prompts(3), max_cost=5.0)
        world.fields["prices"] = {"unheard of": [1, 1]}
        run, _ = world.take_up(prompts(3), max_cost=5.0)
        assert run.state.opened is not None
        assert run.state.opened.attempt == 2

    def test_a_setting_that_was_switched_off(self, world: World) -> None:
        """It is the setting that is missing."""
        asked = [{"prompt": "a", "params": {"max_completion_tokens": 900}}]
        world.fields["allow_undocumented_params"] = True
        world.take_up(asked)
        world.fields["allow_undocumented_params"] = False
        assert "allow_undocumented_params" in self.refused(world, asked)

    def test_another_input_is_another_one(self, world: World) -> None:
        """Whatever is wrong with it."""
        world.take_up(prompts(3))
        with pytest.raises(InputChanged, match="wrong lines"):
            world.take_up([{"prompt": "a", "params": {"max_completion_tokens": 900}}])


class Word(pydantic.BaseModel):
    """What answers must be."""

    word: str


GOOD = '{"word": "yes"}'


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"defaults": Defaults(model="Llama-3.3 70B")}, "model"),
        ({"defaults": Defaults(params={"temperature": 0.5})}, "request_params"),
        ({"output_type": output_type_from(Word)}, "output_type"),
        ({"output_type": output_type_from(Word), "dedupe": True}, "output_type, dedupe"),
        ({}, "the requests themselves"),
    ],
)
def test_a_change_is_named(timeless: World, change: dict[str, Any], what: str) -> None:
    """By the author's own words for it."""
    timeless.take_up(prompts(5))
    asked = prompts(5) if change else ["Something else"]
    with pytest.raises(InputChanged, match=rf"What differs: {what} \(5 rows then, {len(asked)} now\)"):
        timeless.take_up(asked, **change)


def test_what_a_service_adds_to_a_request_is_not_kept(
    timeless: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that sends another default is none the wiser, and the run in flight is no other one."""
    asked = [{"prompt": "Why?", "params": {"temperature": 1}, "metadata": {"k": 1}}, *prompts(1)]
    run, _ = timeless.take_up(asked)
    assert [line["request"] for line in run.lines()] == [
        {
            "messages": [{"role": "user", "content": "Why?"}],
            "model": "Llama-3.1 8B",
            "params": {"temperature": 1.0},
            "metadata": {"k": "1"},
        },
        {
            "messages": [{"role": "user", "content": "Question 0"}],
            "model": "Llama-3.1 8B",
            "params": {},
            "metadata": {},
        },
    ]
    monkeypatch.setattr(Distribute, "defaults", {"max_completion_tokens": 500})
    timeless.attempt(asked)
    assert [body["max_completion_tokens"] for body in timeless.service.bodies] == [500, 500]


class TestShards:
    """Whoever takes a part of an input checks all of it."""

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_wrong_line_is_refused_by_every_part(self, world: World, number: int) -> None:
        """Otherwise the other parts would be paid for."""
        assert problems_of(world, ["a", 7], shard=number, split=2)[0].startswith("requests[1]: ")

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_name_in_two_parts_is_refused_by_both(self, world: World, number: int) -> None:
        """The results of all parts belong together."""
        asked = [{"prompt": "a", "custom_id": "x"}, {"prompt": "b", "custom_id": "x"}]
        assert problems_of(world, asked, shard=number, split=2) == (
            "requests[1]: custom_id 'x' is there twice",
        )

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_model_without_a_price_is_refused_by_every_part(self, world: World, number: int) -> None:
        """When there is a limit to keep."""
        asked = ["a", {"prompt": "b", "model": "unheard of"}]
        assert "no known price" in problems_of(world, asked, shard=number, split=2, max_cost=1.0)[0]

    def test_a_part_keeps_and_counts_its_own(self, world: World) -> None:
        """Rows of all parts together are the input's."""
        staged = [
            stage(source_of(prompts(7), open_path=UPath), planned(world.settings, shard=n, split=3))
            for n in range(3)
        ]
        assert [part.count for part in staged] == [3, 2, 2]

    def test_a_part_without_rows_ends_with_empty_results(self, timeless: World) -> None:
        """More parts than rows are no mistake; an empty input is."""
        manifest = timeless.attempt(prompts(3), shard=3, split=4)
        assert (manifest["rows"], timeless.results(), timeless.service.paid) == (0, [], 0)
        assert problems_of(timeless, [], shard=3, split=4) == ("it holds no requests",)

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_name_that_another_request_is_given_is_refused(self, world: World, place: int) -> None:
        """Wherever in the input it stands."""
        asked: list[Any] = ["without", "without", "without"]
        asked[place] = {"prompt": "with", "custom_id": f"row-{1 - place}"}
        (problem,) = problems_of(world, asked)
        assert problem.endswith("is what a request without one is called: name every request, or none")


def test_a_retry_of_ten_thousand_rows_sends_the_thirty_bad_ones(timeless: World) -> None:
    """Those that are good stay, 20 are invalid, and 10 were pending at the deadline."""
    rows = range(10_000)
    plan: dict[str, Any] = {"output_type": output_type_from(Word)}
    asked = prompts(len(rows))
    run, _ = timeless.take_up(asked, **plan)
    tickets = [Ticket(f"{asked[row]}#first", str(row), 1.0) for row in rows]
    run.journal.append([Intended.of(rows), Accepted(tuple(tickets))])
    job = Job(job_id="x", service="distribute", state=JobState.SUCCEEDED, status="COMPLETED")
    RowWriter(run.directory, writer="w").write(
        [
            Landed(row, tickets[row].id, 2.0, True, None).line(
                job.model_copy(update={"content": "no JSON" if row < 20 else GOOD}).result()
            )
            for row in rows
            if not 20 <= row < 30
        ]
    )
    timeless.service.answer = lambda prompt: None
    first = timeless.resume(run, deadline=timeless.now()).manifest
    assert {status: count for status, count in first["counts"].items() if count} == {
        "succeeded": 9_970,
        "invalid": 20,
        "expired": 10,
    }
    timeless.service.answer = lambda prompt: GOOD
    second = timeless.attempt(asked, **plan)
    assert [question_in(body) for body in timeless.service.bodies] == asked[:30]
    assert second["counts"]["succeeded"] == len(list(statuses(timeless.results()))) == 10_000
