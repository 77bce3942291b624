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
import random
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from airflow_provider_distribute.bulk.costs import Costs, Tokens
from airflow_provider_distribute.bulk.run import new_writer
from airflow_provider_distribute.exceptions import LedgerUnavailable
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.ledger.rows import Landed, RowWriter, read_rows
from airflow_provider_distribute.pacing import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.models import Job, Settings
    from airflow_provider_distribute.waiting.pool import Logger, Pool

__all__ = ["Collection", "Progress"]

log = logging.getLogger(__name__)

#: Bytes of answers from which on they are written.
_FULL = 1024 * 1024
#: Bytes of answers that are kept while the storage does not answer. What comes beyond is looked at again.
_OVERFULL = 4 * 1024 * 1024
#: Seconds after which answers are written however few they are.
_PATIENCE = 15.0
#: Seconds between two lines in the task's log: calm at first, calmer later.
_FIRST_LINE, _LAST_LINE = 30.0, 600.0
#: Jobs handed to the pool at once; between two such slices the event loop serves others.
_SLICE = 500
#: Jobs the pool watches for one run at once, oldest first; each costs it half a KiB of memory.
_MOST_WATCHED = 75_000


#: The rows of one ticket. A job has one row, and a hundred thousand tuples of one number are too much.
_Rows = int | tuple[int, ...]


@dataclass(slots=True)
class Progress:
    """
    Where a run is, for people.

    :ivar total: Rows that were accepted.
    :ivar succeeded: Of these, ended well.
    :ivar failed: Of these, ended badly.
    :ivar cost: US dollars of what has ended, an estimate.
    :ivar state: ``waiting``, ``ended``, ``deadline`` or ``stopped``.
    """

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    cost: float = 0.0
    state: str = "waiting"
    started: float = 0.0
    ended_before: int = 0

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

    def rate(self, now: float) -> float:
        """Rows that have ended in each second since this wait began."""
        return (self.ended - self.ended_before) / max(1.0, now - self.started)

    def line(self, now: float) -> str:
        """Return one line for the task's log."""
        rate = self.rate(now)
        left = (self.total - self.ended) / rate if rate else None
        eta = "unknown" if left is None else datetime.fromtimestamp(now + left, UTC).isoformat(" ", "minutes")
        return (
            f"{self.ended}/{self.total} done, {self.failed} failed, {rate * 60:.1f} a minute, ETA {eta}, "
            f"cost so far about ${self.cost:.4f}"
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


class Collection:
    """
    One wait for a run's jobs.

    :param directory: The run's directory.
    :param settings: The connection.
    :param logger: Told about progress and trouble.
    """

    def __init__(self, directory: Directory, settings: Settings, *, logger: Logger = log) -> None:
        self._directory = directory
        self._costs = Costs(settings)
        self._logger = logger
        self._rows_of: dict[str, _Rows] = {}
        self._lines: list[bytes] = []
        self._bytes = 0
        self._dropped: dict[str, _Rows] = {}
        self._writer = RowWriter(directory, writer=new_writer(time.time()))
        self._rng = random.Random()  # noqa: S311  jitter needs no secrecy
        self._full = asyncio.Event()
        self._watched = 0
        self._ended = asyncio.Event()
        self.progress = Progress()

    @property
    def pending(self) -> Mapping[str, object]:
        """The jobs that have not been seen ended."""
        return self._rows_of

    def read(self) -> None:
        """
        Find out what to wait for. Blocks.

        :raises LedgerError: the run's record cannot be used.
        """
        state = Journal(self._directory, writer="").read()
        landed: set[str] = set()
        seen = bytearray(state.count)
        self.progress = Progress(started=time.time())
        for head, _ in read_rows(self._directory):
            if state.tickets.get(head.row) == head.ticket and not seen[head.row]:
                seen[head.row] = True
                landed.add(head.ticket)
                self.progress.saw(head)
        self.progress.ended_before = self.progress.total = self.progress.ended
        for row, ticket in state.pending(landed):
            others = self._rows_of.get(ticket, ())
            self._rows_of[ticket] = row if others == () else (*_rows(others), row)
            self.progress.total += 1

    async def run(self, pool: Pool, *, deadline: float, poke_interval: float) -> None:
        """
        Wait until every job has ended or the deadline has passed; what came back is kept.

        :param pool: Looks at the jobs.
        :param deadline: Epoch seconds.
        :param poke_interval: Seconds.
        :raises AccessDenied: the key is not accepted.
        :raises LedgerError: what came back cannot be kept.
        """
        keeping = asyncio.create_task(self._keep(deadline))
        telling = asyncio.create_task(self._tell())
        waiting = asyncio.create_task(self._wait(pool, deadline, poke_interval))
        try:
            await asyncio.wait((keeping, waiting), return_when=asyncio.FIRST_COMPLETED)
            for task in (keeping, waiting):
                if task.done():
                    task.result()
            self.progress.state = "deadline" if self._rows_of else "ended"
        except asyncio.CancelledError:
            self.progress.state = "stopped"
            raise
        finally:
            for task in (keeping, telling, waiting):
                task.cancel()
            # A triggerer that stops gives a second: what was seen is written in a task of its own.
            closing = asyncio.create_task(self._close())
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            await asyncio.shield(closing)

    async def _wait(self, pool: Pool, deadline: float, poke_interval: float) -> None:
        again = False
        while self._rows_of and time.time() < deadline:
            async with asyncio.TaskGroup() as group:
                for number, tickets in enumerate(_slices(list(self._rows_of), _SLICE)):
                    while self._watched > _MOST_WATCHED - len(tickets):
                        self._ended.clear()
                        await self._ended.wait()
                    self._watched += len(tickets)
                    group.create_task(
                        self._wait_for(
                            pool, tickets, deadline, poke_interval, look_now=again, first=number == 0
                        )
                    )
                    await asyncio.sleep(0)
            self._rows_of.update(self._dropped)
            self._dropped.clear()
            again = True

    async def _wait_for(
        self,
        pool: Pool,
        tickets: list[str],
        deadline: float,
        poke_interval: float,
        *,
        look_now: bool,
        first: bool,
    ) -> None:
        waited = await pool.wait(
            tickets,
            deadline=deadline,
            poke_interval=poke_interval,
            look_now=look_now,
            on_end=self._saw,
            logger=self._logger if first else _silent,
        )
        self._watched -= len(waited.pending)
        self._ended.set()

    def _saw(self, job: Job) -> None:
        rows = self._rows_of.pop(job.job_id)
        self._watched -= 1
        self._ended.set()
        if self._bytes >= _OVERFULL:
            self._dropped[job.job_id] = rows
            return
        cost = self._costs.of(job.model, Tokens.counted(job.usage))
        for row in _rows(rows):
            landed = Landed(row, job.job_id, time.time(), job.succeeded, cost)
            line = landed.line(job.result())
            self._lines.append(line)
            self._bytes += len(line)
            self.progress.saw(landed)
        if self._bytes >= _FULL:
            self._full.set()

    async def _keep(self, deadline: float) -> None:
        backoff, failures = Backoff(base=1.0, cap=60.0), 0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), _PATIENCE)
            self._full.clear()
            try:
                await self._flush()
            except LedgerUnavailable as error:
                failures += 1
                wait = backoff.delay(failures, self._rng)
                if time.time() + wait > deadline:
                    raise
                if failures & (failures - 1) == 0:
                    self._logger.warning("%s Trying again in %.0f s; the jobs go on.", error, wait)
                await asyncio.sleep(wait)
            else:
                failures = 0

    async def _flush(self) -> None:
        while self._lines:
            chunk = _chunk(self._lines)
            await asyncio.to_thread(self._writer.write, chunk)
            # Only now: a write that fails, or is cancelled, is made again with the same lines.
            del self._lines[: len(chunk)]
            self._bytes -= sum(map(len, chunk))
        await asyncio.to_thread(self._write_progress)

    def _write_progress(self) -> None:
        text = json.dumps(self.progress.as_json(time.time()), indent=1)
        self._directory.overwrite("progress.json", text.encode())

    async def _tell(self) -> None:
        pause = _FIRST_LINE
        while True:
            await asyncio.sleep(pause)
            self._logger.info("%s", self.progress.line(time.time()))
            pause = min(2 * pause, _LAST_LINE)

    async def _close(self) -> None:
        await self._flush()
        self._logger.info("%s", self.progress.line(time.time()))


def _rows(rows: _Rows) -> tuple[int, ...]:
    return (rows,) if isinstance(rows, int) else rows


_closing: set[asyncio.Task[None]] = set()

#: Trouble with a service concerns every slice of a run; one of them tells it.
_silent = logging.getLogger(f"{__name__}.silent")
_silent.disabled = True


def _chunk(lines: list[bytes]) -> list[bytes]:
    """Return the first lines, up to a full object."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line)
        if size >= _FULL:
            return lines[: number + 1]
    return lines[:]


def _slices(tickets: list[str], size: int) -> Iterator[list[str]]:
    remaining = iter(tickets)
    while slice_ := list(islice(remaining, size)):
        yield slice_
