# SPDX-License-Identifier: Apache-2.0

"""Event loops on which time only passes when everybody waits, so that days pass in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

#: An epoch instant in 2025; no clock starts at zero.
EPOCH = 1_750_000_000.0
#: Seconds in earnest that a thread may take which works for an event loop.
THREAD_SECONDS = 60.0


class Ticking(Protocol):
    """A clock of a test's own."""

    def monotonic(self) -> float:
        """Seconds since some time before the test."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


def run(main: Coroutine[Any, Any, T], clock: Ticking) -> T:
    """Run a coroutine to its end; fail when it would wait for ever."""
    with asyncio.Runner(loop_factory=lambda: Loop(clock)) as runner:
        return runner.run(main)


class Loop(asyncio.SelectorEventLoop):
    """
    An event loop that lives by a clock.

    :param clock: Where time passes.
    """

    def __init__(self, clock: Ticking) -> None:
        self._jumping = _JumpingSelector(clock)
        super().__init__(self._jumping)
        self._clock = clock

    def time(self) -> float:
        """Return the clock's seconds."""
        return self._clock.monotonic()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Let a thread work, for which time stands still."""
        self._jumping.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._returned)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait for the threads to end, for which time stands still."""
        self._jumping.threads += 1
        await super().shutdown_default_executor()

    def _returned(self, _: object) -> None:
        self._jumping.threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, clock: Ticking) -> None:
        super().__init__()
        self._clock = clock
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let time pass instead of waiting, when nothing is ready and no thread works."""
        ready = super().select(THREAD_SECONDS if self.threads and timeout != 0 else 0)
        if not ready and timeout != 0:
            if timeout is None:
                raise AssertionError("everybody waits for something that will not come")
            self._clock.sleep(timeout)
        return ready
