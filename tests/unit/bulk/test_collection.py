# SPDX-License-Identifier: Apache-2.0

"""Waiting for a run's jobs and keeping what comes back, in simulated time."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from upath import UPath

from airflow_provider_distribute.bulk import collection as collection_module
from airflow_provider_distribute.bulk import patience
from airflow_provider_distribute.bulk.collection import Collection, Progress, show_sending
from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.exceptions import AccessDenied, LedgerError, LedgerMissing, LedgerUnavailable
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Accepted, Intended, Refusal, Refused, Ticket
from airflow_provider_distribute.ledger.rows import Landed, RowWriter, read_rows
from airflow_provider_distribute.waiting import results
from airflow_provider_distribute.waiting.pool import Pool
from airflow_provider_distribute.waiting.results import LAST_LOOK
from tests.unit.bulk.world import World, prompts
from tests.unit.storage import Failing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from tests.unit.clock import Clock

HOUR = 3600.0


class Storage(Directory):
    """A directory that cannot be written from one instant to another."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(UPath(path))
        self._clock = clock
        self.down = (math.inf, math.inf)
        self.unreadable = (math.inf, math.inf)
        self.error: LedgerError = LedgerUnavailable("write (OSError)", "somewhere")

    def overwrite(self, name: str, data: bytes) -> None:
        """Write an object, or fail."""
        begin, end = self.down
        if begin <= self._clock.time() < end:
            raise self.error
        super().overwrite(name, data)

    def names(self, folder: str) -> list[str]:
        """List a folder, or fail."""
        begin, end = self.unreadable
        if begin <= self._clock.time() < end:
            raise LedgerUnavailable("list (OSError)", "somewhere")
        return super().names(folder)


class Scene:
    """A run whose requests were accepted, and somebody who waits for their jobs."""

    def __init__(self, world: World, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        self.world = world
        self.clock = clock
        self.start = clock.time()
        self.storage = Storage(world.path, clock)
        #: When a job ends, in seconds from the start; the others have ended before.
        self.ends: dict[str, float] = {}
        #: What is said instead of the truth, if anything.
        self.instead: Callable[[str], httpx.Response | None] = lambda job_id: None
        self.looks: list[tuple[float, str]] = []
        self._truth = world.service._result
        self._caplog = caplog
        world.service._result = self._look  # type: ignore[method-assign]

    @property
    def now(self) -> float:
        """Seconds since the scene began."""
        return self.clock.time() - self.start

    def at(self, seconds: float) -> float:
        """Return an instant of the scene, in epoch seconds."""
        return self.start + seconds

    def _look(self, job_id: str) -> httpx.Response:
        self.looks.append((self.now, job_id))
        said = self.instead(job_id)
        if said is not None:
            return said
        if self.now < self.ends.get(job_id, 0.0):
            return httpx.Response(200, json={"status": "IN_PROGRESS"})
        return self._truth(job_id)

    def accepted(self, count: int, *, rows: int | None = None) -> None:
        """Record ``rows`` requests, of which so many were accepted, by a worker that sent them."""
        run, _ = self.world.take_up(prompts(rows or count))
        tickets = tuple(Ticket(f"Question {row}#0", str(row), 1.0) for row in range(count))
        run.journal.append([Intended.of(range(count)), Accepted(tickets)])

    async def waiter(self) -> Collection:
        """Return what a trigger waits with."""
        collection = Collection(self.storage, self.world.settings)
        await asyncio.to_thread(collection.read)
        return collection

    @property
    def pool(self) -> Pool:
        """Return who looks."""
        return Pool(self.world.settings, open_client=self.world._open)

    async def wait(self, *, deadline: float = 72 * HOUR, poke_interval: float = 30.0) -> Collection:
        """Wait as a trigger does."""
        collection = await self.waiter()
        await collection.run(self.pool, deadline=self.at(deadline), poke_interval=poke_interval)
        return collection

    async def look(self) -> Collection:
        """Look a last time, as a worker does."""
        collection = await self.waiter()
        await collection.look_a_last_time(self.pool, poke_interval=30.0)
        return collection

    def play(self, act: Coroutine[Any, Any, None]) -> None:
        """Run a scene in simulated time."""
        self.clock.run(act)

    def kept(self) -> list[int]:
        """Return the rows that came back and were kept, as often as they were."""
        return sorted(head.row for head, _ in read_rows(self.storage))

    @property
    def progress(self) -> dict[str, Any]:
        """What progress.json says."""
        said: dict[str, Any] = json.loads((self.world.path / "progress.json").read_bytes())
        return said

    def told(self, level: int) -> list[str]:
        """Return what the task's log was told at a level."""
        return [
            record.getMessage()
            for record in self._caplog.records
            if record.name == collection_module.__name__ and record.levelno == level
        ]


@pytest.fixture
def scene(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Scene:
    for module in (collection_module, patience, results):
        monkeypatch.setattr(module, "time", clock)
    caplog.set_level("INFO", logger=collection_module.__name__)
    return Scene(world, clock, caplog)


class TestReading:
    """What there is to wait for."""

    def test_a_directory_without_a_run_is_not_a_run_that_has_ended(self, scene: Scene) -> None:
        """Whoever waits may be on a machine that does not see the worker's files."""
        collection = Collection(scene.storage, scene.world.settings)
        with pytest.raises(LedgerMissing, match=r"find the journal .* storage that they share") as refused:
            collection.read()
        assert not refused.value.transient

    def test_what_was_kept_is_not_waited_for(self, scene: Scene) -> None:
        """It counts as ended already."""
        scene.accepted(3)

        async def act() -> None:
            scene.ends = {"Question 2#0": HOUR}
            await scene.wait(deadline=60)
            again = await scene.waiter()
            assert list(again.pending) == ["Question 2#0"]
            assert (again.progress.total, again.progress.succeeded, again.progress.ended_before) == (3, 2, 2)

        scene.play(act())

    def test_a_row_that_was_asked_again_is_waited_for_again(self, scene: Scene) -> None:
        """What came back for its older ticket does not count; of the same row twice, one does."""
        scene.accepted(1)
        run, _ = scene.world.take_up(prompts(1))
        run.journal.append([Intended.of([0]), Accepted((Ticket("newer", "0", 2.0),))])
        old = Landed(0, "Question 0#0", 1.0, False, None).line({})
        RowWriter(scene.storage, writer="a").write([old, old])

        async def act() -> None:
            assert list((await scene.waiter()).pending) == ["newer"]

        scene.play(act())

    def test_rows_of_a_damaged_object_are_looked_at_again(self, scene: Scene) -> None:
        """Its whole lines count; the service may still have the rest."""
        scene.accepted(4)

        async def act() -> None:
            await scene.look()

        scene.play(act())
        (damaged,) = (scene.world.path / "rows").glob("*/*")
        damaged.write_bytes(b"".join(damaged.read_bytes().splitlines(keepends=True)[:2]) + b"rubbish")
        before = len(scene.looks)
        scene.play(act())
        assert (len(scene.looks) - before, scene.kept()) == (2, [0, 1, 2, 3])

    def test_each_row_of_a_ticket_counts_for_itself(self, scene: Scene) -> None:
        """A ticket of many rows of which one came back is waited for, for the others."""
        run, _ = scene.world.take_up(prompts(4))
        run.journal.append([Intended.of(range(4)), Accepted((Ticket("group", "0-3", 1.0),))])
        RowWriter(scene.storage, writer="a").write([Landed(1, "group", 1.0, True, None).line({})])

        async def act() -> None:
            assert list((await scene.waiter()).pending) == ["group"]
            collection = await scene.wait()
            assert (collection.progress.total, collection.progress.succeeded) == (4, 4)

        scene.play(act())
        assert scene.kept() == [0, 1, 2, 3]

    def test_what_the_journal_knows_of_the_other_rows(self, scene: Scene) -> None:
        """Refused, unknown and unsent ones are nobody's to wait for, and are told."""
        run, _ = scene.world.take_up(prompts(10))
        run.journal.append([Intended.of(range(5))])
        run.journal.append(
            [
                Accepted((Ticket("Question 0#0", "0", 1.0), Ticket("Question 1#0", "1", 1.0))),
                Refused((Refusal(2, "too odd", 1.0),)),
            ]
        )
        scene.play(self._waits(scene))
        said = scene.progress
        assert {name: said[name] for name in ("total", "refused", "unknown", "not_sent")} == {
            "total": 2,
            "refused": 1,
            "unknown": 2,
            "not_sent": 5,
        }

    @staticmethod
    async def _waits(scene: Scene) -> None:
        await scene.wait()

    def test_nothing_to_wait_for(self, scene: Scene) -> None:
        """It is over at once, and says so."""
        scene.accepted(2)
        scene.play(self._waits(scene))
        looked = len(scene.looks)
        scene.play(self._waits(scene))
        assert (len(scene.looks), scene.progress["state"]) == (looked, "ended")


class TestDeadline:
    """Whoever waits reports it; whoever lands looks a last time."""

    def test_a_wait_that_begins_too_late_looks_at_nothing(self, scene: Scene) -> None:
        """It says at once how many are pending."""
        scene.accepted(3)

        async def act() -> None:
            collection = await scene.wait(deadline=-HOUR)
            assert list(collection.pending) == [f"Question {row}#0" for row in range(3)]

        scene.play(act())
        assert (scene.looks, scene.progress["state"], scene.progress["pending"]) == ([], "deadline", 3)

    def test_the_last_look_sees_each_job_once(self, scene: Scene) -> None:
        """The oldest first, whatever its row; what has ended meanwhile is kept."""
        run, _ = scene.world.take_up(prompts(120))
        tickets = tuple(Ticket(f"Question {row}#0", str(row), 1000.0 - row) for row in range(120))
        run.journal.append([Intended.of(range(64)), Accepted(tickets[:64])])
        run.journal.append([Intended.of(range(64, 120)), Accepted(tickets[64:])])

        async def act() -> None:
            scene.ends = {"Question 7#0": HOUR}
            collection = await scene.look()
            assert list(collection.pending) == ["Question 7#0"]
            assert scene.now < 5.0

        scene.play(act())
        assert [job_id for _, job_id in scene.looks] == [f"Question {row}#0" for row in reversed(range(120))]
        assert len(scene.kept()) == 119
        assert (scene.progress["state"], scene.progress["pending"]) == ("deadline", 1)
        assert "looked at a last time" in scene.told(logging.INFO)[0]

    def test_the_last_look_goes_on_for_as_long_as_jobs_have_ended(self, scene: Scene) -> None:
        """Two thousand at four a second take eight minutes; each is paid for, and none counts as expired."""
        scene.world.fields["requests_per_second"] = 4
        scene.accepted(2000)

        async def act() -> None:
            collection = await scene.look()
            assert not collection.pending
            assert 490 < scene.now < 530

        scene.play(act())
        assert (len(scene.kept()), scene.progress["state"]) == (2000, "ended")

    def test_the_last_look_ends_where_nothing_has_ended(self, scene: Scene) -> None:
        """A service that does not answer then is not waited for."""
        scene.accepted(3)

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(500)
            collection = await scene.look()
            assert len(collection.pending) == 3
            assert scene.now == pytest.approx(LAST_LOOK, abs=1)

        scene.play(act())

    def test_the_last_look_waits_for_room(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """What has ended and cannot be kept yet is paid for as well."""
        monkeypatch.setattr(collection_module, "_OVERFULL", 1500)
        scene.accepted(30)

        async def act() -> None:
            scene.storage.down = scene.at(0.0), scene.at(200.0)
            collection = await scene.look()
            assert not collection.pending

        scene.play(act())
        assert scene.kept() == list(range(30))


class TestStorage:
    """When the storage does not answer."""

    def test_a_record_that_cannot_be_read_for_a_while(self, scene: Scene) -> None:
        """Nobody fails for that: the jobs go on, and so does the wait, until minutes after the deadline."""
        scene.accepted(5)

        async def begun(up_at: float, deadline: float) -> None:
            scene.storage.unreadable = scene.at(0.0), scene.at(up_at)
            collection = Collection(scene.storage, scene.world.settings)
            await collection.begin(deadline=scene.at(deadline))
            assert len(collection.pending) == 5
            assert up_at <= scene.now < up_at + 60

        scene.play(begun(HOUR, 2 * HOUR))
        assert 5 <= len(scene.told(logging.WARNING)) <= 9
        with pytest.raises(LedgerUnavailable):
            scene.play(begun(math.inf, 0.0))

    def test_a_record_that_is_not_there_is_not_asked_for_again(self, scene: Scene) -> None:
        """Time does not bring it."""

        async def act() -> None:
            with pytest.raises(LedgerMissing, match="find the journal"):
                await Collection(scene.storage, scene.world.settings).begin(deadline=scene.at(HOUR))
            assert scene.now == 0

        scene.play(act())

    def test_a_moment_loses_nothing(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """What does not fit in memory is kept as soon as it does, not only when the last job has ended."""
        monkeypatch.setattr(collection_module, "_OVERFULL", 1500)
        scene.accepted(30)

        async def act() -> None:
            scene.ends = {"Question 7#0": 2000.0}
            scene.storage.down = scene.at(0.0), scene.at(600.0)
            waiting = asyncio.create_task(scene.wait())
            await asyncio.sleep(500)
            assert await asyncio.to_thread(scene.kept) == []
            await asyncio.sleep(300)
            assert len(await asyncio.to_thread(scene.kept)) == 29
            await waiting

        scene.play(act())
        assert scene.kept() == list(range(30))
        assert 3 <= len(scene.told(logging.WARNING)) <= 6

    def test_at_the_end_it_is_tried_again(self, scene: Scene) -> None:
        """Every job has ended; the answers are still to be written."""
        scene.accepted(5)

        async def act() -> None:
            scene.storage.down = scene.at(0.0), scene.at(2 * HOUR)
            await scene.wait()
            assert 2 * HOUR < scene.now < 2 * HOUR + 120

        scene.play(act())
        assert (len(scene.looks), scene.kept(), scene.progress["state"]) == (5, [0, 1, 2, 3, 4], "ended")

    def test_gone_until_the_deadline(self, scene: Scene) -> None:
        """That is an error; the jobs go on, and another attempt can wait for them."""
        scene.accepted(5)

        async def act() -> None:
            scene.storage.down = scene.at(0.0), math.inf
            with pytest.raises(LedgerUnavailable):
                await scene.wait(deadline=HOUR)
            assert HOUR < scene.now <= HOUR + collection_module._STORAGE_PATIENCE

        scene.play(act())

    def test_what_a_person_has_to_allow_ends_the_wait(self, scene: Scene) -> None:
        """Trying again would not help."""
        scene.accepted(5)

        async def act() -> None:
            scene.ends = {"Question 1#0": HOUR}
            scene.storage.down = scene.at(0.0), math.inf
            scene.storage.error = LedgerError("not allowed")
            with pytest.raises(LedgerError, match="not allowed"):
                await scene.wait()
            assert scene.now < 60

        scene.play(act())

    def test_large_answers_go_into_several_objects(self, scene: Scene) -> None:
        """None of them much larger than a megabyte."""
        scene.world.service.answer = lambda prompt: "x" * 300_000
        scene.accepted(9)

        async def act() -> None:
            await scene.wait()

        scene.play(act())
        sizes = [file.stat().st_size for file in (scene.world.path / "rows").glob("*/*")]
        assert len(sizes) >= 3
        assert max(sizes) < 1.4 * 2**20


class TestEnds:
    """When somebody ends the wait."""

    def test_rows_survive_a_triggerer_that_stops(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was seen and is not written yet is written then."""
        monkeypatch.setattr(collection_module, "_PATIENCE", HOUR)
        scene.accepted(8)

        async def act() -> None:
            scene.ends = {"Question 7#0": HOUR}
            waiting = asyncio.create_task(scene.wait())
            await asyncio.sleep(300)
            assert await asyncio.to_thread(scene.kept) == []
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        scene.play(act())
        assert scene.kept() == list(range(7))

    def test_a_newer_attempts_progress_stays(self, scene: Scene) -> None:
        """A task that was cleared may have gone on elsewhere by now."""
        scene.accepted(2)

        async def act() -> None:
            scene.ends = {"Question 1#0": HOUR}
            waiting = asyncio.create_task(scene.wait())
            await asyncio.sleep(100)
            await asyncio.to_thread(scene.storage.overwrite, "progress.json", b"{}")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        scene.play(act())
        assert scene.progress == {}

    def test_a_storage_that_is_gone_does_not_hide_who_ended_it(self, scene: Scene) -> None:
        """A trigger that only moves must not say that its task failed."""
        scene.accepted(3)

        async def act() -> None:
            scene.ends = {"Question 2#0": HOUR}
            scene.storage.down = scene.at(0.0), math.inf
            waiting = asyncio.create_task(scene.wait())
            await asyncio.sleep(100)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        scene.play(act())
        assert "2 rows that have ended are looked at again" in scene.told(logging.WARNING)[-1]

    def test_a_rejected_key(self, scene: Scene) -> None:
        """Only a person can help; what had come back is kept."""
        scene.accepted(3)

        async def act() -> None:
            scene.ends = {"Question 2#0": HOUR}
            scene.instead = lambda job_id: httpx.Response(401) if scene.now > 100 else None
            with pytest.raises(AccessDenied):
                await scene.wait()
            assert scene.now < 150

        scene.play(act())
        assert scene.kept() == [0, 1]


class TestTelling:
    """What people are told."""

    def test_progress_is_told_calmly(self, scene: Scene) -> None:
        """After half a minute, then ever more rarely; once, by the run itself."""
        scene.accepted(200)

        async def act() -> None:
            scene.ends = {f"Question {row}#0": 10.0 * row for row in range(200)}
            await scene.wait()

        scene.play(act())
        told = scene.told(logging.INFO)
        assert "/200 done, 0 failed, " in told[0]
        assert "ETA 2025-" in told[3]
        assert len(told) == len((30, 90, 210, 450, 930, 1530, "the end"))
        assert told[-1].startswith("200/200 done")
        assert scene.told(logging.WARNING) == []

    def test_an_outage_is_told_once_whatever_the_size(self, scene: Scene) -> None:
        """Also after many jobs have ended: at rising failures, and when it is over."""
        scene.accepted(250)

        async def act() -> None:
            scene.ends = {f"Question {row}#0": 400.0 for row in range(100, 250)}
            scene.instead = lambda job_id: httpx.Response(503) if 300 < scene.now < 900 else None
            await scene.wait()

        scene.play(act())
        *trouble, end = scene.told(logging.WARNING)
        assert 3 <= len(trouble) <= 8
        assert "answers again" in end

    def test_the_file_is_current(self, scene: Scene) -> None:
        """From the beginning, and within half a minute at any time."""
        scene.accepted(50)
        ages: list[float] = []

        async def act() -> None:
            scene.ends = {f"Question {row}#0": 5.0 * row for row in range(50)}
            waiting = asyncio.create_task(scene.wait())
            await asyncio.sleep(1)
            while not waiting.done():
                updated = datetime.fromisoformat(scene.progress["updated_at"]).timestamp()
                ages.append(scene.clock.time() - updated)
                await asyncio.sleep(3)

        scene.play(act())
        assert len(ages) > 50
        assert max(ages) < 30
        said = scene.progress
        assert (said["state"], said["succeeded"], said["pending"], said["eta_seconds"]) == ("ended", 50, 0, 0)

    def test_what_is_said_of_rows(self) -> None:
        """How many ended well and badly, at what cost, and how long the rest will take."""
        progress = Progress(total=4, started=0.0)
        assert (progress.as_json(10.0)["eta_seconds"], "ETA unknown" in progress.line(10.0)) == (None, True)
        for row in range(2):
            progress.saw(Landed(row, "g", 1.0, row == 0, None if row else 0.5))
        assert (progress.succeeded, progress.failed, progress.cost, progress.unpriced) == (1, 1, 0.5, 0)
        assert progress.as_json(10.0)["eta_seconds"] == 10
        progress.saw(Landed(3, "c", 1.0, succeeded=True, cost=None))
        assert progress.line(10.0).endswith("cost so far about $0.5000, without 1 rows of unknown price")


class TestSending:
    """What ``progress.json`` says while a run sends."""

    def test_it_is_current_while_a_retry_sends(self, timeless: World) -> None:
        """It is not that of the attempt before: within half a minute it knows how many were sent."""
        clock = timeless.clock
        assert clock
        timeless.service.answer = lambda prompt: "ERROR" if int(prompt.split()[1]) < 100 else "Yes"
        timeless.attempt(prompts(150))
        timeless.fields["requests_per_second"] = 1
        run, staged = timeless.take_up(prompts(150))
        said: list[dict[str, Any]] = []

        async def sending() -> None:
            async with timeless.client() as client:
                budget = await asyncio.to_thread(run.budget, staged.costs)
                submission = Submission(run, client, budget, deadline=timeless.now() + HOUR)
                showing = asyncio.create_task(show_sending(run, submission))
                sent = asyncio.create_task(submission.run())
                while not sent.done():
                    await asyncio.sleep(10)
                    text = await asyncio.to_thread(timeless.directory().read, "progress.json")
                    said.append(json.loads(text or b""))
                    updated = datetime.fromisoformat(said[-1]["updated_at"]).timestamp()
                    assert timeless.now() - updated < 30
                showing.cancel()

        timeless.run(sending())
        assert {it["state"] for it in said} == {"sending"}
        assert (said[0]["succeeded"], said[0]["failed"], said[0]["total"]) == (50, 0, 50)
        assert [it["total"] + it["not_sent"] for it in said] == [150] * len(said)
        assert said[-1]["total"] > 130

    def test_a_storage_that_does_not_answer_stops_nothing(self, timeless: World) -> None:
        """Only people read it."""
        assert timeless.store
        run, _ = timeless.take_up(prompts(3))
        timeless.store.before = failing = Failing("write", "progress", times=2)

        async def sending() -> None:
            async with timeless.client() as client:
                budget = await asyncio.to_thread(run.budget, [0.0] * 3)
                submission = Submission(run, client, budget, deadline=timeless.now() + HOUR)
                showing = asyncio.create_task(show_sending(run, submission))
                await asyncio.sleep(100)
                showing.cancel()

        timeless.run(sending())
        assert failing.left == 0
        assert timeless.directory().read("progress.json") is not None
