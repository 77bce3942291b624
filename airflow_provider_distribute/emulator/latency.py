# SPDX-License-Identifier: Apache-2.0

"""
How long jobs take: distributions, written as ``lognormal:median=30,sigma=1``.

===============================  =====================================================================
spec                             a job is finished
===============================  =====================================================================
``constant:seconds=2`` or ``2``  that many seconds after it was submitted
``uniform:low=2,high=10``        between the two bounds
``exponential:mean=30``          after an exponentially distributed time
``lognormal:median=30,sigma=1``  after a log-normally distributed time
``fifo:rate=10,noise=0``         in submission order, ``rate`` jobs a second; ``noise`` is the standard
                                 deviation, in seconds, of each job's distance from its turn
``wave:after=60``                together with all jobs submitted since the wave began: ``after``
                                 seconds after the first of them; the next job starts the next wave
===============================  =====================================================================

All times are in seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, PositiveFloat, PrivateAttr

from airflow_provider_distribute.emulator.spec import Spec, build, split

if TYPE_CHECKING:
    from random import Random


class Latency(Spec):
    """Base of all distributions. An instance may remember earlier jobs: make a new one for each service."""

    def finish(self, now: float, chance: Random) -> float:
        """Return the instant at which a job submitted at ``now`` is finished; never before ``now``."""
        raise NotImplementedError


class Constant(Latency):
    """Every job takes ``seconds``."""

    seconds: NonNegativeFloat = 0.0

    def finish(self, now: float, chance: Random) -> float:
        """See :meth:`Latency.finish`."""
        return now + self.seconds


class Uniform(Latency):
    """Between ``low`` and ``high`` seconds."""

    low: NonNegativeFloat = 0.0
    high: NonNegativeFloat

    def finish(self, now: float, chance: Random) -> float:
        """See :meth:`Latency.finish`."""
        return now + chance.uniform(self.low, self.high)


class Exponential(Latency):
    """Exponential with the given ``mean`` in seconds."""

    mean: PositiveFloat

    def finish(self, now: float, chance: Random) -> float:
        """See :meth:`Latency.finish`."""
        return now + chance.expovariate(1 / self.mean)


class LogNormal(Latency):
    """Log-normal around ``median`` seconds; ``sigma`` is the standard deviation of the logarithm."""

    median: PositiveFloat
    sigma: NonNegativeFloat = 1.0

    def finish(self, now: float, chance: Random) -> float:
        """See :meth:`Latency.finish`."""
        return now + chance.lognormvariate(math.log(self.median), self.sigma)


class Fifo(Latency):
    """A queue served at ``rate`` jobs a second, in submission order but for ``noise`` seconds."""

    rate: PositiveFloat
    noise: NonNegativeFloat = 0.0
    _last_turn: float = PrivateAttr(default=-math.inf)

    def finish(self, now: float, chance: Random) -> float:
        """See :meth:`Latency.finish`."""
        self._last_turn = max(self._last_turn, now) + 1 / self.rate
        return max(now, self._last_turn + chance.gauss(0, self.noise)) if self.noise else self._last_turn


class Wave(Latency):
    """All jobs of a wave finish at one instant, ``after`` seconds from the first of them."""

    after: NonNegativeFloat = Field(default=60.0)
    _instant: float = PrivateAttr(default=-math.inf)

    def finish(self, now: float, chance: Random) -> float:
        """See :meth:`Latency.finish`."""
        if now > self._instant:
            self._instant = now + self.after
        return self._instant


DISTRIBUTIONS: dict[str, type[Latency]] = {
    "constant": Constant,
    "uniform": Uniform,
    "exponential": Exponential,
    "lognormal": LogNormal,
    "fifo": Fifo,
    "wave": Wave,
}


def parse(text: str) -> Latency:
    """
    Read a spec such as ``lognormal:median=30,sigma=1``; a bare number is that many seconds.

    :raises ValueError: if the distribution is unknown or a parameter is wrong.
    """
    name, parameters = split(text)
    try:
        distribution = DISTRIBUTIONS[name]
    except KeyError:
        if parameters:
            raise ValueError(f"{text!r}: no such latency; there are {', '.join(DISTRIBUTIONS)}") from None
        return build(Constant, text, {"seconds": name})
    return build(distribution, text, parameters)
