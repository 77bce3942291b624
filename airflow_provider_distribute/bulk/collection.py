# SPDX-License-Identifier: Apache-2.0

"""
Waiting for a run's jobs, and keeping what comes back as it is seen.

Runs on the triggerer: nothing here blocks the event loop, and memory does not grow with the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NoReturn

from airflow_provider_distribute.bulk.costs import Costs, Tokens
from airflow_provider_distribute.bulk.patience import insist
from airflow_provider_distribute.bulk.run import new_writer
from airflow_provider_distribute.exceptions import LedgerError, LedgerMissing
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.ledger.rows import Landed, RowWriter, read_rows
from airflow_provider_distribute.waiting.pool import NOT_SEEN
from airflow_provider_distribute.waiting.results import LAST_LOOK, look_while_they_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, KeysView

    from airflow_provider_distribute.bulk.run import Run
    from airflow_provider_distribute.bulk.submission import Submission, Submitted
    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.replay import State
    from airflow_provider_distribute.models import Job, Settings
    from airflow_provider_distribute.waiting.pool import Logger, Pool

__all__ = ["Collection", "Progress", "show_sending"]

log = logging.getLogger(__name__)

#: Seconds for which a storage that does not answer is tried again after the deadline. Airflow's own limit on
#: a deferral lies five minutes behind it.
_STORAGE_PATIENCE = 240.0
#: Bytes of answers from which on they are written.
_FULL = 1024 * 1024
#: Bytes of answers that are kept while the storage does not answer. What comes beyond is looked at again.
_OVERFULL = 4 * 1024 * 1024
#: Seconds after which answers, and where the run is, are written however few they are.
_PATIENCE = 15.0
#: Seconds between two lines in the task's log: calm at first, calmer later.
_FIRST_LINE, _LAST_LINE = 30.0, 600.0


#: The rows of one ticket. A job has one row, and a hundred thousand tuples of one number are too much.
_Rows = int | tuple[int, ...]

_Phase = Literal["sending", "waiting", "ended", "deadline"]


@dataclass(slots=True)
class Progress:
    """
    Where a run is, for people: nothing is decided by it.

    :ivar total: Rows whose requests were accepted.
    :ivar succeeded: Of these, ended well.
    :ivar failed: Of these, ended badly.
    :ivar refused: Rows whose requests the service would not have.
    :ivar unknown: Rows whose requests may have been accepted, without our knowing.
    :ivar not_sent: Rows whose requests are still to be sent, by this attempt or the next.
    :ivar cost: US dollars of what has ended, an estimate.
    :ivar unpriced: Of what ended well, rows whose model, as the service names it, has no known price.
    :ivar state: What it does, or how the wait ended.
    :ivar started: Epoch seconds at which this sending or this wait began. People see only what follows of it
        and of the next one: how fast rows end.
    :ivar ended_before: How many rows had ended by then.
    """

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    refused: int = 0
    unknown: int = 0
    not_sent: int = 0
    cost: float = 0.0
    unpriced: int = 0
    state: _Phase = "waiting"
    started: float = 0.0
    ended_before: int = 0

    @classmethod
    def of_sending(cls, state: State, submitted: Submitted, *, started: float) -> Progress:
        """
        Say where a run is that sends.

        :param state: What was known before.
        :param submitted: How the sending goes.
        :param started: Epoch seconds.
        """
        return cls(
            total=len(state.tickets.keys() - state.open) + submitted.accepted,
            succeeded=state.good,
            refused=len(state.refusals) + submitted.refused,
            unknown=len(state.unknown - state.open),
            not_sent=len(state.open) - submitted.accepted - submitted.refused,
            state="sending",
            started=started,
            ended_before=state.good,
        )

    @property
    def ended(self) -> int:
        """Rows that have ended."""
        return self.succeeded + self.failed

    def saw(self, landed: Landed) -> None:
        """Count a row."""
        if landed.succeeded:
            self.succeeded += 1
        else:
            self.failed += 1
        self.cost += landed.cost or 0.0
        self.unpriced += landed.succeeded and landed.cost is None

    def rate(self, now: float) -> float:
        """Rows that have ended in each second since this wait began."""
        return (self.ended - self.ended_before) / max(1.0, now - self.started)

    def line(self, now: float) -> str:
        """Return one line for the task's log."""
        rate = self.rate(now)
        left = (self.total - self.ended) / rate if rate else None
        eta = "unknown" if left is None else datetime.fromtimestamp(now + left, UTC).isoformat(" ", "minutes")
        unpriced = f", without {self.unpriced} rows of unknown price" if self.unpriced else ""
        return (
            f"{self.ended}/{self.total} done, {self.failed} failed, {rate * 60:.1f} a minute, ETA {eta}, "
            f"cost so far about ${self.cost:.4f}{unpriced}"
        )

    def as_json(self, now: float) -> dict[str, object]:
        """Return what ``progress.json`` says."""
        counts = {
            name: value for name, value in asdict(self).items() if name not in ("started", "ended_before")
        }
        rate = self.rate(now)
        return {
            **counts,
            "pending": self.total - self.ended,
            "rate_per_second": round(rate, 4),
            "eta_seconds": round((self.total - self.ended) / rate) if rate else None,
            "updated_at": datetime.fromtimestamp(now, UTC).isoformat(),
        }


def _write(directory: Directory, progress: Progress) -> None:
    text = json.dumps(progress.as_json(time.time()), indent=1)
    directory.overwrite("progress.json", text.encode())


async def show_sending(run: Run, submission: Submission) -> NoReturn:
    """
    Keep ``progress.json`` current while a run sends, until this is cancelled.

    People read it and nothing else does, so a storage that does not answer stops nothing.
    """
    state, started = run.state, time.time()
    while True:
        progress = Progress.of_sending(state, submission.so_far, started=started)
        with contextlib.suppress(LedgerError):
            await asyncio.to_thread(_write, run.directory, progress)
        await asyncio.sleep(_PATIENCE)


class Collection:
    """
    One wait for a run's jobs.

    :param directory: The run's directory.
    :param settings: The connection.
    :param logger: Told about progress and trouble.
    :ivar attempt: Whose jobs they are, once :meth:`read` knows.
    """

    def __init__(self, directory: Directory, settings: Settings, *, logger: Logger = log) -> None:
        self._directory = directory
        self._costs = Costs(settings)
        self._logger = logger
        self._rows_of: dict[str, _Rows] = {}
        self._lines: list[bytes] = []
        self._bytes = 0
        self._writer = RowWriter(directory, writer=new_writer(time.time()))
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self._turned_away = False
        self._all_seen = False
        self.progress = Progress()
        self.attempt = 0

    @property
    def pending(self) -> KeysView[str]:
        """The jobs that have not been seen ended, oldest first."""
        return self._rows_of.keys()

    async def begin(self, *, deadline: float) -> None:
        """
        Find out what to wait for; a storage that does not answer is tried again.

        :param deadline: Epoch seconds.
        :raises LedgerError: as :meth:`read` says.
        """
        await self._insist(lambda: asyncio.to_thread(self.read), deadline)

    def read(self) -> None:
        """
        Find out what to wait for. Blocks.

        :raises LedgerError: the run's record cannot be used, or there is none here.
        """
        state = Journal(self._directory, writer="").read()
        if state.opened is None:
            raise LedgerMissing(
                "find the journal of the run in",
                self._directory.uri,
                remedy="whoever waits, such as the triggerer, has to see what the worker wrote. Let all "
                "machines see that directory, or move it to a storage that they share and set result_path "
                "to that; then clear the task. An attempt that sees the directory waits for the jobs, one "
                "that does not may pay for them again",
            )
        self.attempt = state.opened.attempt
        self.progress = Progress(
            started=time.time(),
            refused=len(state.refusals),
            unknown=len(state.unknown),
            not_sent=len(state.open),
        )
        seen = bytearray(state.count)
        for head, _ in read_rows(self._directory):
            if state.tickets.get(head.row) == head.ticket and not seen[head.row]:
                seen[head.row] = True
                self.progress.saw(head)
        self.progress.ended_before = self.progress.total = self.progress.ended
        for row in sorted(state.tickets, key=state.accepted_at.__getitem__):
            if not seen[row]:
                ticket = state.tickets[row]
                others = self._rows_of.get(ticket, ())
                self._rows_of[ticket] = row if others == () else (*_rows(others), row)
                self.progress.total += 1

    async def run(self, pool: Pool, *, deadline: float, poke_interval: float) -> None:
        """
        Wait until every job has ended or the deadline has passed; what came back is kept.

        :param pool: Looks at the jobs.
        :param deadline: Epoch seconds. This returns four minutes later at the latest.
        :param poke_interval: Seconds.
        :raises AccessDenied: the key is not accepted.
        :raises LedgerError: what came back cannot be kept.
        """
        await self._kept(self._wait(pool, deadline, poke_interval), deadline)

    async def wait_and_look(self, pool: Pool, *, deadline: float, poke_interval: float) -> None:
        """
        Wait as :meth:`run` does; when the deadline has passed with jobs pending, look a last time.

        :raises AccessDenied: the key is not accepted.
        :raises LedgerError: what came back cannot be kept.
        """
        await self.run(pool, deadline=deadline, poke_interval=poke_interval)
        if self.pending:
            await self.look_a_last_time(pool, poke_interval=poke_interval)

    async def look_a_last_time(self, pool: Pool, *, poke_interval: float) -> None:
        """
        Look once more at every job that is pending, oldest first: what has ended is paid for.

        However many they are, this goes on for as long as jobs turn out to have ended: it stops when none
        did for :data:`~airflow_provider_distribute.waiting.results.LAST_LOOK` seconds.

        :param pool: Looks at the jobs.
        :param poke_interval: Seconds.
        :raises AccessDenied: the key is not accepted.
        :raises LedgerError: what came back cannot be kept.
        """
        await self._kept(self._look(pool, poke_interval), 0.0)

    async def _kept(self, seeing: Coroutine[None, None, None], deadline: float) -> None:
        """Keep what is seen, until everything is."""
        self._all_seen = False
        self.progress.state = "waiting"
        keeping = asyncio.create_task(self._keep(deadline))
        telling = asyncio.create_task(self._tell())
        waiting = asyncio.create_task(seeing)
        try:
            await asyncio.wait((keeping, waiting), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
                self.progress.state = "deadline" if self._rows_of else "ended"
                self._all_seen = True
                self._full.set()
            await keeping
        finally:
            for task in (keeping, telling, waiting):
                task.cancel()
            # A triggerer that stops gives a second: what was seen is written in a task of its own.
            closing = asyncio.create_task(self._close())
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            await asyncio.shield(closing)

    async def _wait(self, pool: Pool, deadline: float, poke_interval: float) -> None:
        if self._rows_of and time.time() < deadline:
            await pool.wait(
                self._rows_of,
                deadline=deadline,
                poke_interval=poke_interval,
                on_end=self._saw,
                logger=self._logger,
                progress_every=math.inf,
            )

    async def _look(self, pool: Pool, poke_interval: float) -> None:
        self._logger.info(
            "The deadline has passed with %d jobs pending. Each is looked at a last time, oldest first; that "
            "ends when none of them turns out to have ended for %.0f s.",
            len(self._rows_of),
            LAST_LOOK,
        )
        wanted = list(self._rows_of)
        while wanted:
            self._turned_away = False
            words = await look_while_they_end(
                pool,
                wanted,
                patience=LAST_LOOK,
                once=True,
                poke_interval=poke_interval,
                on_end=self._saw,
                logger=self._logger,
            )
            if not self._turned_away:
                break
            # Among those there was no room for: they have ended, and are looked at once there is.
            await self._room.wait()
            wanted = [job_id for job_id, word in words.items() if word is NOT_SEEN]

    def _saw(self, job: Job) -> bool:
        """Keep what came back; return whether there was room for it."""
        if self._bytes >= _OVERFULL:
            self._turned_away = True
            self._room.clear()
            return False
        cost = self._costs.of(job.model, Tokens.counted(job.usage))
        for row in _rows(self._rows_of.pop(job.job_id)):
            landed = Landed(row, job.job_id, time.time(), job.succeeded, cost)
            line = landed.line(job.result())
            self._lines.append(line)
            self._bytes += len(line)
            self.progress.saw(landed)
        if self._bytes >= _FULL:
            self._full.set()
        return True

    async def _keep(self, deadline: float) -> None:
        while True:
            last = self._all_seen
            await self._insist(self._keep_now, deadline)
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), _PATIENCE)
            self._full.clear()

    async def _keep_now(self) -> None:
        await self._flush()
        await asyncio.to_thread(_write, self._directory, self.progress)

    async def _insist(self, step: Callable[[], Awaitable[None]], deadline: float) -> None:
        patience = max(0.0, deadline - time.time()) + _STORAGE_PATIENCE
        await insist(step, patience=patience, follows="the jobs go on", logger=self._logger)

    async def _flush(self) -> None:
        while self._lines:
            chunk = _chunk(self._lines)
            await asyncio.to_thread(self._writer.write, chunk)
            # Only now: a write that fails, or is cancelled, is made again with the same lines.
            del self._lines[: len(chunk)]
            self._bytes -= sum(map(len, chunk))
            self._room.set()

    async def _tell(self) -> None:
        pause = _FIRST_LINE
        while True:
            await asyncio.sleep(pause)
            self._logger.info("%s", self.progress.line(time.time()))
            pause = min(2 * pause, _LAST_LINE)

    async def _close(self) -> None:
        """Write what came back last; not where the run is, for a newer attempt may say that by now."""
        try:
            await self._flush()
        except LedgerError as error:
            self._logger.warning(
                "%s %d rows that have ended are looked at again by whoever waits next.",
                error,
                len(self._lines),
            )
        self._logger.info("%s", self.progress.line(time.time()))


def _rows(rows: _Rows) -> tuple[int, ...]:
    return (rows,) if isinstance(rows, int) else rows


_closing: set[asyncio.Task[None]] = set()


def _chunk(lines: list[bytes]) -> list[bytes]:
    """Return the first lines, up to a full object."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line)
        if size >= _FULL:
            return lines[: number + 1]
    return lines[:]
