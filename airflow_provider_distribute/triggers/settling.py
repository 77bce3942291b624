# SPDX-License-Identifier: Apache-2.0

"""When a trigger may fire: not before the deferral itself is over for the scheduler."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import conf

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

__all__ = ["until_settled"]

#: Seconds a scheduler takes to hear that a task's process has ended, once the worker has noticed.
_SCHEDULER_LAG = 3.0


async def until_settled(trigger: BaseTrigger, since: float) -> None:
    """
    Hold back what is known within seconds of a deferral.

    Airflow 3.0 to 3.3 fail a task that is running again when the end of the process that deferred it is
    reported (https://github.com/apache/airflow/issues/71580), and a worker notices that end only within
    ``[workers] min_heartbeat_interval``. ``dag.test()`` has no scheduler, and nothing is held back.

    :param since: When the trigger began, on the monotonic clock.
    """
    if trigger.task_instance is not None:
        noticed = conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)
        await asyncio.sleep(since + noticed + _SCHEDULER_LAG - time.monotonic())
