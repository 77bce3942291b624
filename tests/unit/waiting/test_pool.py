# SPDX-License-Identifier: Apache-2.0

"""One pool for everybody who waits on a connection, in simulated time over a simulated service."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.exceptions import AccessDenied
from airflow_provider_distribute.waiting.pool import (
    LINGER,
    NOT_FOUND,
    NOT_SEEN,
    PROGRESS_EVERY,
    SLICE,
    Looks,
    Pool,
    Waited,
    shared_pool,
)
from tests.unit.contracts import DISTRIBUTE, INFERENCE_NET
from tests.unit.server import Server, answers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from airflow_provider_distribute.models import Job, Settings
    from tests.unit.clock import Clock
    from tests.unit.contracts import Contract

HOUR = 3600.0


class Heard(logging.Handler):
    """Keeps what one waiter is told."""

    def __init__(self) -> None:
        super().__init__()
        self.logger = logging.Logger("waiter")  # noqa: LOG001  heard by nobody else
        self.logger.addHandler(self)
        self.warnings: list[str] = []
        self.infos: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        (self.warnings if record.levelno >= logging.WARNING else self.infos).append(record.getMessage())


class Scene:
    """A service with jobs that end at given instants, a pool that looks at them, and who waits there."""

    def __init__(self, clock: Clock, contract: Contract, **fields: Any) -> None:
        self.clock = clock
        self.contract = contract
        self.settings: Settings = contract.settings(**fields)
        self.start = clock.monotonic()
        #: When a job ends, in seconds from now, and how; a job that is not here never does.
        self.ends: dict[str, tuple[float, str]] = {}
        #: What is said instead of the truth, if anything.
        self.instead: Callable[[str], httpx.Response | Exception | None] = lambda job_id: None
        self.latency = 0.05
        self.looks: list[tuple[float, str]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.opened = 0
        self.closed = 0
        self.closing_takes = 0.0
        self.pool = Pool(self.settings, self.open_client)
        self.pool._rng.seed(1)  # The same looks in every run.

    @property
    def now(self) -> float:
        """Seconds since the scene began."""
        return self.clock.monotonic() - self.start

    @contextlib.asynccontextmanager
    async def open_client(self, settings: Settings) -> AsyncIterator[AsyncClient]:
        """Make a client of the simulated service."""
        self.opened += 1
        async with AsyncClient(settings, transport=httpx.MockTransport(self._answer)) as client:
            yield client
        await asyncio.sleep(self.closing_takes)
        self.closed += 1

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        job_id = self.contract.asked_for(request)
        self.looks.append((self.now, job_id))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.latency)
        finally:
            self.at_once -= 1
        said = self.instead(job_id)
        if isinstance(said, Exception):
            raise said
        if said is not None:
            return said
        at, state = self.ends.get(job_id, (float("inf"), ""))
        return self.contract.look(state if self.now >= at else "pending")

    def looks_at(self, job_id: str) -> list[float]:
        """When a job was looked at."""
        return [at for at, looked in self.looks if looked == job_id]

    async def wait(
        self, *job_ids: str, hours: float = 72.0, poke_interval: float = 30.0, **more: Any
    ) -> Waited:
        """Wait as a trigger does."""
        deadline = self.clock.time() + hours * HOUR
        return await self.pool.wait(job_ids, deadline=deadline, poke_interval=poke_interval, **more)

    def play(self, act: Coroutine[Any, Any, None]) -> None:
        """Run a scene in simulated time."""
        self.clock.run(act)

    def is_tidy(self) -> bool:
        """Whether the pool remembers nothing of anybody."""
        kept = [value for value in vars(self.pool).values() if isinstance(value, (dict, set))]
        return not any(kept) and len(kept) == 6 and len(self.pool._schedule) == 0 and self.at_once == 0


@pytest.fixture
def scene(clock: Clock, contract: Contract) -> Scene:
    return Scene(clock, contract)


def ids(count: int) -> list[str]:
    return [f"job-{n}" for n in range(count)]


class TestOutcomes:
    """How a wait ends."""

    def test_everybody_ends(self, scene: Scene) -> None:
        """A wait returns when the last job has ended, with what became of them; each is seen once."""
        jobs: list[Job] = []

        async def act() -> None:
            scene.ends = {"a": (100.0, "succeeded"), "b": (400.0, "failed"), "c": (250.0, "succeeded")}
            waited = await scene.wait("a", "b", "c", on_end=jobs.append)
            assert waited == Waited(succeeded=2, failed=("b",), lost=(), pending={})
            assert 400.0 <= scene.now < 440.0

        scene.play(act())
        assert [job.job_id for job in jobs] == ["a", "c", "b"]
        assert [job.succeeded for job in jobs] == [True, True, False]

    def test_nothing_to_wait_for(self, scene: Scene) -> None:
        """An empty wait is over at once."""

        async def act() -> None:
            assert await scene.wait() == Waited(0, (), (), {})

        scene.play(act())
        assert scene.looks == []

    def test_an_id_given_twice_is_one_job(self, scene: Scene) -> None:
        """It is counted once."""

        async def act() -> None:
            scene.ends = {"a": (50.0, "succeeded")}
            assert (await scene.wait("a", "a")).succeeded == 1

        scene.play(act())

    def test_the_deadline_lists_who_is_pending(self, scene: Scene) -> None:
        """Each pending job is named with the service's last word, and that is no error here."""

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(500) if job_id == "unseen" else None
            scene.ends = {"late": (9 * HOUR, "succeeded"), "done": (HOUR / 2, "succeeded")}
            waited = await scene.wait("late", "unseen", "done", hours=2)
            assert scene.now == pytest.approx(2 * HOUR)
            assert waited == Waited(
                succeeded=1,
                failed=(),
                lost=(),
                pending={"late": scene.contract.words["pending"], "unseen": NOT_SEEN},
            )
            await asyncio.sleep(LINGER + 1)
            assert scene.is_tidy()

        scene.play(act())

    def test_three_days(self, scene: Scene) -> None:
        """The deadline is a wall-clock instant, however far away, and the last hour counts as well."""

        async def act() -> None:
            scene.ends = {"a": (71.5 * HOUR, "succeeded"), "b": (73 * HOUR, "succeeded")}
            waited = await scene.wait("a", "b", poke_interval=1200.0)
            assert scene.now == pytest.approx(72 * HOUR)
            assert waited == Waited(1, (), (), {"b": scene.contract.words["pending"]})

        scene.play(act())

    def test_an_unknown_word_is_waited_out_and_shown(self, scene: Scene) -> None:
        """A word nobody has heard of is no failure; it is in what the deadline lists."""

        async def act() -> None:
            scene.instead = lambda job_id: scene.contract.look("REINCARNATED")
            assert (await scene.wait("a", hours=1)).pending == {"a": "REINCARNATED"}

        scene.play(act())

    @pytest.mark.parametrize("word", [NOT_SEEN, NOT_FOUND])
    def test_a_service_may_use_our_words(self, scene: Scene, word: str) -> None:
        """Its job is pending then, like one with any other word we do not know."""

        async def act() -> None:
            scene.instead = lambda job_id: scene.contract.look(str(word))
            (pending,) = (await scene.wait("a", hours=1)).pending.values()
            assert (pending, pending is word) == (word, False)

        scene.play(act())

    def test_a_deadline_in_the_past(self, scene: Scene) -> None:
        """Nothing is asked any more."""

        async def act() -> None:
            assert (await scene.wait("a", hours=-1)).pending == {"a": NOT_SEEN}

        scene.play(act())
        assert scene.looks == []

    def test_one_look_at_each(self, scene: Scene) -> None:
        """Whoever wants to know how things stand does not wait for what goes on, only for an answer."""

        async def act() -> None:
            trouble = {"b": httpx.Response(500), "c": scene.contract.not_found()}
            scene.instead = lambda job_id: trouble.get(job_id) if scene.now < 5 else None
            scene.ends = {"a": (0.0, "succeeded")}
            waited = await scene.wait("a", "b", "c", once=True)
            word = scene.contract.words["pending"]
            assert waited == Waited(1, (), (), {"b": word, "c": "not found"})
            assert 5.0 < scene.now < 15.0

        scene.play(act())
        assert len(scene.looks_at("a")) == 1

    def test_one_look_at_each_has_a_deadline(self, scene: Scene) -> None:
        """A service that does not answer is not waited for any longer."""

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(500)
            waited = await scene.wait("a", "b", once=True, hours=0.1)
            assert waited.pending == {"a": NOT_SEEN, "b": NOT_SEEN}
            assert scene.now == pytest.approx(0.1 * HOUR)

        scene.play(act())

    def test_a_job_that_was_not_taken_stays_pending(self, scene: Scene) -> None:
        """For want of room: it is looked at again, in its turn, until there is room for it."""
        taken: list[float] = []

        def on_end(job: Job) -> bool:
            if room := scene.now > 300:
                taken.append(scene.now)
            return room

        async def act() -> None:
            scene.ends = {"a": (100.0, "succeeded"), "b": (100.0, "failed")}
            full, other = await asyncio.gather(scene.wait("a", "b", on_end=on_end), scene.wait("b"))
            assert full == Waited(1, ("b",), (), {})
            assert other == Waited(0, ("b",), (), {})
            await asyncio.sleep(LINGER + 1)
            assert scene.is_tidy()

        scene.play(act())
        assert len(taken) == 2
        assert all(300 < at < 345 for at in taken)

    def test_who_looks_once_looks_again_at_a_job_that_was_not_taken(self, scene: Scene) -> None:
        """It has ended and is wanted; when there is room, it is taken."""
        room = iter([False, False, True])

        async def act() -> None:
            scene.ends = {"a": (0.0, "succeeded"), "b": (9e9, "succeeded")}
            waited = await scene.wait("a", "b", hours=1, once=True, on_end=lambda job: next(room))
            assert (waited.succeeded, list(waited.pending)) == (1, ["b"])

        scene.play(act())
        assert next(room, None) is None

    def test_a_job_that_was_not_taken_at_the_deadline(self, scene: Scene) -> None:
        """It counts as pending, with the word it has."""

        async def act() -> None:
            scene.ends = {"a": (0.0, "succeeded")}
            waited = await scene.wait("a", hours=0.1, on_end=lambda job: False)
            assert waited == Waited(0, (), (), {"a": scene.contract.words["succeeded"]})

        scene.play(act())

    def test_a_job_that_is_not_shown_has_failed(self, scene: Scene) -> None:
        """One refused look ends one job; the others go on."""

        async def act() -> None:
            scene.instead = lambda job_id: (
                httpx.Response(410, json={"message": "gone"}) if job_id == "a" else None
            )
            scene.ends = {"b": (100.0, "succeeded")}
            assert await scene.wait("a", "b") == Waited(1, ("a",), (), {})

        scene.play(act())
        assert len(scene.looks_at("a")) == 1

    def test_an_id_that_is_none_fails_alone(self, scene: Scene) -> None:
        """Garbage among the ids is nobody else's trouble, and is not sent anywhere."""

        async def act() -> None:
            scene.ends = {"b": (100.0, "succeeded")}
            waited = await scene.wait("..", "b", "\ud800")
            assert (waited.succeeded, set(waited.failed), waited.pending) == (1, {"..", "\ud800"}, {})

        scene.play(act())
        assert {job_id for _, job_id in scene.looks} == {"b"}


class TestNotFound:
    """What a 404 means in time."""

    def test_distribute_gives_a_grace(self, clock: Clock) -> None:
        """A job that is not found for longer than the connection allows is lost."""
        scene = Scene(clock, DISTRIBUTE, not_found_grace=120)

        async def act() -> None:
            scene.instead = lambda job_id: DISTRIBUTE.not_found() if job_id == "a" else None
            scene.ends = {"b": (10.0, "succeeded")}
            assert await scene.wait("a", "b") == Waited(1, ("a",), ("a",), {})
            assert 120.0 <= scene.now < 200.0

        scene.play(act())

    def test_what_is_in_between_is_no_grace(self, clock: Clock) -> None:
        """The grace is for a service that says so all the while: an outage between two 404s is none of it."""
        scene = Scene(clock, DISTRIBUTE, not_found_grace=120)

        async def act() -> None:
            scene.ends = {"a": (1300.0, "succeeded")}
            missing, outage = DISTRIBUTE.not_found(), httpx.Response(503)
            scene.instead = lambda job_id: (
                missing if scene.now < 5 or 1200 <= scene.now < 1230 else outage if scene.now < 1200 else None
            )
            assert (await scene.wait("a")).succeeded == 1

        scene.play(act())

    def test_being_found_ends_the_grace(self, clock: Clock) -> None:
        """The time counts from the first of several 404s in a row."""
        scene = Scene(clock, DISTRIBUTE, not_found_grace=120)

        async def act() -> None:
            hidden = lambda job_id: DISTRIBUTE.not_found() if scene.now % 200 < 100 else None  # noqa: E731
            scene.instead = hidden
            scene.ends = {"a": (1000.0, "succeeded")}
            assert (await scene.wait("a", poke_interval=20.0)).succeeded == 1

        scene.play(act())

    def test_inference_net_waits_for_ever(self, clock: Clock) -> None:
        """There a 404 always means *not ready yet*, until the deadline."""
        scene = Scene(clock, INFERENCE_NET)

        async def act() -> None:
            scene.instead = lambda job_id: INFERENCE_NET.not_found()
            assert (await scene.wait("a", hours=10, poke_interval=300.0)).pending == {"a": "not found"}

        scene.play(act())


class TestSharing:
    """Several waiters at one pool."""

    def test_two_waiters_share_the_looks(self, scene: Scene) -> None:
        """The same job waited for twice is looked at as if by one, and both get the same answer."""
        first: list[Job] = []
        second: list[Job] = []

        async def act() -> None:
            scene.ends = {"a": (900.0, "succeeded")}
            await asyncio.gather(scene.wait("a", on_end=first.append), scene.wait("a", on_end=second.append))

        scene.play(act())
        assert first[0] is second[0]
        assert scene.opened == 1
        gaps = [
            later - earlier
            for earlier, later in zip(scene.looks_at("a"), scene.looks_at("a")[1:], strict=False)
        ]
        assert min(gaps) > 0.5
        assert len(scene.looks) < 1.1 * 900 / 30 + 6

    def test_many_waiters_poll_like_one(self, scene: Scene) -> None:
        """They have one client, and together no more looks than a fixed interval would need."""

        async def act() -> None:
            scene.ends = {job_id: (300.0 + n, "succeeded") for n, job_id in enumerate(ids(60))}
            await asyncio.gather(*(scene.wait(job_id) for job_id in ids(60)))
            assert scene.now < 450

        scene.play(act())
        assert scene.opened == 1
        assert len(scene.looks) < 1.1 * sum(end / 30 for end, _ in scene.ends.values())

    def test_whoever_leaves_takes_only_his_own(self, scene: Scene) -> None:
        """A cancelled waiter's jobs are forgotten, a shared one goes on for the other."""

        async def act() -> None:
            scene.ends = {"shared": (600.0, "succeeded"), "own": (600.0, "succeeded")}
            leaver = asyncio.create_task(scene.wait("shared", "own"))
            stayer = asyncio.create_task(scene.wait("shared"))
            await asyncio.sleep(100)
            leaver.cancel()
            await asyncio.sleep(0)
            looked = len(scene.looks_at("own"))
            assert (await stayer).succeeded == 1
            assert leaver.cancelled()
            assert len(scene.looks_at("own")) == looked > 0
            await asyncio.sleep(LINGER + 1)
            assert scene.is_tidy()

        scene.play(act())

    @pytest.mark.parametrize("said", ["pending", "succeeded", 404, 410, 429, 500])
    def test_an_answer_to_nobody(self, scene: Scene, said: str | int) -> None:
        """A look that comes back after its waiter left is dropped, whatever it says."""

        async def act() -> None:
            scene.latency = 5.0
            scene.instead = lambda job_id: (
                httpx.Response(said, json={}) if isinstance(said, int) else scene.contract.look(said)
            )
            leaver = asyncio.create_task(scene.wait("a", look_now=True))
            await asyncio.sleep(1)
            leaver.cancel()
            await asyncio.sleep(10)
            assert len(scene.looks) == 1
            assert scene.is_tidy()

        scene.play(act())

    def test_shorter_intervals_win(self, scene: Scene) -> None:
        """Of two waiters for one job, the more impatient one sets the pace."""

        async def act() -> None:
            scene.ends = {"a": (2000.0, "succeeded")}
            await asyncio.gather(scene.wait("a", poke_interval=600.0), scene.wait("a", poke_interval=10.0))
            assert scene.now < 2015

        scene.play(act())


class TestSize:
    """Very many jobs of one waiter."""

    COUNT = 20 * SLICE + 7

    def test_others_have_their_turn_while_they_join_and_leave(self, scene: Scene) -> None:
        """They come, and go, a slice at a time."""
        watched = [0]

        async def turns(until: int) -> None:
            while watched[-1] != until:
                await asyncio.sleep(0)
                watched.append(len(scene.pool._schedule))

        async def act() -> None:
            waiting = asyncio.create_task(scene.wait(*ids(self.COUNT)))
            await turns(until=self.COUNT)
            waiting.cancel()
            await turns(until=0)
            assert waiting.cancelled()
            await asyncio.sleep(LINGER + 1)
            assert scene.is_tidy()

        scene.play(act())
        assert max(abs(later - earlier) for earlier, later in itertools.pairwise(watched)) == SLICE

    @pytest.mark.parametrize("once", [False, True])
    def test_the_youngest_join_as_others_end(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, once: bool
    ) -> None:
        """Only so many are watched at once, and nobody is forgotten over that."""
        monkeypatch.setattr("airflow_provider_distribute.waiting.pool.MOST_WATCHED", 3 * SLICE)
        watched: list[int] = []

        def on_end(job: Job) -> bool:
            watched.append(len(scene.pool._schedule))
            return True

        async def act() -> None:
            scene.ends = dict.fromkeys(ids(self.COUNT)[once:], (10.0, "succeeded"))
            await asyncio.sleep(20 * once)
            waited = await scene.wait(*ids(self.COUNT), on_end=on_end, once=once)
            assert (waited.succeeded, len(waited.pending)) == (self.COUNT - once, once)

        scene.play(act())
        assert max(watched) == 3 * SLICE

    def test_whoever_leaves_while_he_joins_leaves_nothing(self, scene: Scene) -> None:
        """Of what he had not brought in yet, another's stays."""

        async def act() -> None:
            last = ids(self.COUNT)[-1]
            scene.ends = {last: (500.0, "succeeded")}
            staying = asyncio.create_task(scene.wait(last))
            await asyncio.sleep(0)
            leaver = asyncio.create_task(scene.wait(*ids(self.COUNT)))
            await asyncio.sleep(0)
            leaver.cancel()
            assert (await staying).succeeded == 1
            await asyncio.sleep(LINGER + 1)
            assert scene.is_tidy()

        scene.play(act())

    def test_a_look_that_comes_back_while_its_waiter_leaves(self, scene: Scene) -> None:
        """Whoever left is told nothing any more, however long his jobs take to leave."""
        seen: list[Job] = []

        async def act() -> None:
            waiting = asyncio.create_task(scene.wait(*ids(self.COUNT), on_end=seen.append, once=True))
            await asyncio.sleep(10)
            assert seen
            scene.latency = 0.0
            waiting.cancel()
            await asyncio.sleep(0)
            before = len(seen)
            await asyncio.sleep(LINGER + 1)
            assert len(seen) == before

        scene.ends = dict.fromkeys(ids(self.COUNT), (0.0, "succeeded"))
        scene.latency = 5.0
        scene.play(act())

    def test_a_rejected_key_ends_the_joining(self, scene: Scene) -> None:
        """The rest is not brought in any more, and not looked at."""

        async def act() -> None:
            scene.latency = 0.0
            scene.instead = lambda job_id: httpx.Response(401)
            with pytest.raises(AccessDenied):
                await scene.wait(*ids(self.COUNT), look_now=True)
            await asyncio.sleep(LINGER + 1)
            assert scene.is_tidy()

        scene.play(act())
        assert len(scene.looks) <= SLICE


class TestCounts:
    """What a pool says of itself."""

    def test_looks_are_counted_once(self, clock: Clock, contract: Contract) -> None:
        """Since somebody asked last: all that were sent, and those that the service objected to."""
        scene = Scene(clock, contract, requests_per_second=10)

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(429) if len(scene.looks) <= 2 else None
            scene.ends = dict.fromkeys(ids(5), (0.0, "succeeded"))
            await scene.wait(*ids(5), look_now=True)
            assert scene.pool.take_looks() == Looks(sent=len(scene.looks), throttled=2)
            assert scene.pool.take_looks() == Looks()

        scene.play(act())


class TestPace:
    """How fast looks go out."""

    def test_connections_bound_what_is_under_way(self, clock: Clock, contract: Contract) -> None:
        """No more looks at once than the connection allows."""
        scene = Scene(clock, contract, max_connections=4)

        async def act() -> None:
            scene.latency = 3.0
            scene.ends = dict.fromkeys(ids(40), (0.0, "succeeded"))
            assert (await scene.wait(*ids(40), look_now=True)).succeeded == 40

        scene.play(act())
        assert scene.most_at_once == 4

    def test_the_rate_limit_is_kept(self, clock: Clock, contract: Contract) -> None:
        """Jobs believed to have ended are looked at at once, but no faster than the author allows."""
        scene = Scene(clock, contract, requests_per_second=5)

        async def act() -> None:
            scene.ends = dict.fromkeys(ids(50), (0.0, "succeeded"))
            await scene.wait(*ids(50), look_now=True)
            assert 9.5 < scene.now < 11

        scene.play(act())
        times = [at for at, _ in scene.looks]
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[5:], strict=False))

    def test_look_now(self, scene: Scene) -> None:
        """Jobs believed to have ended do not wait for their turn."""

        async def act() -> None:
            scene.ends = dict.fromkeys(ids(30), (0.0, "succeeded"))
            await scene.wait(*ids(30), look_now=True)
            assert scene.now < 1.0

        scene.play(act())

    def test_a_lone_job_is_looked_at_early(self, scene: Scene) -> None:
        """A short job need not wait for a whole interval."""

        async def act() -> None:
            scene.ends = {"a": (1.5, "succeeded")}
            await scene.wait("a", poke_interval=60.0)
            assert scene.now < 10.5

        scene.play(act())


class TestTrouble:
    """When looks fail."""

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_a_rejected_key_ends_everybody(self, scene: Scene, status: int) -> None:
        """The first such answer fails all waiters at once, and nothing more is sent."""

        async def act() -> None:
            asked = asyncio.gather(*(scene.wait(*ids(20)) for _ in range(3)), return_exceptions=True)
            await asyncio.sleep(200)
            scene.instead = lambda job_id: httpx.Response(status)
            before = len(scene.looks)
            for outcome in await asked:
                assert isinstance(outcome, AccessDenied)
                assert outcome.status == status
            assert scene.now < 240
            await asyncio.sleep(HOUR)
            assert len(scene.looks) - before <= 3
            assert scene.is_tidy()

        scene.play(act())

    @pytest.mark.parametrize("status", [402, 403])
    def test_one_job_of_another_account_ends_only_its_own_wait(self, scene: Scene, status: int) -> None:
        """Somebody waits for an id that the key may not see; the others' jobs are none of that."""

        async def act() -> None:
            scene.ends = {"a": (100.0, "succeeded")}
            denied = httpx.Response(status, json={"message": "not yours"})
            scene.instead = lambda job_id: denied if job_id == "b" else None
            good, bad = await asyncio.gather(scene.wait("a"), scene.wait("b"), return_exceptions=True)
            assert isinstance(good, Waited)
            assert isinstance(bad, AccessDenied)
            assert "job 'b'" in str(bad)
            await asyncio.sleep(HOUR)
            assert scene.is_tidy()

        scene.play(act())

    def test_a_firewalls_page_ends_no_wait(self, scene: Scene) -> None:
        """A robot check answers 403 with HTML for a while, whatever the key."""

        async def act() -> None:
            page = httpx.Response(403, html="<h1>Just a moment...</h1>")
            scene.ends = {"a": (0.0, "succeeded")}
            scene.instead = lambda job_id: page if scene.now < 300 else None
            assert (await scene.wait("a")).succeeded == 1

        scene.play(act())

    def test_whoever_is_finished_is_not_failed(self, scene: Scene) -> None:
        """A rejected key does not take back results that are there: both answers come in one instant."""

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(401) if job_id == "b" else None
            scene.ends = {"a": (0.0, "succeeded")}
            finished, failed = await asyncio.gather(
                scene.wait("a", look_now=True), scene.wait("b", look_now=True), return_exceptions=True
            )
            assert isinstance(finished, Waited)
            assert isinstance(failed, AccessDenied)

        scene.play(act())

    def test_whoever_comes_with_a_good_key_later_is_served(self, scene: Scene) -> None:
        """The pool lives on after a rejected key."""

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(401)
            with pytest.raises(AccessDenied):
                await scene.wait("a")
            scene.instead = lambda job_id: None
            scene.ends = {"a": (0.0, "succeeded")}
            assert (await scene.wait("a")).succeeded == 1

        scene.play(act())

    @pytest.mark.parametrize("status", [429, 503])
    def test_throttling_slows_and_fails_nothing(self, clock: Clock, contract: Contract, status: int) -> None:
        """Everybody slows down while the service objects, is told so, and gets his result afterwards."""
        scene = Scene(clock, contract, requests_per_second=10)
        heard = Heard()
        busy = httpx.Response(status, headers={"Retry-After": "20"})

        async def act() -> None:
            scene.instead = lambda job_id: busy if scene.now < 300 else None
            scene.ends = dict.fromkeys(ids(200), (100.0, "succeeded"))
            waited = await scene.wait(*ids(200), logger=heard.logger)
            assert waited.succeeded == 200

        scene.play(act())
        refused = [at for at, _ in scene.looks if at < 300]
        assert len(refused) < 60
        assert 2 <= len(heard.warnings) <= len(refused)
        assert all("slows down; nothing is lost" in line for line in heard.warnings)

    def test_one_burst_of_429_is_told_once(self, scene: Scene) -> None:
        """What is refused together is one line, not one for each look."""
        heard = Heard()

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(429) if scene.now < 0.9 else None
            scene.ends = dict.fromkeys(ids(20), (0.0, "succeeded"))
            await scene.wait(*ids(20), look_now=True, logger=heard.logger)

        scene.play(act())
        assert len([at for at, _ in scene.looks if at < 0.9]) == 20
        assert len(heard.warnings) == 1

    def test_ten_minutes_of_outage(self, scene: Scene) -> None:
        """One look at a time, ever more slowly; told at rising failures; afterwards all goes on."""
        first, second = Heard(), Heard()
        jobs = ids(50)

        async def act() -> None:
            scene.instead = lambda job_id: httpx.ConnectError("x") if 100 <= scene.now < 700 else None
            scene.ends = dict.fromkeys(jobs, (300.0, "succeeded"))
            outcomes = await asyncio.gather(
                scene.wait(*jobs[:25], logger=first.logger), scene.wait(*jobs[25:], logger=second.logger)
            )
            assert [waited.succeeded for waited in outcomes] == [25, 25]
            assert scene.now < 800

        scene.play(act())
        during = [at for at, _ in scene.looks if 110 <= at < 700]
        assert len(during) < 60
        assert min(later - earlier for earlier, later in itertools.pairwise(during)) > 1
        told = [[line for line in heard.warnings if "at job" not in line] for heard in (first, second)]
        assert told[0] == told[1]
        *trouble, end = told[0]
        assert 3 <= len(trouble) <= 6
        assert all("did not answer: ConnectError. The job goes on" in line for line in trouble)
        assert "answers again, after" in end
        assert len(first.warnings + second.warnings) - 2 * len(told[0]) <= 4

    @pytest.mark.parametrize("poke_interval", [30.0, 600.0])
    def test_one_jobs_trouble_harms_nobody(self, scene: Scene, poke_interval: float) -> None:
        """A job whose answer can never be read is asked with backoff; the others are as quick as ever."""
        heard, others = Heard(), Heard()

        async def act() -> None:
            scene.instead = lambda job_id: httpx.Response(200, text="<html>") if job_id == "a" else None
            scene.ends = dict.fromkeys(("b", "c", "d"), (1000.0, "succeeded"))
            poisoned = asyncio.create_task(
                scene.wait("a", hours=10, poke_interval=poke_interval, logger=heard.logger)
            )
            waited = await scene.wait("b", "c", "d", poke_interval=poke_interval, logger=others.logger)
            assert waited.succeeded == 3
            assert scene.now < 1000 + 1.5 * poke_interval
            assert (await poisoned).pending == {"a": NOT_SEEN}

        scene.play(act())
        assert len(scene.looks_at("a")) < 1.2 * 10 * HOUR / 15
        assert others.warnings == []
        assert 8 <= len(heard.warnings) <= 12
        assert "(8 looks in a row at job 'a' without an answer)" in heard.warnings[3]

    def test_progress_is_told_now_and_then(self, scene: Scene) -> None:
        """Every ten minutes, not at every look."""
        heard = Heard()

        async def act() -> None:
            scene.ends = {"a": (HOUR, "succeeded"), "b": (2 * HOUR - 300, "succeeded")}
            await scene.wait("a", "b", poke_interval=60.0, logger=heard.logger)

        scene.play(act())
        assert len(heard.infos) == 11
        assert heard.infos[0] == "0 of 2 jobs have ended."
        assert heard.infos[-1] == "1 of 2 jobs have ended."
        assert heard.warnings == []

    def test_progress_may_be_somebody_elses_business(self, scene: Scene) -> None:
        """Whoever tells it himself is told about trouble only."""
        heard = Heard()

        async def act() -> None:
            await scene.wait("a", hours=PROGRESS_EVERY / 300, progress_every=math.inf, logger=heard.logger)

        scene.play(act())
        assert heard.infos == heard.warnings == []

    def test_a_limit_that_is_met_all_day_is_told_ever_more_rarely(self, scene: Scene) -> None:
        """A line at each storm of refusals would be one a minute."""
        heard = Heard()
        busy = httpx.Response(429, headers={"Retry-After": "60"})

        async def act() -> None:
            scene.instead = lambda job_id: busy if len(scene.looks) % 2 else None
            await scene.wait(*ids(50), hours=24, logger=heard.logger)

        scene.play(act())
        assert len([at for at, _ in scene.looks]) > 2000
        assert 8 <= len(heard.warnings) <= 12
        assert "(4 times so far)" in heard.warnings[2]

    def test_a_callback_that_breaks_fails_its_own_waiter(self, scene: Scene) -> None:
        """One waiter's full disk is not another's failure, not even of the same job."""

        def full(job: Job) -> None:
            raise OSError("disk full")

        async def act() -> None:
            scene.ends = {"a": (50.0, "succeeded"), "b": (100.0, "succeeded")}
            broken, whole = await asyncio.gather(
                scene.wait("a", "b", on_end=full), scene.wait("a", "b"), return_exceptions=True
            )
            assert isinstance(broken, OSError)
            assert whole == Waited(2, (), (), {})

        scene.play(act())

    def test_a_broken_look_is_one_without_an_answer(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A mistake of ours, or an answer nobody thought of, costs a look and no job; its trace is logged."""

        async def act() -> None:
            scene.ends = {"a": (0.0, "succeeded"), "b": (0.0, "succeeded")}
            scene.instead = lambda job_id: RuntimeError("a mistake") if scene.now < 60 else None
            assert (await scene.wait("a", "b")).succeeded == 2
            await asyncio.sleep(HOUR)
            assert scene.is_tidy()

        scene.play(act())
        assert "answered something unforeseen (RuntimeError)" in caplog.text
        assert "RuntimeError: a mistake" in caplog.text
        assert "(4 times so far)" in caplog.text
        assert "(3 times so far)" not in caplog.text

    def test_a_look_that_never_comes_back(self, scene: Scene) -> None:
        """A server that sends a header now and then keeps nobody beyond the connection's timeouts."""

        async def act() -> None:
            scene.ends = {"a": (0.0, "succeeded")}
            scene.latency = HOUR
            heard = Heard()
            waiting = asyncio.create_task(scene.wait("a", logger=heard.logger))
            await asyncio.sleep(100)
            scene.latency = 0.05
            assert (await waiting).succeeded == 1
            assert scene.now < 200
            assert "did not answer within 70 s" in heard.warnings[0]

        scene.play(act())

    def test_a_client_that_cannot_be_made_fails_everybody(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The same for the pool itself; whoever comes later finds it working."""

        def broken(settings: Settings) -> contextlib.AbstractAsyncContextManager[AsyncClient]:
            raise ValueError("no certificates")

        async def act() -> None:
            scene.pool._open_client = broken
            outcomes = await asyncio.gather(scene.wait("a"), scene.wait("b"), return_exceptions=True)
            assert [str(outcome) for outcome in outcomes] == ["no certificates"] * 2
            scene.pool._open_client = scene.open_client
            scene.ends = {"a": (0.0, "succeeded")}
            assert (await scene.wait("a")).succeeded == 1

        scene.play(act())
        assert f"The pool of connection '{scene.settings.conn_id}' broke" in caplog.text


class TestLife:
    """Clients and memory over time."""

    def test_the_client_outlives_its_waiters_for_a_while(self, scene: Scene) -> None:
        """The next waiter finds the connections open; when nobody comes they are closed."""

        async def act() -> None:
            scene.ends = dict.fromkeys(ids(3), (0.0, "succeeded"))
            await scene.wait("job-0")
            await asyncio.sleep(LINGER - 1)
            await scene.wait("job-1")
            assert (scene.opened, scene.closed) == (1, 0)
            await asyncio.sleep(LINGER + 1)
            assert (scene.opened, scene.closed) == (1, 1)
            await scene.wait("job-2")
            assert scene.opened == 2

        scene.play(act())

    def test_whoever_comes_while_it_closes_is_served(self, scene: Scene) -> None:
        """Closing takes a moment; a waiter that joins in it gets a new client."""

        async def act() -> None:
            scene.closing_takes = 10.0
            scene.ends = {"a": (0.0, "succeeded"), "b": (0.0, "succeeded")}
            await scene.wait("a")
            await asyncio.sleep(LINGER + 1)
            assert (await scene.wait("b")).succeeded == 1
            assert (scene.opened, scene.closed) == (2, 1)

        scene.play(act())

    def test_looks_end_with_their_client(self, scene: Scene) -> None:
        """A look that hangs while the pool closes is given up, and harms nobody who comes then."""

        async def act() -> None:
            scene.latency = 10 * LINGER
            leaver = asyncio.create_task(scene.wait("a", look_now=True))
            await asyncio.sleep(1)
            leaver.cancel()
            await asyncio.sleep(LINGER + 1)
            assert scene.closed == 1
            assert scene.is_tidy()
            scene.latency = 0.05
            scene.ends = {"b": (0.0, "succeeded")}
            assert (await scene.wait("b")).succeeded == 1

        scene.play(act())

    def test_memory_is_given_back(self, scene: Scene) -> None:
        """After trouble of every kind nothing is remembered of jobs that ended."""

        async def act() -> None:
            kinds = [
                None,
                httpx.ReadTimeout("x"),
                httpx.Response(404),
                httpx.Response(429),
                httpx.Response(500),
            ]
            scene.instead = lambda job_id: kinds[int(scene.now * 7) % 5] if scene.now < 25 else None
            scene.ends = {
                job_id: (200.0, "succeeded" if n % 2 else "failed") for n, job_id in enumerate(ids(60))
            }
            waited = await scene.wait(*ids(60))
            assert (waited.succeeded, len(waited.failed)) == (30, 30)
            await asyncio.sleep(LINGER + 5)
            assert scene.is_tidy()

        scene.play(act())


class TestSharedPool:
    """Finding the pool of a connection."""

    def test_one_per_connection_and_loop(self, clock: Clock, contract: Contract) -> None:
        """Equal settings share a pool; another key, or another event loop, has its own."""

        async def pools() -> tuple[Pool, Pool, Pool]:
            return (
                shared_pool(contract.settings()),
                shared_pool(contract.settings()),
                shared_pool(contract.settings(api_key="new-key")),
            )

        one, same, other = clock.run(pools())
        assert one is same
        assert one is not other
        assert clock.run(pools())[0] is not one

    def test_a_pool_without_work_is_forgotten(self, scene: Scene) -> None:
        """A connection that is not used any more leaves nothing behind."""

        async def act() -> None:
            pool = shared_pool(scene.settings)
            pool._open_client = scene.open_client
            scene.ends = {"a": (0.0, "succeeded")}
            await pool.wait(["a"], deadline=scene.clock.time() + HOUR, poke_interval=30.0)
            assert shared_pool(scene.settings) is pool
            await asyncio.sleep(LINGER + 1)
            assert shared_pool(scene.settings) is not pool

        scene.play(act())

    def test_over_a_real_connection(self, contract: Contract) -> None:
        """With the client it makes by itself, against a server on the loopback interface."""

        async def act(url: str) -> Waited:
            pool = shared_pool(contract.settings(base_url=url))
            loop = asyncio.get_running_loop()
            return await pool.wait(["a", "b"], deadline=2e9 + loop.time(), poke_interval=1.0, look_now=True)

        with Server(answers(contract.look("succeeded").content)) as server:
            assert asyncio.run(act(server.url)) == Waited(2, (), (), {})
            assert {seen.headers["authorization"] for seen in server.seen} == {contract.authorization}
