# SPDX-License-Identifier: Apache-2.0

"""
How fast, and when again: pure decisions about time. ``now`` is always an argument, in seconds.

:class:`RateLimit` says whether a request may go now. It holds the author's ceiling exactly, and below that it
follows what the service says: a 429 halves the rate for everybody who shares the limit, each success brings a
little of it back. :class:`Backoff` says how long to wait after the n-th failure in a row.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

__all__ = ["RETRY_AFTER_CAP", "Backoff", "RateLimit", "rising"]

#: The longest ``Retry-After`` we obey, in seconds. A service that asks for a day is asked again after this.
RETRY_AFTER_CAP = 600.0

#: What a 429 without ``Retry-After`` pauses everybody for, in seconds.
_PAUSE = 1.0
#: A throttled rate never falls below one request in this many seconds.
_SLOWEST = 60.0
#: 429s that arrive within this many seconds answer requests of the same burst: they halve the rate once.
_ONE_STORM = 1.0
#: A success gives back this share of a request per second.
_RECOVERY = 0.1
#: Without a ceiling the limit is lifted again once it is this many times the rate at which a storm began.
_LIFTED_AT = 4.0
#: Who comes at most this many seconds late was kept from its turns, and makes them up as far as the window
#: lets it. Who comes later had nothing to send, and begins one by one.
_KEPT = 1.0
#: Clocks here and at the service do not agree to the microsecond: a window is this much longer than a second.
_GUARD = 1.002


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    Exponential waits with jitter.

    :param base: Seconds after the first failure.
    :param cap: The longest wait in seconds.
    """

    base: float = 1.0
    cap: float = 60.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """
        Return the seconds to wait after ``failures`` failures in a row.

        Between half and all of ``base * 2 ** (failures - 1)``, so that those who failed together do not come
        back together.
        """
        longest = min(self.cap, self.base * 2.0 ** min(failures - 1, 64))
        return longest * rng.uniform(0.5, 1.0)


def rising(failures: int) -> bool:
    """Return whether the n-th failure in a row is worth a line in the log: the 1st, 2nd, 4th, 8th … are."""
    return failures & (failures - 1) == 0


class RateLimit:
    """
    One connection's rate limit.

    :param per_second: The author's ceiling; ``None``: no ceiling until the service objects.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self.ceiling = math.inf if per_second is None else per_second
        self._rate = self.ceiling
        self._turn = -math.inf
        self._expected = -math.inf
        self._paused_until = -math.inf
        self._storm_until = -math.inf
        self._refused_rate = math.inf
        self._answered = True
        self._sent: deque[float] = deque(maxlen=1024 if per_second is None else math.ceil(per_second))

    @property
    def rate(self) -> float:
        """Requests per second allowed at the moment; infinite when nobody limits them."""
        return self._rate

    def take(self, now: float) -> float:
        """
        Take a turn, or learn when to ask again.

        :returns: ``0.0``: the request may go now and is counted; else the seconds to wait, then ask again.
        """
        wait = max(self._paused_until, self._turn, self._window_opens()) - now
        missed = _KEPT if now - self._expected <= _KEPT else 0.0
        self._expected = now + max(wait, 0.0)
        if wait > 0:
            return wait
        if self._rate < math.inf:
            self._turn = max(now - missed, self._turn) + 1 / self._rate
        self._sent.append(now)
        return 0.0

    def _window_opens(self) -> float:
        """What is made up must not squeeze more than the ceiling into any one second."""
        if self.ceiling == math.inf or len(self._sent) < (count := math.ceil(self.ceiling)):
            return -math.inf
        return self._sent[-count] + _GUARD * count / self.ceiling

    def throttled(self, now: float, retry_after: float | None = None) -> bool:
        """
        Report that the service asked for fewer requests; everybody who shares this limit slows down.

        :returns: Whether this opens a storm, rather than being part of the one that goes on.
        """
        pause = min(_PAUSE if retry_after is None else retry_after, RETRY_AFTER_CAP)
        self._paused_until = max(self._paused_until, now + pause)
        if now < self._storm_until:
            return False
        self._storm_until = max(now + _ONE_STORM, self._paused_until)
        rate = self._rate if self._rate < math.inf else self._observed(now)
        if self._answered:
            self._refused_rate, self._answered = rate, False
        self._rate = max(1 / _SLOWEST, rate / 2)
        self._turn = self._paused_until
        return True

    def _observed(self, now: float) -> float:
        recent = [sent for sent in self._sent if now - sent <= 1.0]
        return float(max(1, len(recent)))

    def succeeded(self) -> None:
        """Report an answer that was not a refusal; the rate grows back towards the ceiling."""
        self._answered = True
        if self._rate == self.ceiling:
            return
        self._rate = min(self.ceiling, self._rate + _RECOVERY)
        if self.ceiling == math.inf and self._rate >= _LIFTED_AT * self._refused_rate:
            self._rate = math.inf
