# SPDX-License-Identifier: Apache-2.0

"""Time that only passes when everybody waits, for all that runs in this process, Airflow included."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

import time_machine

from tests.clock import EPOCH, Loop, run

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import pytest

T = TypeVar("T")


class Clock:
    """
    Stands in for the process's clocks, and makes event loops that live by it.

    :cvar slept: Seconds of each wait so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept: list[float] = []
        self._monotonic = 1_000.0
        self._wall = time_machine.travel(datetime.fromtimestamp(EPOCH, tz=UTC), tick=False)
        self._monkeypatch = monkeypatch

    def __enter__(self) -> Self:
        self._traveller = self._wall.start()
        self._monkeypatch.setattr(time, "monotonic", self.monotonic)
        self._monkeypatch.setattr(time, "sleep", self.sleep)
        self._monkeypatch.setattr(asyncio.events, "new_event_loop", self.loop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._wall.stop()

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some time before the test."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self._monotonic += seconds
        self._traveller.shift(seconds)

    def sleep_until(self, instant: datetime) -> None:
        """Let time pass up to an instant, or not at all when it is over."""
        self.sleep(max(0.0, instant.timestamp() - self.now))

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return an event loop that lives by this clock."""
        return Loop(self)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; fail when it would wait for ever."""
        return run(main, self)
