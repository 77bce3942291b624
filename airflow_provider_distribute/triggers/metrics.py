# SPDX-License-Identifier: Apache-2.0

"""What the triggers tell Airflow's metrics: how many looks the pool of a connection sends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_distribute.waiting.pool import shared_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_distribute.models import Settings
    from airflow_provider_distribute.waiting.pool import Looks, Pool

__all__ = ["metered_pool"]

#: Seconds between two reports of a pool.
_EVERY = 30.0

_reporters: WeakKeyDictionary[Pool, asyncio.Task[None]] = WeakKeyDictionary()
_users: WeakKeyDictionary[Pool, int] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def metered_pool(settings: Settings) -> AsyncIterator[Pool]:
    """
    Yield a connection's pool; while anybody uses it, its looks are counted in Airflow's metrics.

    ``distribute.pool.looked`` counts the looks sent, ``distribute.pool.throttled`` those that the service
    answered by asking for fewer. The only tag is the service.
    """
    pool = shared_pool(settings)
    _users[pool] = _users.get(pool, 0) + 1
    if _users[pool] == 1:
        reporting = _report_regularly(pool)
        _reporters[pool] = asyncio.create_task(reporting, context=contextvars.Context())
    try:
        yield pool
    finally:
        _users[pool] -= 1
        if not _users[pool]:
            reporter = _reporters.pop(pool)
            reporter.cancel()
            await asyncio.wait((reporter,))
            await _report(pool)


async def _report_regularly(pool: Pool) -> None:
    while True:
        await asyncio.sleep(_EVERY)
        await _report(pool)


async def _report(pool: Pool) -> None:
    # From a thread: what counts may be another machine.
    counting = asyncio.create_task(asyncio.to_thread(_count, pool.settings.service, pool.take_looks()))
    try:
        await asyncio.shield(counting)
    except asyncio.CancelledError:
        await counting
        raise


def _count(service: str, looks: Looks) -> None:
    for name, count in (("looked", looks.sent), ("throttled", looks.throttled)):
        if count:
            Stats.incr(f"distribute.pool.{name}", count, tags={"service": service})
