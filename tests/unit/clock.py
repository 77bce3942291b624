# SPDX-License-Identifier: Apache-2.0

"""A clock that stands in for the module ``time`` in what a test is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from tests.clock import EPOCH, Loop, run

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

__all__ = ["EPOCH", "Clock"]

T = TypeVar("T")


class Clock:
    """Stands in for the module ``time``, and makes event loops that live by it."""

    def __init__(self) -> None:
        self._now = 1_000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """Seconds since some time before the test."""
        return self._now

    def time(self) -> float:
        """Seconds since 1970."""
        return EPOCH + self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self._now += seconds

    def loop(self) -> asyncio.AbstractEventLoop:
        """Make an event loop that lives by this clock."""
        return Loop(self)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; fail when it would wait for ever."""
        return run(main, self)
