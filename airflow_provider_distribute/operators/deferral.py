# SPDX-License-Identifier: Apache-2.0

"""Leaving the worker while jobs run, and what a task is told when it is back."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from pydantic import ValidationError

from airflow_provider_distribute.models import problems_in
from airflow_provider_distribute.triggers.base import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.triggers.base import BaseTrigger

__all__ = ["TRIGGER_FAILED", "defer_to", "read_event", "timed_out", "trigger_failed"]

_Outcome = TypeVar("_Outcome", bound=Outcome)

#: What is said of a trigger that raised.
TRIGGER_FAILED = (
    "The trigger failed, and the log says how. Worker and triggerer may run different releases of this "
    "provider"
)
#: Airflow's own limit on a deferral lies this many seconds behind the trigger's deadline, as a net.
_NET = 300.0


def defer_to(
    trigger: BaseTrigger, task: BaseOperator, deadline: float, arguments: dict[str, Any] | None = None
) -> NoReturn:
    """
    Leave the waiting to a trigger, whose event then comes to the task's ``execute_complete``.

    :param deadline: The trigger's, in seconds since the epoch.
    :param arguments: What ``execute_complete`` is given beside the event.
    """
    task.defer(
        trigger=trigger,
        method_name="execute_complete",
        kwargs=arguments,
        timeout=timedelta(seconds=max(0.0, deadline - time.time()) + _NET),
    )


def read_event(event: Any, outcome: type[_Outcome]) -> _Outcome:
    """
    Read the event that resumed the task.

    :param outcome: What the trigger yields.
    :raises AirflowException: when it is not one of ours; a retry waits again.
    """
    try:
        return outcome.model_validate(event)
    except ValidationError as error:
        problems = "; ".join(problems_in(error))
        raise AirflowException(
            f"The trigger's event cannot be read: {problems}. The jobs are not touched by that. Worker and "
            "triggerer may run different releases of this provider: restart the older one and retry."
        ) from None


def timed_out(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Return whether a task is resumed because Airflow's own limit on its deferral has passed."""
    reason = (next_kwargs or {}).get("error")
    return next_method == TRIGGER_FAIL_REPR and reason == TriggerFailureReason.TRIGGER_TIMEOUT


def trigger_failed(next_method: str, next_kwargs: Mapping[str, Any] | None, *, logger: Any) -> bool:
    """
    Return whether a task is resumed because its trigger raised.

    :param logger: Told how; Airflow itself shows that nowhere else.
    """
    if next_method != TRIGGER_FAIL_REPR or timed_out(next_method, next_kwargs):
        return False
    logger.error("The trigger failed:\n%s", "\n".join((next_kwargs or {}).get("traceback") or ()))
    return True
