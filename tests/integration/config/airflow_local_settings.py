# SPDX-License-Identifier: Apache-2.0

"""
Time, compressed: a fortieth of the waits after requests without an answer, and of that for a last look.

Airflow imports this file in each of its processes. Ten minutes of outage then pass in fifteen seconds, with
as many requests; everything else is as it is anywhere. Tasks, which are forked, find the package imported,
too.
"""

from __future__ import annotations

from airflow_provider_distribute.bulk import submission
from airflow_provider_distribute.pacing import Backoff
from airflow_provider_distribute.waiting import pool, results

#: Airflow would take over everything else that is defined here.
__all__: list[str] = []

COMPRESSION = 40


def compressed(backoff: Backoff) -> Backoff:
    """Return the same waits, as much shorter."""
    return Backoff(base=backoff.base / COMPRESSION, cap=backoff.cap / COMPRESSION)


pool.BACKOFF = compressed(pool.BACKOFF)
submission.BACKOFF = compressed(submission.BACKOFF)
results.LAST_LOOK /= COMPRESSION
