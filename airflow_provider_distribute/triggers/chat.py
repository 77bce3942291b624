# SPDX-License-Identifier: Apache-2.0

"""The trigger that waits for chat jobs on the triggerer, and the one event it yields."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from pydantic import ConfigDict, Field, ValidationError

from airflow_provider_distribute.exceptions import AccessDenied, ConnectionInvalid
from airflow_provider_distribute.models import Value, problems_in
from airflow_provider_distribute.triggers.connection import with_connection
from airflow_provider_distribute.triggers.metrics import metered_pool
from airflow_provider_distribute.triggers.settling import until_settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from airflow_provider_distribute.models import Settings
    from airflow_provider_distribute.waiting.pool import Waited

__all__ = ["AsyncChatTrigger", "WaitOutcome"]


class _Order(Value):
    """What a trigger is to wait for."""

    conn_id: str
    job_ids: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    deadline: float = Field(gt=0, allow_inf_nan=False)
    poke_interval: float = Field(gt=0, allow_inf_nan=False)


class WaitOutcome(Value):
    """
    The event: how a wait ended, in counts, ids and words. Never an answer, never a secret.

    What a newer triggerer says beside that is ignored: it may be upgraded before the workers are.

    :param version: Of this shape; a worker and a triggerer may run different releases.
    :param verdict: ``ended``: every job has; ``deadline``: some were still pending; ``refused``: waiting is
        impossible until somebody acts, as ``message`` says.
    :param succeeded: How many jobs ended well.
    :param failed: How many ended badly.
    :param lost: Ids among them that the service does not know any more.
    :param pending: Ids still pending, by the service's last status word.
    :param message: For people.
    """

    model_config = ConfigDict(extra="ignore")

    version: Literal[1] = 1
    verdict: Literal["ended", "deadline", "refused"]
    succeeded: int = 0
    failed: int = 0
    lost: tuple[str, ...] = ()
    pending: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    message: str = ""

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

    def event(self) -> TriggerEvent:
        """Return it as Airflow stores it."""
        return TriggerEvent(self.model_dump(mode="json", exclude_defaults=True))


class AsyncChatTrigger(BaseTrigger):
    """
    Waits until every job has ended, or until the deadline, and yields one :class:`WaitOutcome`.

    All triggers of one triggerer that use the same connection share one pool, so a hundred of them poll like
    one. The results are fetched on the worker.

    Nothing is checked here: an exception in a trigger's constructor would end the whole triggerer.

    :param conn_id: Connection id.
    :param job_ids: The jobs.
    :param deadline: Wall-clock deadline, seconds since the epoch; it survives a restart.
    :param poke_interval: Seconds of the fixed schedule that waiting is at least as quick as.
    """

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

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments: ids and numbers."""
        return (
            "airflow_provider_distribute.triggers.chat.AsyncChatTrigger",
            {
                "conn_id": self.conn_id,
                "job_ids": self.job_ids,
                "deadline": self.deadline,
                "poke_interval": self.poke_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        started = time.monotonic()
        try:
            order = _Order(
                conn_id=self.conn_id,
                job_ids=self.job_ids,
                deadline=self.deadline,
                poke_interval=self.poke_interval,
            )
            outcome = await self._wait(order)
        except ValidationError as error:
            problems = "; ".join(problems_in(error))
            message = f"The trigger's arguments cannot be used: {problems}. Clear the task to wait again."
            outcome = WaitOutcome(verdict="refused", message=message)
        except (AccessDenied, ConnectionInvalid, AirflowNotFoundException) as error:
            outcome = WaitOutcome(verdict="refused", message=str(error))
        await until_settled(self, started)
        yield outcome.event()

    async def _wait(self, order: _Order) -> WaitOutcome:
        pending = dict.fromkeys(order.job_ids)

        async def wait(settings: Settings) -> Waited:
            self.log.info("Waiting for %d jobs on connection %r.", len(pending), order.conn_id)
            async with metered_pool(settings) as pool:
                return await pool.wait(
                    order.job_ids,
                    deadline=order.deadline,
                    poke_interval=order.poke_interval,
                    on_end=lambda job: pending.pop(job.job_id, None),
                    logger=self.log,
                )

        try:
            waited = await with_connection(order.conn_id, wait, until=order.deadline, logger=self.log)
        except asyncio.CancelledError:
            self.log.warning(
                "Waiting stopped here with %d jobs pending: %s. They cannot be cancelled: they go on at the "
                "service and are billed. If this triggerer only restarts or hands over, waiting resumes.",
                len(pending),
                ", ".join(pending),
            )
            raise
        return WaitOutcome.of(waited)
