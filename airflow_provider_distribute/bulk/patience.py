# SPDX-License-Identifier: Apache-2.0

"""A storage that fails for a moment is tried again."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_distribute.exceptions import LedgerUnavailable
from airflow_provider_distribute.pacing import Backoff, rising

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_distribute.waiting.pool import Logger

__all__ = ["insist"]

#: Waits between tries of a storage that does not answer.
BACKOFF = Backoff(base=0.5, cap=30.0)

_rng = random.Random()  # noqa: S311  jitter needs no secrecy
_T = TypeVar("_T")


async def insist(step: Callable[[], Awaitable[_T]], *, patience: float, follows: str, logger: Logger) -> _T:
    """
    Do something with a storage; for as long as the storage does not answer, do it again.

    :param step: May be done again after it has failed.
    :param patience: Seconds after which it is given up.
    :param follows: What a failure means for the run, for people.
    :param logger: Told at rising failures.
    :raises LedgerError: the storage did not answer all the while, or asking again cannot help.
    """
    failures, give_up = 0, time.monotonic() + patience
    while True:
        try:
            return await step()
        except LedgerUnavailable as error:
            failures += 1
            wait = BACKOFF.delay(failures, _rng)
            if time.monotonic() + wait > give_up:
                raise
            if rising(failures):
                logger.warning("%s Trying again in %.1f s; %s.", error, wait, follows)
        await asyncio.sleep(wait)
