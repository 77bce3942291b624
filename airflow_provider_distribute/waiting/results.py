# SPDX-License-Identifier: Apache-2.0

"""
Waiting in the pool for somebody who wants the results: a worker, where a trigger only counts.

What a look means and when to look again is the pool's business here too, so that it makes no difference who
waits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from airflow_provider_distribute.pacing import RETRY_AFTER_CAP
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.waiting.pool import NOT_FOUND, NOT_SEEN, shared_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_distribute.models import Job, Settings
    from airflow_provider_distribute.waiting.pool import Logger, Pool

__all__ = [
    "BRIEF_PATIENCE",
    "LAST_LOOK",
    "PATIENCE",
    "Results",
    "fetch",
    "look_newest_first",
    "look_while_they_end",
    "wait_for",
]

#: Seconds without a result after which fetching is given up: longer than any pause a service can ask for.
PATIENCE = RETRY_AFTER_CAP + 60.0
#: The same for somebody who has another chance later.
BRIEF_PATIENCE = 30.0
#: The same for a last look at a deadline, when the results are wanted now or never.
LAST_LOOK = 120.0


@dataclass(frozen=True, slots=True)
class Results:
    """
    What has come of jobs.

    :param ended: The jobs that have ended, by id.
    :param pending: The last status word of the others, by id.
    """

    ended: dict[str, Job] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)

    def took(self, job: Job) -> None:
        """Keep a job that has ended."""
        self.pending.pop(job.job_id, None)
        self.ended[job.job_id] = job

    def add(self, later: Results) -> None:
        """Take over what was seen later."""
        for job in later.ended.values():
            self.took(job)
        self.pending.update(later.pending)


async def wait_for(
    job_ids: Iterable[str], settings: Settings, *, deadline: float, poke_interval: float, logger: Logger
) -> Results:
    """
    Wait until every job has ended, or until the deadline.

    :raises AccessDenied: the service rejects the connection's key.
    """
    results = Results()
    waited = await shared_pool(settings).wait(
        job_ids, deadline=deadline, poke_interval=poke_interval, on_end=results.took, logger=logger
    )
    results.pending.update(waited.pending)
    return results


async def fetch(
    job_ids: Iterable[str],
    settings: Settings,
    *,
    until: float = inf,
    patience: float = PATIENCE,
    once: bool = False,
    poke_interval: float,
    logger: Logger,
) -> Results:
    """
    Look at jobs that are believed to have ended, at once, and go on for as long as results come.

    :param until: Epoch seconds after which it ends all the same.
    :param patience: Seconds without a result after which it ends; more where one look may take longer.
    :param once: Do not look again at a job that turns out to be pending.
    :raises AccessDenied: the service rejects the connection's key.
    """
    results = Results()
    pending = await look_while_they_end(
        shared_pool(settings),
        job_ids,
        until=until,
        patience=patience,
        once=once,
        poke_interval=poke_interval,
        on_end=results.took,
        logger=logger,
    )
    results.pending.update(pending)
    return results


async def look_while_they_end(
    pool: Pool,
    job_ids: Iterable[str],
    *,
    until: float = inf,
    patience: float = PATIENCE,
    once: bool,
    poke_interval: float,
    on_end: Callable[[Job], bool | None],
    logger: Logger,
) -> dict[str, str]:
    """
    Look at jobs at once, and go on for as long as they turn out to have ended.

    However many they are and however slow the rate limit is: what bounds it is the time without one that has
    ended.

    :param job_ids: The jobs, oldest first as far as known.
    :param until: Epoch seconds after which it ends all the same.
    :param patience: Seconds without a job that has ended after which it ends; more where one look may take
        longer.
    :param once: Do not look again at a job that turns out to be pending.
    :param on_end: As :meth:`Pool.wait` says.
    :returns: The last status words of the jobs that are pending.
    :raises AccessDenied: the service rejects the connection's key.
    """
    settings = pool.settings
    patience = max(patience, settings.connect_timeout + settings.timeout)
    if settings.requests_per_second:
        patience = max(patience, 2 / settings.requests_per_second)
    words: dict[str, str] = dict.fromkeys(job_ids, NOT_SEEN)
    wanted = list(words)
    while wanted and (now := time.time()) < until:
        waited = await pool.wait(
            wanted,
            deadline=min(until, now + patience),
            poke_interval=poke_interval,
            look_now=True,
            once=once,
            on_end=on_end,
            logger=logger,
        )
        if len(waited.pending) == len(wanted):
            return {**words, **waited.pending}
        for job_id in wanted:
            del words[job_id]
        words |= waited.pending
        wanted = [job_id for job_id, word in waited.pending.items() if not once or word is NOT_SEEN]
    return words


async def look_newest_first(
    job_ids: Iterable[str],
    settings: Settings,
    *,
    since: float,
    until: float,
    poke_interval: float,
    logger: Logger,
) -> Results:
    """
    Look at jobs until one of them is pending: all have to end, so it answers for the rest.

    This is for a process that looks and leaves, and remembers nothing of those before it. The newest job is
    likely to end last, so it is looked at first; then two more, then four more, and so on.

    :param since: Epoch seconds of the first look by whichever process. Once that is longer ago than the
        service's grace for jobs that it does not find, the process stays for as long as the grace, and what
        is not found all the while is lost.
    :param until: Epoch seconds after which no look is worth waiting for.
    :raises AccessDenied: the service rejects the connection's key.
    """
    grace = SERVICES[settings.service].not_found_grace(settings)
    results = Results(pending=dict.fromkeys(job_ids, NOT_SEEN))
    newest_first = list(reversed(results.pending))
    first, count = 0, 1
    while batch := newest_first[first : first + count]:
        looked = await fetch(
            batch,
            settings,
            until=until,
            patience=BRIEF_PATIENCE,
            once=True,
            poke_interval=poke_interval,
            logger=logger,
        )
        results.add(looked)
        unfound = [job_id for job_id, word in looked.pending.items() if word is NOT_FOUND]
        if unfound and time.time() - since >= grace:
            looks_apart = grace / 4
            results.add(
                await fetch(
                    unfound,
                    settings,
                    until=until,
                    patience=grace + 2 * looks_apart,
                    poke_interval=looks_apart,
                    logger=logger,
                )
            )
        if any(job_id in results.pending for job_id in batch):
            break
        first, count = first + count, 2 * count
    return results
