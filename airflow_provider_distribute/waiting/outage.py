# SPDX-License-Identifier: Apache-2.0

"""When a whole service is in trouble: a pure decision over the looks of one pool."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from airflow_provider_distribute.pacing import rising

if TYPE_CHECKING:
    import random

    from airflow_provider_distribute.pacing import Backoff

#: So many different jobs in a row without an answer, and the service itself is taken to be down.
_DOWN_FROM = 3
#: Seconds without a storm of refusals, and the next one is news again.
_CALM = 3600.0


class Outage:
    """
    Counts looks in a row that got no usable answer.

    One job's trouble is that job's, however often it is looked at. When looks at three different jobs in a
    row have no answer the service counts as down, and then the pool sends one look at a time, ever more
    slowly, until one is answered.

    :param backoff: The waits between those looks.
    :param rng: Source of jitter.
    """

    def __init__(self, backoff: Backoff, rng: random.Random) -> None:
        self._backoff = backoff
        self._rng = rng
        self._jobs: set[str] = set()
        self.failures = 0
        self.quiet_until = -math.inf

    @property
    def down(self) -> bool:
        """Whether the service is taken to be down."""
        return self.failures >= _DOWN_FROM

    def width(self, connections: int) -> int:
        """Return how many looks may be under way at once."""
        return 1 if self.down else connections

    def failed(self, now: float, job_id: str | None = None) -> bool:
        """
        Report a look without an answer.

        :param job_id: What was looked at; without one, each failure counts as another job's.
        :returns: Whether this one is worth a line in the log: the 1st, 2nd, 4th, 8th … in a row are.
        """
        if job_id is not None and not self.down:
            if job_id in self._jobs:
                return False
            self._jobs.add(job_id)
        self.failures += 1
        if self.down:
            self.quiet_until = now + self._backoff.delay(self.failures - _DOWN_FROM + 1, self._rng)
        return rising(self.failures)

    def answered(self) -> int:
        """
        Report a look with an answer.

        :returns: How many in a row had none when the service was down; else 0.
        """
        ended = self.failures if self.down else 0
        self._jobs.clear()
        self.failures = 0
        self.quiet_until = -math.inf
        return ended


class Storms:
    """Counts the storms in which a service asks for fewer requests; a limit that is met for days has many."""

    def __init__(self) -> None:
        self._last = -math.inf
        self.count = 0

    def began(self, now: float) -> bool:
        """
        Report a storm.

        :returns: Whether it is worth a line in the log: the 1st, 2nd, 4th, 8th … without a calm hour are.
        """
        self.count = self.count + 1 if now - self._last < _CALM else 1
        self._last = now
        return rising(self.count)
