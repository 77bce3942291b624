# SPDX-License-Identifier: Apache-2.0

"""The bulk run's trigger: it never raises, never blocks, keeps what comes back, and says little."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.manifest import read_manifest
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.exceptions import LedgerUnavailable
from airflow_provider_distribute.hooks import HOOKS
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Accepted, Intended, Owner, Ticket
from airflow_provider_distribute.ledger.rows import read_rows
from airflow_provider_distribute.testing import InferenceEmulator
from airflow_provider_distribute.triggers.bulk import AsyncChatBulkTrigger, BulkOutcome
from tests.airflow.supervisor import deserialize, first_event, serialize
from tests.airflow.wire import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.airflow.clock import Clock
    from tests.airflow.conftest import Log, Metrics
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
QUESTIONS = [f"question {number}" for number in range(3)]


def submitted(service: str, path: Path, count: int = len(QUESTIONS)) -> Directory:
    """Submit jobs as a worker does, with a record of them."""
    questions = (QUESTIONS * count)[:count]
    hook = HOOKS[service]()
    directory = Directory(UPath(path))
    run = Run(directory, Plan(hook.settings, Owner("d", "r", "t")))
    run.take_up(source_of(questions, open_path=UPath), now=1.0)
    with hook.client:
        tickets = [Ticket(hook.submit(question), str(row), 1.0) for row, question in enumerate(questions)]
    run.journal.append([Intended.of(range(count)), Accepted(tuple(tickets))])
    return directory


@pytest.fixture
def directory(service: str, wire: Wire, tmp_path: Path) -> Directory:
    """Where a run is recorded that was submitted by now; its jobs take ten minutes."""
    wire.fault("latency", value="600")
    return submitted(service, tmp_path / "run")


def trigger_for(service: str, wire: Wire, directory: Directory, **options: Any) -> AsyncChatBulkTrigger:
    """Return a trigger as the operator makes it."""
    usual: dict[str, Any] = {"deadline": wire.clock.now + 7200, "poke_interval": 30.0}
    return AsyncChatBulkTrigger(conn_id=f"{service}_default", run_uri=directory.uri, **{**usual, **options})


def run(clock: Clock, trigger: AsyncChatBulkTrigger) -> dict[str, Any]:
    """Run a trigger to its event."""
    return clock.run(first_event(trigger))


def kept(directory: Directory) -> set[int]:
    """Return the rows that were kept."""
    return {head.row for head, _ in read_rows(directory)}


def progress(directory: Directory) -> dict[str, Any]:
    """Return what people are told."""
    said: dict[str, Any] = json.loads(directory.read("progress.json") or b"")
    return said


def test_serialisation_round_trip(service: str, wire: Wire, directory: Directory) -> None:
    """The arguments that are stored make the same trigger again, and are small."""
    trigger = trigger_for(service, wire, directory)
    path, arguments = trigger.serialize()
    assert path == f"{AsyncChatBulkTrigger.__module__}.{AsyncChatBulkTrigger.__name__}"
    stored = json.dumps(serialize(arguments))
    assert AsyncChatBulkTrigger(**deserialize(json.loads(stored))).serialize() == (path, arguments)
    assert len(stored) < 1024


def test_end_is_told_in_counts(service: str, wire: Wire, directory: Directory) -> None:
    """One event: how many ended well, how many badly; the rows are kept."""
    wire.finish(wire.job_ids[1], error="model overloaded")
    event = run(wire.clock, trigger_for(service, wire, directory))
    assert (event["verdict"], event["succeeded"], event["failed"]) == ("ended", 2, 1)
    assert kept(directory) == {0, 1, 2}


def test_deadline_is_told_in_counts(service: str, wire: Wire, directory: Directory) -> None:
    """What had ended is kept."""
    wire.finish(wire.job_ids[0])
    event = run(wire.clock, trigger_for(service, wire, directory, deadline=wire.clock.now + 300))
    assert (event["verdict"], event["succeeded"], event["pending"]) == ("deadline", 1, 2)
    assert kept(directory) == {0}


def test_triggerer_that_was_away_over_the_deadline(service: str, wire: Wire, directory: Directory) -> None:
    """It says so and looks at nothing: the last look is the worker's, who needs no triggerer for it."""
    event = run(wire.clock, trigger_for(service, wire, directory, deadline=wire.clock.now - 60))
    assert (event["verdict"], event["pending"], wire.looks) == ("deadline", 3, [])


def test_restarted_triggerer_waits_for_the_rest(service: str, wire: Wire, directory: Directory) -> None:
    """What was kept is not asked for again."""

    async def stopped() -> None:
        waiting = asyncio.ensure_future(first_event(trigger_for(service, wire, directory)))
        await asyncio.sleep(100)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    wire.finish(wire.job_ids[0])
    wire.clock.run(stopped())
    before = len(wire.looks)
    event = run(wire.clock, trigger_for(service, wire, directory))
    assert (event["verdict"], event["succeeded"]) == ("ended", 3)
    assert wire.job_ids[0] not in "".join(
        f"{request.url}{request.content!r}" for request in wire.looks[before:]
    )


class TestCancelled:
    """A clear, a kill, a restart: the jobs cannot be cancelled."""

    @staticmethod
    def cancel(
        service: str, wire: Wire, directory: Directory, before: Callable[[], object] = lambda: None
    ) -> None:
        """Let a trigger wait, and cancel it as a triggerer does."""

        async def stopped() -> None:
            waiting = asyncio.ensure_future(first_event(trigger_for(service, wire, directory)))
            await asyncio.sleep(50)
            await asyncio.to_thread(before)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        wire.clock.run(stopped())

    def test_it_says_what_goes_on(self, service: str, wire: Wire, directory: Directory, log: Log) -> None:
        """In the log and in the manifest: which jobs, and how many rows are unknown or were not sent."""
        wire.finish(wire.job_ids[0])
        self.cancel(service, wire, directory)
        goes_on = ", ".join(wire.job_ids[1:])
        assert (
            "2 jobs pending. They cannot be cancelled: they go on at the service and are billed: " in log.text
        )
        assert f"billed: {goes_on}. 0 rows are unknown, and 0 were not sent" in log.text
        manifest = read_manifest(directory)
        assert manifest["stopped"]["accepted"] == {"jobs": 2, "job_ids": wire.job_ids[1:]}
        assert (manifest["stopped"]["unknown"]["rows"], manifest["stopped"]["not_sent"]) == (0, 0)
        assert "only restarts" in manifest["stopped"]["why"]
        assert (manifest["service"], manifest["conn_id"]) == (service, f"{service}_default")

    def test_before_the_run_was_read(
        self, service: str, wire: Wire, directory: Directory, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is said to be pending that nobody has counted; the manifest takes it from the journal."""

        def unavailable(collection: Collection) -> None:
            raise LedgerUnavailable("read", directory.uri)

        monkeypatch.setattr(Collection, "read", unavailable)
        self.cancel(service, wire, directory)
        assert "Waiting stopped here before the run was read. Its jobs cannot be cancelled" in log.text
        assert f"billed; {directory.below('journal')!r} lists everything" in log.text
        assert read_manifest(directory)["stopped"]["accepted"]["jobs"] == 3

    def test_before_the_connection_was_read(
        self, wire: Wire, life: Callable[..., Life], directory: Directory, log: Log
    ) -> None:
        """The run is named all the same."""
        with life(None).supervised():
            self.cancel("nowhere", wire, directory)
        assert "before the run was read" in log.text
        assert directory.uri in log.text

    def test_a_hundred_jobs_are_named(self, service: str, wire: Wire, tmp_path: Path, log: Log) -> None:
        """The rest is in the journal."""
        wire.fault("never")
        directory = submitted(service, tmp_path / "run", count=101)
        self.cancel(service, wire, directory)
        said = read_manifest(directory)["stopped"]["accepted"]
        assert (said["jobs"], said["job_ids"]) == (101, wire.job_ids[:100])
        assert f"{wire.job_ids[99]} …. 0 rows are unknown" in log.text
        assert f", {wire.job_ids[100]}" not in log.text

    def test_what_a_newer_attempt_has_written_stays(
        self, service: str, wire: Wire, directory: Directory
    ) -> None:
        """After a clear it may be far by now."""

        def begin_anew() -> None:
            newer = Run(directory, Plan(HOOKS[service]().settings, Owner("d", "r", "t")))
            newer.take_up(source_of(QUESTIONS, open_path=UPath), now=2.0)
            for name in ("progress.json", "manifest.json"):
                directory.overwrite(name, b'{"schema_version": 1, "state": "newer"}')

        self.cancel(service, wire, directory, begin_anew)
        assert progress(directory)["state"] == read_manifest(directory)["state"] == "newer"

    def test_a_storage_that_is_gone_does_not_hide_who_ended_it(
        self, service: str, wire: Wire, directory: Directory, log: Log
    ) -> None:
        """A trigger that only moves must not say that its task failed."""
        path = directory.uri.removeprefix("file://")

        def lose() -> None:
            shutil.rmtree(path)
            Path(path).touch()

        self.cancel(service, wire, directory, lose)
        assert wire.job_ids[0] in log.text


def test_looks_are_counted(service: str, wire: Wire, directory: Directory, metrics: Metrics) -> None:
    """All that were sent, and those the service objected to; the service is the only tag."""
    wire.fault("429", operation="look", count=2)
    run(wire.clock, trigger_for(service, wire, directory))
    assert metrics.counts == {"distribute.pool.looked": len(wire.looks), "distribute.pool.throttled": 2}
    assert metrics.tags == [{"service": service}]


class TestTrouble:
    """What keeps it from waiting is in the event."""

    def test_a_rejected_key_is_refused(self, service: str, wire: Wire, directory: Directory) -> None:
        """A person has to act; what had come back is kept."""

        async def rejected() -> dict[str, Any]:
            waiting = asyncio.ensure_future(first_event(trigger_for(service, wire, directory)))
            await asyncio.sleep(100)
            wire.fault("401", operation="look")
            return await waiting

        wire.finish(wire.job_ids[0])
        event = wire.clock.run(rejected())
        assert (event["verdict"], "401" in event["message"]) == ("refused", True)
        assert kept(directory) == {0}

    def test_a_connection_that_is_never_read_leaves_the_last_look_to_the_worker(
        self, life: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """Nobody has seen the jobs, and the deadline has passed."""
        deadline = wire.clock.now + 10
        with life(None).supervised():
            event = run(wire.clock, AsyncChatBulkTrigger("nowhere", str(tmp_path), deadline, 1.0))
        assert event == {"verdict": "deadline", "run_uri": str(tmp_path), "deadline": deadline}

    def test_a_directory_it_does_not_see_is_no_run_that_has_ended(
        self, service: str, wire: Wire, tmp_path: Path
    ) -> None:
        """The worker, who sees it, would defer again for ever."""
        trigger = AsyncChatBulkTrigger(
            f"{service}_default", (tmp_path / "local").as_uri(), wire.clock.now + 10, 1.0
        )
        event = run(wire.clock, trigger)
        assert event["verdict"] == "refused"
        assert "has to see what the worker wrote" in event["message"]

    def test_a_storage_in_trouble_is_unavailable(self, service: str, wire: Wire) -> None:
        """It is given time, and a retry."""
        began = wire.clock.now
        trigger = AsyncChatBulkTrigger(f"{service}_default", "file:///proc/version", began + 100, 1.0)
        assert run(wire.clock, trigger)["verdict"] == "unavailable"
        assert 200 < wire.clock.now - began < 345

    def test_a_storage_that_nobody_knows_is_refused(self, service: str, wire: Wire) -> None:
        """Time does not help."""
        trigger = AsyncChatBulkTrigger(f"{service}_default", "odd://nowhere", wire.clock.now + 10, 1.0)
        assert run(wire.clock, trigger)["verdict"] == "refused"

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        arguments=st.dictionaries(
            st.sampled_from(["conn_id", "run_uri", "deadline", "poke_interval", "from_a_later_release"]), JSON
        )
    )
    def test_garbage_is_refused_in_plain_words(
        self, life: Callable[..., Life], wire: Wire, arguments: dict[str, Any]
    ) -> None:
        """Whatever the database holds: no exception, which would end the whole triggerer, and one verdict."""
        trigger = AsyncChatBulkTrigger(**arguments)
        trigger.serialize()
        with life(None).supervised():
            event = run(wire.clock, trigger)
        assert event["verdict"] == "refused"
        assert "cannot be used" in event["message"] or "defined" in event["message"]


def test_event_is_small() -> None:
    """Whatever it says."""
    said = BulkOutcome(verdict="ended", succeeded=5).model_dump(exclude_defaults=True)
    assert said == {"verdict": "ended", "succeeded": 5}


def test_nothing_secret_crosses(service: str, wire: Wire, directory: Directory, log: Log) -> None:
    """Arguments, event, log and progress hold ids, numbers and words."""
    wire.fault("500", operation="look", count=5, value=f"your key {KEY} is fine")
    trigger = trigger_for(service, wire, directory)
    event = run(wire.clock, trigger)
    crossed = repr((trigger.serialize(), event, progress(directory))) + log.text
    assert KEY not in crossed
    assert "question" not in crossed


def test_real_loop_is_not_blocked(service: str, connections: Callable[..., None], tmp_path: Path) -> None:
    """Over the loopback interface with the real transports: the autouse guard raises on a blocking call."""
    with InferenceEmulator(latency="1") as emulator:
        connections(f"{service}_default", emulator.connection(service))
        directory = submitted(service, tmp_path / "run")
        trigger = AsyncChatBulkTrigger(f"{service}_default", directory.uri, 4e9, 1.0)
        event = asyncio.run(first_event(trigger))
    assert (event["verdict"], event["succeeded"]) == ("ended", 3)
    assert progress(directory)["state"] == "ended"
