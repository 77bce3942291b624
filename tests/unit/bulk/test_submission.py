# SPDX-License-Identifier: Apache-2.0

"""Sending: what each answer means for the row, for the rest, and for the pace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.exceptions import AccessDenied, BudgetSpent
from airflow_provider_distribute.services.distribute import Distribute
from tests.unit.bulk.world import FAR, World, prompts

if TYPE_CHECKING:
    from airflow_provider_distribute.bulk.submission import Submitted
    from airflow_provider_distribute.models import ChatRequest

NEVER_CONNECTED = httpx.ConnectError("refused")
TAKEN_AND_LOST = httpx.ReadError("reset")


@pytest.fixture
def world(timeless: World) -> World:
    return timeless


def send(world: World, count: int = 20, *, deadline: float = FAR, **plan: Any) -> tuple[Submitted, Any]:
    run, staged = world.take_up(prompts(count), **plan)
    submitted = world.run(world.submit(run, staged, deadline=deadline))
    return submitted, run.journal.read()


def test_everything_is_sent_once(world: World) -> None:
    """And recorded with its ticket."""
    submitted, state = send(world, 200)
    assert (submitted.accepted, submitted.stopped, world.service.paid) == (200, None, 200)
    assert state.tickets == {row: f"Question {row}#0" for row in range(200)}


def test_no_more_than_the_window_is_ever_unrecorded(world: World) -> None:
    """At any instant, what was sent is at most the window ahead of what is recorded."""
    assert world.store
    run, staged = world.take_up(prompts(60), window=8)
    ahead: list[int] = []

    def note(act: str, path: str) -> float:
        if act == "write":
            ahead.append(world.service.paid - len(run.journal.read().tickets))
        return 1.0

    world.store.before = note
    world.run(world.submit(run, staged))
    assert (world.service.paid, len(run.journal.read().tickets)) == (60, 60)
    assert 0 < max(ahead) <= 8


def test_the_journal_stays_small(world: World) -> None:
    """Outcomes share objects: far fewer of them than requests."""
    send(world, 640)
    assert len(world.directory().names("journal")) < 640 / 8


def test_what_was_not_accepted_is_sent_again(world: World) -> None:
    """A refused connection pays nothing, so it is repeated until it is heard."""
    world.service.submit = lambda prompt, time: NEVER_CONNECTED if time < 4 else None
    submitted, state = send(world, 10)
    assert (submitted.accepted, submitted.unknown, state.duplicates) == (10, 0, 0)


def test_a_storm_of_429_slows_down_and_passes(world: World) -> None:
    """Every row is accepted in the end, and none is paid twice."""
    busy = httpx.Response(429, json={"message": "slow down"}, headers={"Retry-After": "1"})
    world.service.submit = lambda prompt, time: busy if len(world.service.bodies) < 30 else None
    submitted, _ = send(world, 40)
    assert (submitted.accepted, world.service.paid) == (40, 40)
    assert submitted.throttled >= 1


def test_a_refused_request_fails_its_row_only(world: World) -> None:
    """The service's words stay with the row."""
    world.service.submit = lambda prompt, time: (
        httpx.Response(400, json={"message": "too odd"}) if prompt == "Question 3" else None
    )
    submitted, state = send(world, 10)
    assert (submitted.accepted, submitted.refused) == (9, 1)
    assert "too odd" in state.refusals[3].message


def test_refusals_are_told_at_rising_counts(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever watches learns at once that a model's name is wrong, and not once for each row."""
    world.service.submit = lambda prompt, time: httpx.Response(400, json={"message": "no such model"})
    submitted, _ = send(world, 10)
    told = [record.getMessage() for record in caplog.records if "no such model" in record.getMessage()]
    assert (submitted.refused, len(told)) == (10, 4)
    assert told[0].startswith("'row-0': Distribute.AI answered 400")
    assert [line.rpartition(". ")[2] for line in told] == [
        f"{count} requests are refused so far." for count in (1, 2, 4, 8)
    ]


def test_what_grew_beyond_the_services_limits_fails_its_row_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair says more than its row did when it was checked; nothing of it is sent."""
    run, staged = world.take_up(prompts(3))

    def too_long(self: Distribute, request: ChatRequest, size: int) -> list[str]:
        return ["messages: too long"] if request.messages[0]["content"] == "Question 1" else []

    monkeypatch.setattr(Distribute, "problems_in_size", too_long)
    submitted = world.run(world.submit(run, staged))
    state = run.journal.read()
    assert (submitted.accepted, submitted.refused, world.service.paid) == (2, 1, 2)
    assert "messages: too long" in state.refusals[1].message


@pytest.mark.parametrize("policy", ["leave", "fail"])
def test_an_unanswered_request_is_left_unknown(world: World, policy: str) -> None:
    """Unless the author wants it sent again."""
    world.service.submit = lambda prompt, time: TAKEN_AND_LOST if prompt == "Question 3" else None
    submitted, state = send(world, 10, on_unknown=policy)
    assert (submitted.accepted, submitted.unknown, state.unknown, state.duplicates) == (9, 1, {3}, 0)


def test_an_unanswered_request_is_sent_again_and_counted(world: World) -> None:
    """It was taken the first time, so this row is paid twice, and the count says so."""
    world.service.submit = lambda prompt, time: (
        TAKEN_AND_LOST if prompt == "Question 3" and time == 1 else None
    )
    submitted, state = send(world, 10, on_unknown="resubmit")
    assert (submitted.accepted, world.service.paid, state.duplicates, state.unknown) == (10, 11, 1, set())


def test_a_request_that_is_never_answered_is_not_sent_for_ever(world: World) -> None:
    """After some tries it is left to the next attempt."""
    world.service.submit = lambda prompt, time: TAKEN_AND_LOST if prompt == "Question 3" else None
    submitted, state = send(world, 10, on_unknown="resubmit")
    assert (submitted.unknown, state.unknown, state.duplicates) == (4, {3}, 3)


def test_an_outage_does_not_burn_the_input(world: World) -> None:
    """While nothing is answered, one request at a time finds out whether it is over."""
    broken = httpx.Response(500, json={"message": "down"})
    world.service.submit = lambda prompt, time: broken if len(world.service.bodies) < 50 else None
    submitted, state = send(world, 100, on_unknown="resubmit")
    assert submitted.accepted + len(state.unknown) == 100
    assert submitted.unknown == 49
    assert len(state.unknown) < 20


def test_a_rejected_key_stops_everything(world: World) -> None:
    """What was accepted stays recorded, what was under way is surely not taken."""
    denied = httpx.Response(402, json={"message": "no credit"})
    world.service.submit = lambda prompt, time: denied if world.service.paid >= 5 else None
    submitted, state = send(world, 100)
    assert isinstance(submitted.stopped, AccessDenied)
    assert (submitted.accepted, state.unknown) == (5, set())
    assert len(state.open) == 95
    assert len(world.service.bodies) <= 5 + 32


def test_the_budget_stops_before_it_is_passed(world: World) -> None:
    """By the estimate for a whole answer; the rows that were not sent stay open."""
    run, staged = world.take_up(prompts(50))
    limit = sum(staged.costs[:10]) * 1.0001
    run, staged = world.take_up(prompts(50), max_cost=limit)
    submitted = world.run(world.submit(run, staged))
    assert isinstance(submitted.stopped, BudgetSpent)
    assert (world.service.paid, len(run.journal.read().open)) == (10, 40)
    run, staged = world.take_up(prompts(50), max_cost=limit)
    world.run(world.submit(run, staged))
    assert world.service.paid == 10


def test_a_part_of_an_input_spends_its_share(world: World) -> None:
    """Of a limit that is for the whole."""
    _, staged = world.take_up(prompts(40), shard=1, split=2)
    run, staged = world.take_up(prompts(40), shard=1, split=2, max_cost=sum(staged.costs[:10]) * 1.0001)
    submitted = world.run(world.submit(run, staged))
    assert (world.service.paid, str(submitted.stopped)[:40]) == (
        5,
        "Sending stopped at max_cost, of which th",
    )


def test_the_deadline_stops_sending(world: World) -> None:
    """Before the first request, when it has passed already."""
    submitted, state = send(world, 10, deadline=world.now() - 1)
    assert isinstance(submitted.stopped, TimeoutError)
    assert (world.service.paid, len(state.open)) == (0, 10)


def test_nothing_waits_beyond_the_deadline(world: World) -> None:
    """A turn that comes too late is not waited for; what was intended is recorded as not sent."""
    world.fields["requests_per_second"] = 0.5
    deadline = world.now() + 1
    submitted, state = send(world, 10, deadline=deadline)
    assert world.now() < deadline
    assert (submitted.accepted, isinstance(submitted.stopped, TimeoutError)) == (1, True)
    assert (state.unknown, len(state.open)) == (set(), 9)


def test_the_rate_is_kept(world: World) -> None:
    """Never more in any one second than the connection allows, and hardly less."""
    sent: list[float] = []
    world.service.submit = lambda prompt, time: sent.append(world.now())
    world.fields["requests_per_second"] = 50
    send(world, 100)
    assert len(sent) == 100
    assert sent[-1] - sent[0] < 100 / 50 * 1.03
    assert max(sum(1 for at in sent if first <= at < first + 1.0) for first in sent) <= 50


def test_stopping_wakes_those_who_wait_for_a_turn(world: World) -> None:
    """A worker that is told to stop does not wait for the service's patience first."""
    world.fields["requests_per_second"] = 0.01

    async def stopped() -> Submitted:
        async with world.client() as client:
            budget = run.budget(staged.costs)
            sending = Submission(run, client, budget, deadline=FAR)
            task = asyncio.create_task(sending.run())
            while not world.service.paid:  # noqa: ASYNC110  the service has no event
                await asyncio.sleep(0.01)
            sending.stop(RuntimeError("told to stop"))
            sending.stop(RuntimeError("told again"))
            return await task

    run, staged = world.take_up(prompts(10))
    submitted = world.run(stopped())
    assert (submitted.accepted, str(submitted.stopped)) == (1, "told to stop")


def test_progress_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """In counts, now and then."""
    world.fields["requests_per_second"] = 0.1
    caplog.set_level("INFO")
    send(world, 8)
    assert "of 8 requests accepted" in caplog.text


def test_labels_travel_with_the_request(world: World) -> None:
    """So that a duplicate can be recognised at the service."""
    run, staged = world.take_up(prompts(2))
    world.run(world.submit(run, staged, labels={"airflow_dag_id": "dag"}))
    sent = sorted(world.service.bodies, key=lambda body: body["metadata"]["airflow_index"])
    assert [body["metadata"] for body in sent] == [
        {"airflow_dag_id": "dag", "airflow_index": "0"},
        {"airflow_dag_id": "dag", "airflow_index": "1"},
    ]


def test_a_sender_that_breaks_ends_the_submission(world: World) -> None:
    """A fault of ours is not swallowed."""
    world.service.submit = lambda prompt, time: ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        send(world, 3)
