# SPDX-License-Identifier: Apache-2.0

"""The trigger that waits for a bulk run on the triggerer, whatever its size, and the one event it yields."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import ObjectStoragePath
from asgiref.sync import sync_to_async
from pydantic import Field

from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.leaving import leave_behind, some
from airflow_provider_distribute.bulk.manifest import MOST_NAMED
from airflow_provider_distribute.exceptions import LedgerError
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.models import Value
from airflow_provider_distribute.triggers.base import AboveZero, Outcome, WaitingTrigger
from airflow_provider_distribute.triggers.connection import with_connection
from airflow_provider_distribute.triggers.metrics import metered_pool

if TYPE_CHECKING:
    from airflow_provider_distribute.bulk.collection import Progress
    from airflow_provider_distribute.models import Settings

__all__ = ["AsyncChatBulkTrigger", "BulkOutcome"]


class _Order(Value):
    """What a trigger is to wait for."""

    conn_id: str
    run_uri: str = Field(min_length=1)
    deadline: AboveZero
    poke_interval: AboveZero


class BulkOutcome(Outcome):
    """
    The event: counts and a verdict, and not even an id.

    :param run_uri: The run's directory.
    :param deadline: Epoch seconds.
    :param succeeded: How many jobs ended well.
    :param failed: How many ended badly.
    :param pending: How many were still pending.
    """

    run_uri: str = ""
    deadline: float = 0.0
    succeeded: int = 0
    failed: int = 0
    pending: int = 0

    @classmethod
    def of(cls, progress: Progress, order: _Order) -> BulkOutcome:
        """Sum up a wait."""
        pending = progress.total - progress.ended
        return cls(
            verdict="deadline" if pending else "ended",
            run_uri=order.run_uri,
            deadline=order.deadline,
            succeeded=progress.succeeded,
            failed=progress.failed,
            pending=pending,
        )


class AsyncChatBulkTrigger(WaitingTrigger[_Order, BulkOutcome]):
    """
    Waits until every job of a run has ended, or until the deadline, and yields one :class:`BulkOutcome`. The
    last look that follows the deadline is the worker's.

    What comes back is written to the run's directory as it is seen. The arguments are the same size whatever
    the number of jobs, which are read from the run's directory.

    :param conn_id: Connection id.
    :param run_uri: The run's directory.
    :param deadline: Wall-clock deadline, seconds since the epoch; it survives a restart.
    :param poke_interval: Seconds between looks of a fixed schedule; jobs are found as soon on average.
    """

    order = _Order
    outcome = BulkOutcome
    impossible = (*WaitingTrigger.impossible, LedgerError)

    def __init__(
        self,
        conn_id: Any = None,
        run_uri: Any = None,
        deadline: Any = None,
        poke_interval: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.run_uri = run_uri
        self.deadline = deadline
        self.poke_interval = poke_interval

    async def _wait(self, order: _Order) -> BulkOutcome:
        run = _Run()
        try:
            return await with_connection(
                order.conn_id, partial(self._wait_with, order, run), until=order.deadline, logger=self.log
            )
        except asyncio.CancelledError:
            await self._leave(order, run)
            raise

    def _unseen(self, order: _Order) -> BulkOutcome:
        return BulkOutcome(verdict="deadline", run_uri=order.run_uri, deadline=order.deadline)

    async def _wait_with(self, order: _Order, run: _Run, settings: Settings) -> BulkOutcome:
        # A path may look an Airflow connection up, which below 3.2 only this kind of thread can.
        run.directory = await sync_to_async(_directory)(order.run_uri)
        collection = Collection(run.directory, settings, logger=self.log)
        await collection.begin(deadline=order.deadline)
        run.collection = collection
        self.log.info("Waiting for %d jobs of %r.", len(collection.pending), order.run_uri)
        async with metered_pool(settings) as pool:
            await collection.run(pool, deadline=order.deadline, poke_interval=order.poke_interval)
        return BulkOutcome.of(collection.progress, order)

    async def _leave(self, order: _Order, run: _Run) -> None:
        """Say what goes on. Airflow gives a second: the manifest is written in a task of its own."""
        attempt = pending = None
        if run.collection is None:
            what = "before the run was read. Its jobs"
        else:
            attempt, pending = run.collection.attempt, list(run.collection.pending)
            what = f"with {len(pending)} jobs pending. They"
        self.log.warning(
            "Waiting stopped here %s cannot be cancelled: they go on at the service and are billed%s; %r "
            "lists everything. If this triggerer only restarts or hands over, waiting resumes; after a "
            "clear, the next attempt waits for the jobs instead of paying again.",
            what,
            run.details,
            f"{order.run_uri.rstrip('/')}/journal",
        )
        if run.directory is None:
            return
        why = "Waiting was stopped. If the triggerer only restarts or hands over, it resumes."
        leaving = asyncio.create_task(
            asyncio.to_thread(leave_behind, run.directory, attempt=attempt, why=why, pending=pending)
        )
        _leaving.add(leaving)
        leaving.add_done_callback(_leaving.discard)
        await asyncio.shield(leaving)


@dataclass(slots=True)
class _Run:
    """What is known of a run so far."""

    directory: Directory | None = None
    collection: Collection | None = None

    @property
    def details(self) -> str:
        """The jobs that are pending, and what else may be."""
        if self.collection is None:
            return ""
        pending, progress = list(self.collection.pending), self.collection.progress
        return (
            f": {some(pending[:MOST_NAMED], len(pending))}. {progress.unknown} rows are unknown, and "
            f"{progress.not_sent} were not sent"
        )


_leaving: set[asyncio.Task[bool]] = set()


def _directory(uri: str) -> Directory:
    return Directory.at(uri, ObjectStoragePath)
