# SPDX-License-Identifier: Apache-2.0

"""The trigger that waits for chat jobs on the triggerer, and the one event it yields."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from airflow_provider_distribute.models import Value
from airflow_provider_distribute.triggers.base import AboveZero, Outcome, WaitingTrigger
from airflow_provider_distribute.triggers.connection import with_connection
from airflow_provider_distribute.triggers.metrics import metered_pool
from airflow_provider_distribute.waiting.pool import NOT_SEEN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_distribute.models import Settings
    from airflow_provider_distribute.waiting.pool import Waited

__all__ = ["AsyncChatTrigger", "WaitOutcome"]


class _Order(Value):
    """What a trigger is to wait for."""

    conn_id: str
    job_ids: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    deadline: AboveZero
    poke_interval: AboveZero


class WaitOutcome(Outcome):
    """
    The event: how a wait ended, in counts, ids and words.

    :param verdict: As of any trigger, but never ``unavailable``.
    :param succeeded: How many jobs ended well.
    :param failed: How many ended badly.
    :param lost: Ids among them that the service does not know any more.
    :param pending: Ids still pending, by the service's last status word.
    """

    verdict: Literal["ended", "deadline", "refused"]
    succeeded: int = 0
    failed: int = 0
    lost: tuple[str, ...] = ()
    pending: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @classmethod
    def of(cls, waited: Waited) -> WaitOutcome:
        """Sum up a wait."""
        by_word: dict[str, list[str]] = {}
        for job_id, word in waited.pending.items():
            by_word.setdefault(word, []).append(job_id)
        return cls(
            verdict="deadline" if waited.pending else "ended",
            succeeded=waited.succeeded,
            failed=len(waited.failed),
            lost=waited.lost,
            pending={word: tuple(job_ids) for word, job_ids in by_word.items()},
        )

    @property
    def words(self) -> Mapping[str, str]:
        """The last status word of each pending job."""
        return {job_id: word for word, job_ids in self.pending.items() for job_id in job_ids}


class AsyncChatTrigger(WaitingTrigger[_Order, WaitOutcome]):
    """
    Waits until every job has ended, or until the deadline, and yields one :class:`WaitOutcome`.

    All triggers of one triggerer that use the same connection share one pool, so a hundred of them poll like
    one. The results are fetched on the worker.

    :param conn_id: Connection id.
    :param job_ids: The jobs.
    :param deadline: Wall-clock deadline, seconds since the epoch; it survives a restart.
    :param poke_interval: Seconds between looks of a fixed schedule; jobs are found as soon on average.
    """

    order = _Order
    outcome = WaitOutcome

    def __init__(
        self,
        conn_id: Any = None,
        job_ids: Any = None,
        deadline: Any = None,
        poke_interval: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.job_ids = job_ids
        self.deadline = deadline
        self.poke_interval = poke_interval

    async def _wait(self, order: _Order) -> WaitOutcome:
        pending = dict.fromkeys(order.job_ids)
        try:
            waited = await with_connection(
                order.conn_id,
                partial(self._wait_with, order, pending),
                until=order.deadline,
                logger=self.log,
            )
        except asyncio.CancelledError:
            self.log.warning(
                "Waiting stopped here with %d jobs pending: %s. They cannot be cancelled: they go on at the "
                "service and are billed. If this triggerer only restarts or hands over, waiting resumes.",
                len(pending),
                ", ".join(pending),
            )
            raise
        return WaitOutcome.of(waited)

    def _unseen(self, order: _Order) -> WaitOutcome:
        return WaitOutcome(verdict="deadline", pending={NOT_SEEN: tuple(dict.fromkeys(order.job_ids))})

    async def _wait_with(self, order: _Order, pending: dict[str, None], settings: Settings) -> Waited:
        self.log.info("Waiting for %d jobs on connection %r.", len(pending), order.conn_id)
        async with metered_pool(settings) as pool:
            return await pool.wait(
                order.job_ids,
                deadline=order.deadline,
                poke_interval=order.poke_interval,
                on_end=lambda job: pending.pop(job.job_id, None),
                logger=self.log,
            )
