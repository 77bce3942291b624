# SPDX-License-Identifier: Apache-2.0

"""
Sending a run's requests, as fast as is allowed, each one recorded as intended before and as taken after.

One coroutine writes the journal, as many as there are connections send. What becomes known while an object is
being written goes into the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_distribute.bulk.patience import insist
from airflow_provider_distribute.exceptions import (
    AccessDenied,
    InvalidRequest,
    LedgerError,
    NotAccepted,
    OutcomeUnknown,
    RequestRefused,
)
from airflow_provider_distribute.ledger.records import Refusal, Ticket
from airflow_provider_distribute.ledger.window import Window
from airflow_provider_distribute.pacing import Backoff, rising
from airflow_provider_distribute.waiting.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_distribute.bulk.costs import Budget
    from airflow_provider_distribute.bulk.inputs import Shard
    from airflow_provider_distribute.bulk.kept import Asked
    from airflow_provider_distribute.bulk.run import Run
    from airflow_provider_distribute.client import AsyncClient
    from airflow_provider_distribute.models import ChatRequest
    from airflow_provider_distribute.waiting.pool import Logger

__all__ = ["Submission", "Submitted"]

log = logging.getLogger(__name__)

#: Waits between requests to a service that does not answer.
BACKOFF = Backoff(base=1.0, cap=60.0)
#: An outcome waits at most this many seconds for others to be recorded with it.
_PATIENCE = 2.0
#: How often a request whose outcome is unknown is sent again within one attempt.
_RESENDS = 3
#: Seconds between two lines of progress.
_PROGRESS_EVERY = 60.0
#: Seconds for which a storage that does not answer is tried again, before the submission gives up.
_STORAGE_PATIENCE = 300.0


@dataclass(slots=True)
class Submitted:
    """
    How a submission went.

    :ivar accepted: Requests the service took.
    :ivar refused: Requests the service will not have.
    :ivar unknown: Times a request was sent and not answered.
    :ivar throttled: Times the service asked for fewer requests.
    :ivar stopped: Why it ended before the last row; ``None``: it did not.
    """

    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    throttled: int = 0
    stopped: Exception | None = None


@dataclass(slots=True)
class _Asked:
    row: int
    custom_id: str
    request: ChatRequest
    resends: int = 0


class Submission:
    """
    Sends everything that a run has still to ask.

    :param run: The run, taken up.
    :param client: The service's client. It is not closed.
    :param budget: Whether the next row may still be sent.
    :param deadline: Epoch seconds after which nothing is sent any more.
    :param labels: Metadata for each request, beside its place in the input.
    :param folder: Where the requests are, unless they are the run's own.
    :param logger: Told about trouble and progress.
    """

    def __init__(
        self,
        run: Run,
        client: AsyncClient,
        budget: Budget,
        *,
        deadline: float,
        labels: Mapping[str, object] | None = None,
        folder: str | None = None,
        logger: Logger = log,
    ) -> None:
        requests, window = run.requests(folder), run.plan.policy.window
        if labels is not None:
            requests = map(partial(_labelled, labels, run.plan.shard), requests)
        self._client = client
        self._journal = run.journal
        self._total = len(run.state.open)
        self._budget = budget
        self._resends = _RESENDS if run.plan.policy.on_unknown == "resubmit" else 0
        self._deadline = deadline
        self._logger = logger
        self._submitted = Submitted()
        self._rng = random.Random()  # noqa: S311  jitter needs no secrecy
        self._outage = Outage(BACKOFF, self._rng)
        self._width = max(1, min(window, client.settings.max_connections))
        self._places = Window(window)
        self._unread = requests
        self._exhausted = False
        self._next: deque[_Asked] = deque()
        self._again: deque[_Asked] = deque()
        self._unrecorded: list[_Asked] = []
        self._ready: asyncio.Queue[_Asked | None] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._flying = 0
        self._landed = asyncio.Event()
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> Submitted:
        """
        Send everything, or stop where going on is impossible or forbidden.

        What was accepted by then goes on and is billed; ``stopped`` says why it ended.

        :raises LedgerError: the journal cannot be written, or the requests cannot be read; nothing was sent
            any more once that was noticed.
        """
        recorder = asyncio.create_task(self._record())
        tasks = [recorder, *(asyncio.create_task(self._send()) for _ in range(self._width))]
        progress = asyncio.create_task(self._tell_progress())
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (progress, *tasks):
                task.cancel()
        for task in ended:
            task.result()
        if isinstance(self._submitted.stopped, LedgerError):
            raise self._submitted.stopped
        return self._submitted

    @property
    def so_far(self) -> Submitted:
        """How it goes."""
        return self._submitted

    def stop(self, reason: Exception) -> None:
        """Send nothing more; what is under way is waited for and recorded."""
        if self._submitted.stopped is None:
            self._submitted.stopped = reason
        for event in (self._stopping, self._news, self._landed):
            event.set()

    # Recording ------------------------------------------------------------------------------------

    async def _record(self) -> None:
        """Write objects until nothing is left to intend and everything intended is recorded."""
        await self._read_on()
        while True:
            intended = self._take()
            if intended or self._places.known:
                await self._gather(len(intended))
                # What was not answered is intended again only by a later object than the one that says so.
                again, self._unrecorded = self._unrecorded, []
                records = self._places.entry([asked.row for asked in intended])
                await self._insist(partial(self._journal.append, records))
                self._places.written()
                self._again.extend(again)
                for asked in intended:
                    self._ready.put_nowait(asked)
                await self._read_on()
            elif self._places.settled:
                break
            else:
                await self._hear()
        for _ in range(self._width):
            self._ready.put_nowait(None)

    def _take(self) -> list[_Asked]:
        """Take the rows that the next object intends: those not asked yet first, in order."""
        taken: list[_Asked] = []
        while len(taken) < self._places.free and (self._next or self._again):
            if time.time() >= self._deadline:
                self.stop(_too_late())
            waiting = self._next or self._again
            if self._submitted.stopped is None and not self._budget.allows(waiting[0].row):
                # What is paid for within the budget is still sent.
                self._submitted.stopped = self._budget.spent()
            if self._submitted.stopped is not None:
                break
            taken.append(waiting.popleft())
        return taken

    async def _gather(self, intended: int) -> None:
        """Let outcomes join an object that would say little, unless somebody waits for what it intends."""
        idle_below = self._width if intended else 1
        try:
            async with asyncio.timeout(_PATIENCE):
                while (
                    self._places.known + intended < self._places.size // 2
                    and self._places.under_way >= idle_below
                ):
                    await self._hear()
        except TimeoutError:
            pass

    async def _hear(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def _read_on(self) -> None:
        """Read the requests that come next; what cannot be read cannot be sent."""
        try:
            await self._insist(self._read_ahead)
        except LedgerError as error:
            self.stop(error)

    def _read_ahead(self) -> None:
        while not self._exhausted and len(self._next) < 2 * self._places.size:
            read = next(self._unread, None)
            if read is None:
                self._exhausted = True
            else:
                self._next.append(_Asked(*read))

    async def _insist(self, step: Callable[[], None]) -> None:
        await insist(
            partial(asyncio.to_thread, step),
            patience=_STORAGE_PATIENCE,
            follows="nothing new is sent meanwhile",
            logger=self._logger,
        )

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_EVERY)
            self._logger.info(
                "%d of %d requests accepted, %d refused, %d times no answer.",
                self._submitted.accepted,
                self._total,
                self._submitted.refused,
                self._submitted.unknown,
            )

    # Sending --------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while (asked := await self._ready.get()) is not None:
            await self._ask(asked)
            self._news.set()

    async def _ask(self, asked: _Asked) -> None:
        try:
            call = self._client.service.describe_submit(asked.request, self._client.settings)
        except InvalidRequest as error:
            # A repair says more than its row, and labels add to it.
            self._refused(asked, error)
            return
        while await self._may_go():
            try:
                job_id = await self._client.submit_once(call)
            except NotAccepted as error:
                self._not_accepted(error)
                continue
            except RequestRefused as error:
                self._answered()
                self._refused(asked, error)
            except OutcomeUnknown as error:
                self._unanswered(asked, error)
            except AccessDenied as error:
                self._places.unsent(asked.row)
                self.stop(error)
            else:
                self._answered()
                self._places.accepted(Ticket(job_id, str(asked.row), time.time()))
                self._submitted.accepted += 1
            finally:
                self._flying -= 1
                self._landed.set()
            return
        self._places.unsent(asked.row)

    async def _may_go(self) -> bool:
        """Wait for a turn; ``False``: nothing is sent any more."""
        async with self._turn:
            while not self._stopping.is_set():
                now = time.monotonic()
                wait = self._outage.quiet_until - now
                if self._flying >= self._outage.width(self._width):
                    self._landed.clear()
                    await self._landed.wait()
                elif wait <= 0 and (wait := self._client.limit.take(now)) <= 0:
                    self._flying += 1
                    return True
                elif time.time() + wait > self._deadline:
                    self.stop(_too_late())
                else:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), wait)
        return False

    def _answered(self) -> None:
        if ended := self._outage.answered():
            title = self._client.service.title
            self._logger.info("%s answers again, after %d requests in a row without.", title, ended)

    def _not_accepted(self, error: NotAccepted) -> None:
        if error.throttled:
            self._answered()
            self._submitted.throttled += 1
            if rising(self._submitted.throttled):
                self._logger.warning("%s. Everything slows down; nothing is lost.", error)
        else:
            self._trouble(error)

    def _refused(self, asked: _Asked, error: RequestRefused | InvalidRequest) -> None:
        self._places.refused(Refusal(asked.row, str(error), time.time()))
        self._submitted.refused += 1
        if rising(self._submitted.refused):
            self._logger.warning(
                "%r: %s. %d requests are refused so far.",
                asked.custom_id,
                str(error).rstrip("."),
                self._submitted.refused,
            )

    def _unanswered(self, asked: _Asked, error: OutcomeUnknown) -> None:
        self._places.unanswered(asked.row)
        self._submitted.unknown += 1
        if asked.resends < self._resends:
            asked.resends += 1
            self._unrecorded.append(asked)
        self._trouble(error)

    def _trouble(self, error: NotAccepted | OutcomeUnknown) -> None:
        if self._outage.failed(time.monotonic()):
            self._logger.warning("%s (%d in a row without an answer)", error, self._outage.failures)


def _too_late() -> TimeoutError:
    return TimeoutError("the deadline passed before everything was sent")


def _labelled(labels: Mapping[str, object], shard: Shard, asked: Asked) -> Asked:
    index = shard.index(asked.row)
    return asked._replace(request=asked.request.labelled({**labels, "airflow_index": index}))
