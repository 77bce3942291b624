# SPDX-License-Identifier: Apache-2.0

"""The trigger: it never raises, never hangs, never blocks, and says little."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_provider_distribute.hooks import HOOKS
from airflow_provider_distribute.hooks.base import async_settings
from airflow_provider_distribute.models import ChatRequest
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.services.reading import same_word
from airflow_provider_distribute.testing import InferenceEmulator
from airflow_provider_distribute.triggers import connection as trigger_connection
from airflow_provider_distribute.triggers.bulk import BulkOutcome
from airflow_provider_distribute.triggers.chat import AsyncChatTrigger, WaitOutcome
from airflow_provider_distribute.triggers.metrics import metered_pool
from airflow_provider_distribute.waiting.pool import Looks
from tests.airflow.supervisor import deserialize, first_event, serialize
from tests.airflow.wire import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture

    from tests.airflow.clock import Clock
    from tests.airflow.conftest import Log, Metrics
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def job_ids(service: str, wire: Wire) -> list[str]:
    """Jobs of each service that an upstream task has submitted; they take ten minutes."""
    wire.fault("latency", value="600")
    hook = HOOKS[service]()
    return [hook.submit(f"question {number}") for number in range(3)]


def trigger_for(service: str, wire: Wire, job_ids: list[str], **options: Any) -> AsyncChatTrigger:
    """Return a trigger as an operator makes it."""
    usual: dict[str, Any] = {"deadline": wire.clock.now + 7200, "poke_interval": 30.0}
    return AsyncChatTrigger(conn_id=f"{service}_default", job_ids=job_ids, **{**usual, **options})


def run(clock: Clock, trigger: AsyncChatTrigger) -> dict[str, Any]:
    """Run a trigger to its event."""
    return clock.run(first_event(trigger))


def test_serialisation_round_trip(service: str, wire: Wire) -> None:
    """The arguments that are stored make the same trigger again."""
    trigger = trigger_for(service, wire, ["a", "b"])
    path, arguments = trigger.serialize()
    assert path == f"{AsyncChatTrigger.__module__}.{AsyncChatTrigger.__name__}"
    stored = json.loads(json.dumps(serialize(arguments)))
    assert AsyncChatTrigger(**deserialize(stored)).serialize() == (path, arguments)


def test_end_is_told_in_counts(service: str, wire: Wire, job_ids: list[str]) -> None:
    """One event: how many ended well, how many badly."""
    wire.finish(job_ids[1], error="model overloaded")
    event = run(wire.clock, trigger_for(service, wire, job_ids))
    assert event == {"verdict": "ended", "succeeded": 2, "failed": 1}


def test_one_event_and_no_more(service: str, wire: Wire, job_ids: list[str]) -> None:
    """A trigger of a task yields once."""

    async def main() -> int:
        return len([event async for event in trigger_for(service, wire, job_ids).run()])

    assert wire.clock.run(main()) == 1


def test_deadline_is_told_with_words(service: str, wire: Wire, job_ids: list[str]) -> None:
    """Ids still pending come by the service's word for their state."""
    wire.finish(job_ids[0])
    event = run(wire.clock, trigger_for(service, wire, job_ids, deadline=wire.clock.now + 300))
    outcome = WaitOutcome.model_validate(event)
    assert (outcome.verdict, outcome.succeeded, outcome.failed) == ("deadline", 1, 0)
    assert outcome.words.keys() == set(job_ids[1:])
    assert {same_word(word) for word in outcome.words.values()} <= SERVICES[service].states.keys()


def test_deadline_in_the_past_ends_at_once(service: str, wire: Wire, job_ids: list[str]) -> None:
    """A triggerer that was away for too long finds its deadline over."""
    before = wire.clock.now
    event = run(wire.clock, trigger_for(service, wire, job_ids, deadline=before - 1))
    assert event == {"verdict": "deadline", "pending": {"not seen yet": job_ids}}
    assert wire.clock.now == before


def test_lost_jobs_are_named(wire: Wire) -> None:
    """The worker must not wait for them again."""
    unknown = "6f1b7c1e-0000-4000-8000-000000000000"
    event = run(wire.clock, trigger_for("distribute", wire, [unknown]))
    assert event == {"verdict": "ended", "failed": 1, "lost": [unknown]}


def test_size_of_event_for_many_jobs(wire: Wire) -> None:
    """Jobs that ended well are a number, however many they are."""
    hook = HOOKS["distribute"]()
    job_ids = [hook.submit("Why?") for _ in range(60)]
    assert run(wire.clock, trigger_for("distribute", wire, job_ids)) == {"verdict": "ended", "succeeded": 60}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"password": "another-key"}, "401"),
        ({"password": ""}, "the API key is missing"),
        ({"extra": {"timeout": -1}}, "timeout"),
        ({"conn_type": "http"}, "its type is 'http'"),
    ],
)
def test_what_a_person_has_to_do_is_refused(
    service: str,
    wire: Wire,
    job_ids: list[str],
    connections: Callable[..., None],
    fields: dict[str, Any],
    words: str,
) -> None:
    """Waiting is impossible until somebody acts; the task is told why, without the key."""
    connections(f"{service}_default", **fields)
    event = run(wire.clock, trigger_for(service, wire, job_ids))
    assert event["verdict"] == "refused"
    assert words in event["message"]
    assert "another-key" not in event["message"]


@pytest.mark.parametrize("how", ["missing", "broken"])
def test_connection_that_cannot_be_read_for_a_while(
    how: str,
    service: str,
    wire: Wire,
    job_ids: list[str],
    life: Callable[..., Life],
    mocker: MockerFixture,
    log: Log,
) -> None:
    """A secrets backend that does not answer for two minutes fails nobody, and is told now and then."""
    back = wire.clock.now + 120
    trouble = AirflowNotFoundException("not defined") if how == "missing" else ConnectionError("no vault")

    async def look_up(conn_id: str) -> Any:
        if wire.clock.now < back:
            raise trouble
        return await async_settings(conn_id)

    mocker.patch.object(trigger_connection, "async_settings", look_up)
    with life(None).supervised():
        event = run(wire.clock, trigger_for(service, wire, job_ids))
    assert event == {"verdict": "ended", "succeeded": 3}
    assert 2 <= len(set(re.findall(r"cannot be read .* trying again in (\d+) s", log.text))) <= 4


def test_connection_that_is_never_read_leaves_the_last_look_to_the_worker(
    life: Callable[..., Life], wire: Wire
) -> None:
    """It is looked for up to the deadline; then nobody has seen the jobs, and a worker may."""
    deadline = wire.clock.now + 600
    with life(None).supervised():
        event = run(wire.clock, AsyncChatTrigger("nowhere", ["a", "b", "a"], deadline, 30.0))
    assert event == {"verdict": "deadline", "pending": {"not seen yet": ["a", "b"]}}
    assert deadline - 60 < wire.clock.now <= deadline


def test_clear_while_the_connection_cannot_be_read(wire: Wire, life: Callable[..., Life], log: Log) -> None:
    """The jobs that go on are named all the same."""

    async def main() -> None:
        waiting = asyncio.ensure_future(
            first_event(AsyncChatTrigger("nowhere", ["job-a"], wire.clock.now + 600, 30.0))
        )
        await asyncio.sleep(60)
        waiting.cancel()
        await asyncio.wait((waiting,))

    with life(None).supervised():
        wire.clock.run(main())
    assert "1 jobs pending: job-a. They cannot be cancelled" in log.text


@pytest.mark.parametrize("wire", [{"key": None}], indirect=True)
def test_key_that_is_changed_while_a_task_waits(
    service: str, wire: Wire, job_ids: list[str], connections: Callable[..., None]
) -> None:
    """The old key is revoked, and the connection has the new one already: waiting goes on with it."""

    async def main() -> dict[str, Any]:
        waiting = asyncio.ensure_future(first_event(trigger_for(service, wire, job_ids)))
        await asyncio.sleep(60)
        connections(f"{service}_default", password="another-key")
        wire.fault("401", count=1)
        event: dict[str, Any] = await waiting
        return event

    assert wire.clock.run(main()) == {"verdict": "ended", "succeeded": 3}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arguments=st.dictionaries(
        st.sampled_from(["conn_id", "job_ids", "deadline", "poke_interval", "from_a_later_release"]), JSON
    )
)
def test_garbage_is_refused_in_plain_words(
    life: Callable[..., Life], wire: Wire, arguments: dict[str, Any]
) -> None:
    """Whatever the database holds: no exception, which would end the whole triggerer, and one verdict."""
    trigger = AsyncChatTrigger(**arguments)
    trigger.serialize()
    with life(None).supervised():
        event = run(wire.clock, trigger)
    assert event["verdict"] == "refused"
    assert "cannot be used" in event["message"] or "defined" in event["message"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    job_ids=st.lists(st.text(min_size=1), min_size=1, max_size=3),
    deadline=st.floats(min_value=1, max_value=1e12, allow_nan=False),
    poke_interval=st.floats(min_value=1, max_value=1e5),
)
def test_any_ids_and_numbers_come_to_an_end(
    wire: Wire, job_ids: list[str], deadline: float, poke_interval: float
) -> None:
    """Ids that no service hands out and numbers that nobody means: there is a verdict all the same."""
    event = run(wire.clock, AsyncChatTrigger("distribute_default", job_ids, deadline, poke_interval))
    assert event["verdict"] in ("ended", "deadline")


def test_triggers_of_a_connection_share_one_pool(
    service: str, wire: Wire, job_ids: list[str], connections: Callable[..., None]
) -> None:
    """Twenty sensors poll like one: one client, and no job is looked at twice for two of them."""

    async def main() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(first_event(trigger_for(service, wire, [job_ids[n % 3]])) for n in range(20))
        )

    submitting = wire.opened
    looks = len(wire.looks)
    assert wire.clock.run(main()) == [{"verdict": "ended", "succeeded": 1}] * 20
    assert wire.opened == submitting + 1
    shared = len(wire.looks) - looks
    run(wire.clock, trigger_for(service, wire, job_ids))
    assert shared <= 3 * (600 / 15)


def test_changed_connection_is_another_pool(
    service: str, wire: Wire, job_ids: list[str], connections: Callable[..., None]
) -> None:
    """Who comes after a key was changed gets the new one."""

    async def main() -> list[dict[str, Any]]:
        old = asyncio.ensure_future(first_event(trigger_for(service, wire, job_ids)))
        await asyncio.sleep(10)
        connections(f"{service}_default", extra={"max_connections": 2})
        new = asyncio.ensure_future(first_event(trigger_for(service, wire, job_ids)))
        return [await old, await new]

    submitting = wire.opened
    assert wire.clock.run(main()) == [{"verdict": "ended", "succeeded": 3}] * 2
    assert wire.opened == submitting + 2


def test_cancelled_trigger_lists_what_goes_on(service: str, wire: Wire, job_ids: list[str], log: Log) -> None:
    """A task that is cleared or marked failed says in the log which jobs are billed all the same."""

    async def main() -> None:
        waiting = asyncio.ensure_future(first_event(trigger_for(service, wire, job_ids)))
        await asyncio.sleep(100)
        wire.finish(job_ids[0])
        await asyncio.sleep(100)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    wire.clock.run(main())
    assert f"2 jobs pending: {', '.join(job_ids[1:])}. They cannot be cancelled" in log.text


class TestMetrics:
    """What Airflow's metrics are told of looks."""

    def test_every_look_is_counted_once(
        self, service: str, wire: Wire, job_ids: list[str], metrics: Metrics
    ) -> None:
        """However many triggers share the pool; the service is the only tag."""

        async def main() -> None:
            await asyncio.gather(*(first_event(trigger_for(service, wire, job_ids[n:])) for n in range(3)))

        before = len(wire.looks)
        wire.fault("429", operation="look", count=2)
        wire.clock.run(main())
        assert metrics.counts == {
            "distribute.pool.looked": len(wire.looks) - before,
            "distribute.pool.throttled": 2,
        }
        assert metrics.tags == [{"service": service}]

    def test_they_are_told_while_somebody_waits(
        self, service: str, wire: Wire, job_ids: list[str], metrics: Metrics
    ) -> None:
        """Nobody learns of a storm of refusals only when it is over; and the last looks count as well."""

        async def main() -> None:
            waiting = asyncio.ensure_future(first_event(trigger_for(service, wire, job_ids)))
            await asyncio.sleep(300)
            told = metrics.counts["distribute.pool.looked"]
            assert told >= 0.8 * (len(wire.looks) - before)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert metrics.counts["distribute.pool.looked"] == len(wire.looks) - before

        before = len(wire.looks)
        wire.clock.run(main())

    def test_a_report_under_way_when_the_last_wait_ends_is_not_lost(
        self, service: str, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Airflow's metrics may be slow: whoever leaves last waits for what they are being told."""
        begun, told = asyncio.Event(), threading.Event()

        async def main() -> None:
            def slow(stat: str, count: int = 1, *, tags: dict[str, str]) -> None:
                loop.call_soon_threadsafe(begun.set)
                told.wait(10)
                incr(stat, count, tags=tags)

            loop, incr = asyncio.get_running_loop(), metrics.incr
            monkeypatch.setattr("airflow_provider_distribute.triggers.metrics._EVERY", 0.0)
            monkeypatch.setattr("airflow_provider_distribute.triggers.metrics.Stats.incr", slow)
            async with metered_pool(SERVICES[service].settings.parse("c", {"api_key": KEY})) as pool:
                monkeypatch.setattr(pool, "take_looks", [Looks(sent=2)].pop)
                await begun.wait()
                monkeypatch.setattr(pool, "take_looks", Looks)
                loop.call_later(0.05, told.set)
            assert metrics.counts == {"distribute.pool.looked": 2}

        asyncio.run(main())


def test_nothing_secret_crosses(service: str, wire: Wire, job_ids: list[str], log: Log) -> None:
    """Arguments, event and log hold ids, numbers and words."""
    wire.fault("500", operation="look", count=5, value=f"your key {KEY} is fine")
    trigger = trigger_for(service, wire, job_ids)
    event = run(wire.clock, trigger)
    crossed = repr((trigger.serialize(), event)) + log.text
    assert KEY not in crossed
    assert "question" not in crossed


def test_real_loop_is_not_blocked(service: str, connections: Callable[..., None]) -> None:
    """Over the loopback interface with the real transports: the autouse guard raises on a blocking call."""
    with InferenceEmulator(latency="1") as emulator:
        connections(f"{service}_default", emulator.connection(service))
        with HOOKS[service]().client as client:
            job_ids = [client.submit(ChatRequest.parse("Why?")) for _ in range(5)]
        trigger = AsyncChatTrigger(f"{service}_default", job_ids, 4e9, 1.0)
        assert asyncio.run(first_event(trigger)) == {"verdict": "ended", "succeeded": 5}


@pytest.mark.parametrize("outcome", [WaitOutcome, BulkOutcome])
def test_field_of_a_newer_triggerer_is_ignored(outcome: type[WaitOutcome | BulkOutcome]) -> None:
    """Triggerer and workers are not upgraded in the same instant; a missing verdict stays an error."""
    read = outcome.model_validate({"verdict": "ended", "succeeded": 3, "looks": 7})
    assert read == outcome(verdict="ended", succeeded=3)
    with pytest.raises(ValidationError):
        outcome.model_validate({"looks": 7})
