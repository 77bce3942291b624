# SPDX-License-Identifier: Apache-2.0

"""A job's life as a function of time: nothing ticks, a job is asked where it stands."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

from airflow_provider_distribute.emulator.script import PLAIN, Script

COMPRESS_FROM = 256


@dataclass(slots=True)
class Job:
    """
    One request a service accepted, and is paid for.

    :param number: 1 for the first job of the service, then counting.
    :param submitted: when it was accepted (seconds since the epoch).
    :param due: when it is finished (seconds since the epoch), unless its script says never.
    :param packed: the request's body, compressed when that pays.
    """

    id: str
    service: str
    kind: str
    number: int
    model: str
    submitted: float
    due: float
    packed: bytes
    script: Script = PLAIN
    looks: int = 0

    @property
    def request(self) -> bytes:
        """The request's body as it came."""
        return zlib.decompress(self.packed) if self.packed[:1] == b"\x78" else self.packed

    def done(self, now: float) -> bool:
        """Whether it has ended, well or badly."""
        return now >= self.due and not self.script.endless

    def failed(self, now: float) -> bool:
        """Whether it has ended badly."""
        return self.done(now) and self.script.error is not None

    def progress(self, now: float) -> float:
        """How far a job is that has not ended: from 0 to just below 1, where endless ones stay."""
        span = self.due - self.submitted
        return min((now - self.submitted) / span, math.nextafter(1.0, 0.0)) if span > 0 else 0.0


def pack(body: bytes) -> bytes:
    """Compress what is worth it; no JSON object begins with 0x78, as compressed data does."""
    return zlib.compress(body, 1) if len(body) >= COMPRESS_FROM else body


def stage(progress: float, stages: tuple[tuple[float, str], ...]) -> str:
    """The word for ``progress`` in a table of ``(from, word)`` that begins at 0 and rises."""
    return next(word for start, word in reversed(stages) if progress >= start)
