# SPDX-License-Identifier: Apache-2.0

"""Rate limit over a sliding window, written as ``100/s`` or ``250/min:http_date=true``."""

from __future__ import annotations

import math
from collections import deque
from email.utils import formatdate

from pydantic import PositiveInt, PrivateAttr

from airflow_provider_distribute.emulator.spec import Spec, build, split

PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def retry_after(seconds: float, now: float, *, http_date: bool) -> str:
    """The value of a ``Retry-After`` header in either form RFC 9110 allows; whole seconds, rounded up."""
    return formatdate(math.ceil(now + seconds), usegmt=True) if http_date else str(math.ceil(seconds))


class RateLimit(Spec):
    """
    At most ``requests`` in any window of ``period`` seconds: there is no burst above it.

    :param http_date: write ``Retry-After`` as an HTTP date instead of seconds.
    :param silent: send no ``Retry-After`` at all.
    """

    requests: PositiveInt
    period: float = 1.0
    http_date: bool = False
    silent: bool = False
    _granted: deque[float] = PrivateAttr(default_factory=deque)

    def wait(self, now: float) -> float:
        """Count a request that came at ``now``: 0 if it may pass, else the seconds until the next may."""
        while self._granted and self._granted[0] <= now - self.period:
            self._granted.popleft()
        if len(self._granted) >= self.requests:
            return self._granted[0] + self.period - now
        self._granted.append(now)
        return 0.0

    def headers(self, wait: float, now: float) -> dict[str, str]:
        """The headers of a refusal."""
        return {} if self.silent else {"Retry-After": retry_after(wait, now, http_date=self.http_date)}


def parse(text: str) -> RateLimit:
    """
    Read ``100/s``, ``250/min`` or ``10/s:http_date=true``.

    :raises ValueError: if it cannot be read.
    """
    name, parameters = split(text)
    requests, _, period = name.partition("/")
    if (period or "s") not in PERIODS:
        raise ValueError(f"{text!r}: no such period; there are {', '.join(PERIODS)}")
    return build(RateLimit, text, {**parameters, "requests": requests, "period": PERIODS[period or "s"]})
