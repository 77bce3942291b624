# SPDX-License-Identifier: Apache-2.0

"""
One pool per event loop and connection: everybody in the process who waits on a connection waits here.

A pool has one client, one rate limit and one schedule, and one task that sends the looks. The decisions are
elsewhere and pure: which job is due (:mod:`~airflow_provider_distribute.waiting.schedule`), whether a request
may go now (:mod:`~airflow_provider_distribute.pacing`), whether the service is down
(:mod:`~airflow_provider_distribute.waiting.outage`), what an answer means
(:mod:`~airflow_provider_distribute.services`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import sys
import time
import weakref
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.exceptions import (
    AccessDenied,
    JobNotFound,
    RequestRefused,
    ServiceError,
)
from airflow_provider_distribute.pacing import Backoff, rising
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.waiting.outage import Outage, Storms
from airflow_provider_distribute.waiting.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from airflow_provider_distribute.models import Job, Settings

    class Logger(Protocol):
        """The part of a logger that is used here; Airflow's own is not a ``logging.Logger``."""

        def info(self, msg: str, /, *args: object) -> None: ...

        def warning(self, msg: str, /, *args: object) -> None: ...


__all__ = ["Looks", "Pool", "Waited", "shared_pool"]

log = logging.getLogger(__name__)

#: Waits between looks at a job, or at a service, that does not answer.
BACKOFF = Backoff(base=1.0, cap=30.0)
#: Seconds a pool without work keeps its connections, so that the next waiter finds them.
LINGER = 30.0
#: A waiter says how far it is at most this often, in seconds.
PROGRESS_EVERY = 600.0
#: Looks started before others on the event loop have their turn: each takes it for about half a millisecond.
AT_ONCE = 8
#: Jobs that join or leave before others have theirs; each of a large pool's takes some 40 microseconds.
SLICE = 50
#: Jobs of one waiter that are watched at once, oldest first; each takes half a KiB of memory.
MOST_WATCHED = 40_000


class Unanswered(StrEnum):
    """The word for a job without a status. Ask by identity: a service may have the same words."""

    NOT_SEEN = "not seen yet"
    NOT_FOUND = "not found"


#: No look was answered. The service does not know the job, or not yet.
NOT_SEEN, NOT_FOUND = Unanswered


@dataclass(frozen=True, slots=True)
class Waited:
    """
    How a wait ended.

    :param succeeded: How many jobs ended well.
    :param failed: Ids of the jobs that ended badly.
    :param lost: Those among the failed that the service does not know any more.
    :param pending: The last status word of the jobs still pending at the deadline, by id.
    """

    succeeded: int
    failed: tuple[str, ...]
    lost: tuple[str, ...]
    pending: Mapping[str, str]


@dataclass(slots=True)
class Looks:
    """
    What a pool has sent.

    :param sent: Looks.
    :param throttled: How many of them the service answered by asking for fewer.
    """

    sent: int = 0
    throttled: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    """
    ``pending`` holds the last status word of each job, ``unseen`` counts those without one, ``watched`` those
    that have joined and are looked at.
    """

    pending: dict[str, str]
    on_end: Callable[[Job], bool | None] | None
    once: bool
    unseen: int
    watched: int = 0
    stirred: bool = False
    resting: asyncio.Future[None] | None = None
    succeeded: int = 0
    failed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def satisfied(self) -> bool:
        return not (self.unseen if self.once else self.pending)

    def saw(self, job_id: str, word: str, job: Job | None) -> bool:
        """Hear of a look; return whether the job need not be looked at again."""
        unseen = self.pending[job_id] is NOT_SEEN
        enough = job is not None and job.done and self._took(job)
        if not enough:
            if self.once and job is not None and job.done:
                return False  # There was no room for it: as if it had not been seen.
            self.pending[job_id] = word
            enough = self.once
        self.unseen -= unseen
        if enough:
            self.watched -= 1
            if self.watched == MOST_WATCHED - SLICE:
                self.stir()
        if self.satisfied:
            self.stir()
        return enough

    def _took(self, job: Job) -> bool:
        try:
            if self.on_end and self.on_end(job) is False:
                return False
        except Exception as error:
            self.broken(error)
        del self.pending[job.job_id]
        if job.succeeded:
            self.succeeded += 1
        else:
            self.failed.append(job.job_id)
            if job.lost:
                self.lost.append(job.job_id)
        return True

    def tell(self, line: str) -> None:
        self.news.append(line)
        self.stir()

    def broken(self, error: BaseException) -> None:
        self.error = error
        self.stir()

    def stir(self) -> None:
        """Say that something has happened."""
        self.stirred = True
        self.wake()

    def wake(self) -> None:
        if self.resting is not None and not self.resting.done():
            self.resting.set_result(None)


class Pool:
    """
    Waits for jobs of one connection on behalf of everybody on one event loop.

    Use :func:`shared_pool` to get one.

    :param settings: The connection.
    :param open_client: Makes the client; the pool closes it.
    """

    def __init__(
        self,
        settings: Settings,
        open_client: Callable[[Settings], contextlib.AbstractAsyncContextManager[AsyncClient]] | None = None,
    ) -> None:
        self.settings = settings
        self._open_client = open_client or _opened
        self._service = SERVICES[settings.service]
        self._grace = self._service.not_found_grace(settings)
        self._patience = settings.connect_timeout + settings.timeout
        self._rng = random.Random()  # noqa: S311  jitter needs no secrecy
        self._schedule = Schedule(rng=self._rng)
        self._backoff = BACKOFF
        self._outage = Outage(self._backoff, self._rng)
        self._storms = Storms()
        self._unforeseen = 0
        self._looks = Looks()
        self._everybody: set[_Waiter] = set()
        self._waiters: dict[str, tuple[_Waiter, ...]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._unfound_since: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._looking: set[asyncio.Task[None]] = set()
        self._stirred = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def wait(
        self,
        job_ids: Iterable[str],
        *,
        deadline: float,
        poke_interval: float,
        look_now: bool = False,
        once: bool = False,
        on_end: Callable[[Job], bool | None] | None = None,
        logger: Logger = log,
        progress_every: float = PROGRESS_EVERY,
    ) -> Waited:
        """
        Wait until every job has ended, or until the deadline.

        They may be very many: they join a slice at a time, those beyond :data:`MOST_WATCHED` as others end.

        :param job_ids: The jobs, oldest first as far as known. The same job may be waited for by several.
        :param deadline: Epoch seconds.
        :param poke_interval: Seconds between looks of a fixed schedule; jobs are found as soon on average.
        :param look_now: Look at every job at once: they are believed to have ended.
        :param once: Look at every job at once, and return when each look was answered, whatever it said.
        :param on_end: Called on the event loop with every job as it is seen ended. It must not block. When it
            returns ``False``, for want of room, the job stays pending and is looked at again.
        :param logger: Told about trouble with the service and about progress.
        :param progress_every: Seconds between two lines about progress; infinite: none.
        :returns: How it ended. Jobs pending at the deadline are no error here.
        :raises AccessDenied: the service rejects the connection's key.
        """
        pending: dict[str, str] = dict.fromkeys(job_ids, NOT_SEEN)
        waiter = _Waiter(pending, on_end, once, unseen=len(pending))
        coming, total, loop = iter(tuple(pending)), len(pending), asyncio.get_running_loop()
        self._everybody.add(waiter)
        try:
            while not waiter.satisfied and waiter.error is None and (left := deadline - time.time()) > 0:
                if waiter.watched <= MOST_WATCHED - SLICE and (slice_ := tuple(islice(coming, SLICE))):
                    self._join(waiter, slice_, poke_interval, look_now=look_now or once)
                    await asyncio.sleep(0)
                    continue
                # Not an Event and a timeout: for each of thousands of waiters they take a KiB more.
                waiter.resting = loop.create_future()
                rest = 0.0 if waiter.stirred else min(left, progress_every)
                timer = loop.call_later(rest, waiter.wake)
                try:
                    await waiter.resting
                finally:
                    timer.cancel()
                if not waiter.stirred and left > progress_every:
                    logger.info("%d of %d jobs have ended.", total - len(pending), total)
                waiter.stirred = False
                for line in waiter.news:
                    logger.warning("%s", line)
                waiter.news.clear()
        finally:
            self._leave(waiter)
        if waiter.error is not None:
            raise waiter.error
        return Waited(waiter.succeeded, tuple(waiter.failed), tuple(waiter.lost), pending)

    def take_looks(self) -> Looks:
        """Return what was sent since this was asked last."""
        looks, self._looks = self._looks, Looks()
        return looks

    def _join(
        self, waiter: _Waiter, job_ids: tuple[str, ...], poke_interval: float, *, look_now: bool
    ) -> None:
        now, alone = time.monotonic(), (waiter,)
        for job_id in job_ids:
            others = self._waiters.get(job_id)
            self._waiters[job_id] = (*others, waiter) if others else alone
            self._schedule.add(job_id, now=now, poke_interval=poke_interval)
            if look_now:
                self._schedule.hint(job_id, now=now)
        waiter.watched += len(job_ids)
        self._stirred.set()
        if self._runner is None or self._runner.done():
            # An empty context: what the pool logs is not the first waiter's business alone.
            self._runner = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    def _leave(self, waiter: _Waiter) -> None:
        self._everybody.discard(waiter)
        self._stirred.set()
        if waiter.pending:
            # Not awaited: whoever leaves because he was cancelled has no time.
            leaving = asyncio.get_running_loop().create_task(self._let_go(waiter))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _let_go(self, waiter: _Waiter) -> None:
        # The newest first: they are at the end of the schedule's line, which is the quick end.
        for number, job_id in enumerate(reversed(waiter.pending), 1):
            others = tuple(other for other in self._waiters.get(job_id, ()) if other is not waiter)
            if others:
                self._waiters[job_id] = others
            else:
                self._forget(job_id)
            if number % SLICE == 0:
                await asyncio.sleep(0)

    def _forget(self, job_id: str) -> None:
        self._schedule.discard(job_id, now=time.monotonic())
        self._waiters.pop(job_id, None)
        self._unfound_since.pop(job_id, None)
        self._failures.pop(job_id, None)

    async def _run(self) -> None:
        try:
            while self._everybody:
                async with self._open_client(self.settings) as client:
                    await self._serve(client)
        except Exception as error:
            log.exception("The pool of connection %r broke; its waiters fail.", self.settings.conn_id)
            self._break(error)
        finally:
            _retire(self)

    async def _serve(self, client: AsyncClient) -> None:
        idle = False
        try:
            while self._everybody or not idle:
                pause = self._send_looks(client)
                if pause == 0:
                    await asyncio.sleep(0)
                    continue
                try:
                    async with asyncio.timeout(LINGER if pause is None else pause):
                        await self._stirred.wait()
                except TimeoutError:
                    idle = True
                else:
                    idle = False
                self._stirred.clear()
        finally:
            for look in self._looking:
                look.cancel()

    def _send_looks(self, client: AsyncClient) -> float | None:
        """
        Send the looks that are due and may go.

        :returns: Seconds until the next may go, 0 when others on the loop shall have their turn first;
            ``None``: nothing is due before something happens.
        """
        now = time.monotonic()
        started = 0
        while (at := self._schedule.next_at(now)) is not None:
            if len(self._looking) >= self._outage.width(self.settings.max_connections):
                return None
            wait = max(at, self._outage.quiet_until) - now
            if wait <= 0 and started == AT_ONCE:
                return 0.0
            if wait <= 0:
                wait = client.limit.take(now)
            if wait > 0:
                return wait
            started += 1
            for job_id in self._schedule.due(now, 1):
                self._looks.sent += 1
                look = asyncio.get_running_loop().create_task(self._look(client, job_id))
                self._looking.add(look)
                look.add_done_callback(self._looked)
        return None

    def _looked(self, look: asyncio.Task[None]) -> None:
        self._looking.discard(look)
        self._stirred.set()
        if not look.cancelled() and (error := look.exception()) is not None:
            log.error("A look broke; the pool's waiters fail.", exc_info=error)
            self._break(error)

    async def _look(self, client: AsyncClient, job_id: str) -> None:
        job: Job | None
        try:
            async with asyncio.timeout(self._patience):
                job = await client.look(job_id)
        except JobNotFound:
            job = self._not_found(job_id)
        except RequestRefused as error:
            job = self._service.withheld(job_id, error)
        except AccessDenied as error:
            self._denied(job_id, error)
            return
        except ServiceError as error:
            self._unanswered(client, job_id, error)
            return
        except TimeoutError:
            late = self._service.unavailable(f"did not answer within {self._patience:.0f} s")
            self._unanswered(client, job_id, late)
            return
        except Exception as error:
            self._unforeseen += 1
            if rising(self._unforeseen):
                log.exception("A look broke on something unforeseen (%d times so far).", self._unforeseen)
            odd = self._service.unavailable(f"answered something unforeseen ({type(error).__name__})")
            self._unanswered(client, job_id, odd)
            return
        else:
            self._unfound_since.pop(job_id, None)
        self._answered(client, job_id)
        word = NOT_FOUND if job is None else sys.intern(job.status)
        waiters = self._waiters.get(job_id, ())
        present = [waiter for waiter in waiters if waiter in self._everybody]
        staying = tuple(waiter for waiter in present if not waiter.saw(job_id, word, job))
        ended = job is not None and job.done and not staying
        self._schedule.saw(job_id, done=ended, now=time.monotonic())
        if not staying:
            self._forget(job_id)
        elif len(staying) < len(waiters):
            self._waiters[job_id] = staying

    def _not_found(self, job_id: str) -> Job | None:
        if job_id not in self._waiters:
            return None
        now = time.monotonic()
        since = self._unfound_since.setdefault(job_id, now)
        return self._service.lost(job_id) if now - since >= self._grace else None

    def _answered(self, client: AsyncClient, job_id: str) -> None:
        client.limit.succeeded()
        self._failures.pop(job_id, None)
        if ended := self._outage.answered():
            self._tell(
                f"{self._service.title} answers again, after {ended} looks in a row without an answer.",
                self._everybody,
            )

    def _unanswered(self, client: AsyncClient, job_id: str, error: ServiceError) -> None:
        now = time.monotonic()
        if error.throttled:
            self._looks.throttled += 1
            if client.limit.throttled(now, error.retry_after) and self._storms.began(now):
                self._tell(
                    f"{error}. Everybody who waits on this connection slows down; nothing is lost "
                    f"({self._storms.count} times so far).",
                    self._everybody,
                )
            self._schedule.failed(job_id, now=now, retry_in=0.0)
            return
        if job_id not in self._waiters:
            return
        self._unfound_since.pop(job_id, None)
        failures = self._failures[job_id] = self._failures.get(job_id, 0) + 1
        self._schedule.failed(job_id, now=now, retry_in=self._backoff.delay(failures, self._rng))
        follows = "The job goes on; it is looked at again until the deadline"
        if self._outage.failed(now, job_id) and self._outage.down:
            line = f"{error}. {follows} ({self._outage.failures} looks in a row without an answer)."
            self._tell(line, self._everybody)
        elif not self._outage.down and rising(failures):
            line = f"{error}. {follows} ({failures} looks in a row at job {job_id!r} without an answer)."
            self._tell(line, self._waiters[job_id])

    def _tell(self, line: str, waiters: Iterable[_Waiter]) -> None:
        for waiter in waiters:
            waiter.tell(line)

    def _denied(self, job_id: str, error: AccessDenied) -> None:
        """End all waits on a key that is wrong; 402 and 403 may be about one job, of another account."""
        if error.key_rejected:
            self._break(error)
            return
        self._schedule.discard(job_id, now=time.monotonic())
        for waiter in self._waiters.get(job_id, ()):
            waiter.broken(error)

    def _break(self, error: BaseException) -> None:
        self._schedule = Schedule(rng=self._rng)
        for waiter in self._everybody:
            if waiter.pending:
                waiter.broken(error)


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[AsyncClient]:
    async with await AsyncClient.open(settings) as client:
        yield client


_Pools = dict["Settings", Pool]
_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools] = weakref.WeakKeyDictionary()


def shared_pool(settings: Settings) -> Pool:
    """
    Return the running event loop's pool for a connection.

    A connection that was changed, a new key for instance, is another pool: those who wait on the old one end
    as they would have, and whoever comes now gets the new key.
    """
    pools = _pools.setdefault(asyncio.get_running_loop(), {})
    if settings not in pools:
        pools[settings] = Pool(settings)
    return pools[settings]


def _retire(pool: Pool) -> None:
    pools = _pools.get(asyncio.get_running_loop(), {})
    if pools.get(pool.settings) is pool:
        del pools[pool.settings]
