# SPDX-License-Identifier: Apache-2.0

"""What every trigger does: read its order, wait, and yield one event, whatever happens."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent
from pydantic import ConfigDict, Field, ValidationError

from airflow_provider_distribute.exceptions import AccessDenied, ConnectionInvalid
from airflow_provider_distribute.models import Value, problems_in
from airflow_provider_distribute.triggers.connection import ConnectionUnread
from airflow_provider_distribute.triggers.settling import until_settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["AboveZero", "Outcome", "WaitingTrigger"]

AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Outcome(Value):
    """
    The event of any trigger; each adds what it counts. Never an answer, never a secret.

    What a newer triggerer says beside that is ignored: it may be upgraded before the workers are.

    :param version: Of this shape; a worker and a triggerer may run different releases.
    :param verdict: ``ended``: every job has; ``deadline``: it passed with some pending; ``refused``: waiting
        is impossible until somebody acts; ``unavailable``: it is impossible for the moment.
    :param message: For people.
    """

    model_config = ConfigDict(extra="ignore")

    version: Literal[1] = 1
    verdict: Literal["ended", "deadline", "refused", "unavailable"]
    message: str = ""


OrderT = TypeVar("OrderT", bound=Value)
OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class WaitingTrigger(BaseTrigger, Generic[OrderT, OutcomeT]):
    """
    Waits for what it is ordered to, and yields one outcome.

    A subclass names the shape of its order and of its outcome, and says how it waits. Its constructor takes
    anything, under any name, and assigns what its order has a field for. Nothing is checked there: an
    exception in a trigger's constructor would end the whole triggerer.

    :cvar order: What the arguments are read as.
    :cvar outcome: What the event is made from.
    :cvar impossible: Errors that end the waiting with a verdict. Any other fails the trigger.
    """

    order: type[OrderT]
    outcome: type[OutcomeT]
    impossible: ClassVar[tuple[type[Exception], ...]] = (AccessDenied, ConnectionInvalid)

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.order.model_fields}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments: ids, URIs and numbers."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self._arguments()

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        started = time.monotonic()
        outcome = await self._outcome()
        await until_settled(self, started)
        yield TriggerEvent(outcome.model_dump(mode="json", exclude_defaults=True))

    async def _outcome(self) -> OutcomeT:
        try:
            order = self.order(**self._arguments())
        except ValidationError as error:
            problems = "; ".join(problems_in(error))
            message = f"The trigger's arguments cannot be used: {problems}. Clear the task to wait again."
            return self.outcome(verdict="refused", message=message)
        try:
            return await self._wait(order)
        except ConnectionUnread:
            return self._unseen(order)
        except self.impossible as error:
            passing = getattr(error, "transient", False)
            return self.outcome(verdict="unavailable" if passing else "refused", message=str(error))

    @abstractmethod
    async def _wait(self, order: OrderT) -> OutcomeT:
        """Wait until the jobs have ended, or until the deadline; when cancelled, say what goes on."""
        raise NotImplementedError

    @abstractmethod
    def _unseen(self, order: OrderT) -> OutcomeT:
        """Return the outcome of a deadline that passed without a look; the last look is the worker's."""
        raise NotImplementedError
