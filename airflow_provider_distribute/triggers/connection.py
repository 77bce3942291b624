# SPDX-License-Identifier: Apache-2.0

"""A connection on the triggerer: read again while it cannot be read, and once it was changed."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_distribute.exceptions import AccessDenied, ConnectionInvalid
from airflow_provider_distribute.hooks.base import async_settings
from airflow_provider_distribute.pacing import Backoff, rising

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_distribute.models import Settings
    from airflow_provider_distribute.waiting.pool import Logger

__all__ = ["ConnectionUnread", "with_connection"]

T = TypeVar("T")

#: Waits between look-ups of a connection.
BACKOFF = Backoff(base=2.0, cap=60.0)


class ConnectionUnread(Exception):
    """A connection could not be read up to the deadline, so no job was looked at."""


_rng = random.Random()  # noqa: S311  jitter needs no secrecy


async def with_connection(
    conn_id: str, use: Callable[[Settings], Awaitable[T]], *, until: float, logger: Logger
) -> T:
    """
    Do something with a connection; when its key is denied and has been changed meanwhile, do it again.

    :param use: May be called several times, each time with other settings.
    :param until: Epoch seconds up to which a connection that cannot be read is read again.
    :param logger: Told about what goes wrong.
    :raises AccessDenied: the key that the connection has now is denied.
    :raises ConnectionInvalid: naming every missing or wrong field.
    :raises ConnectionUnread: it could not be read all the while.
    """
    settings = await _settings(conn_id, until, logger)
    while True:
        try:
            return await use(settings)
        except AccessDenied:
            before, settings = settings, await _settings(conn_id, until, logger)
            if settings == before:
                raise
            logger.warning("The key of connection %r was denied. It was changed: using the new one.", conn_id)


async def _settings(conn_id: str, until: float, logger: Logger) -> Settings:
    # The task used the connection before it deferred, so it was there. Airflow also says that a connection is
    # missing when its secrets backend does not answer.
    failures = 0
    while True:
        try:
            return await async_settings(conn_id)
        except ConnectionInvalid:
            raise
        except Exception as error:
            failures += 1
            wait = BACKOFF.delay(failures, _rng)
            if time.time() + wait > until:
                raise ConnectionUnread(conn_id) from error
            if rising(failures):
                logger.warning(
                    "Connection %r cannot be read (%s: %s). The jobs go on; trying again in %.0f s, and so "
                    "on until the deadline.",
                    conn_id,
                    type(error).__name__,
                    error,
                    wait,
                )
            await asyncio.sleep(wait)
