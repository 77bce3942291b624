# SPDX-License-Identifier: Apache-2.0

"""Time that only passes when everybody waits, for all that runs in this process, Airflow included."""

from __future__ import annotations

import asyncio
import selectors
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

import time_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest

T = TypeVar("T")

#: An epoch instant in 2025; no clock starts at zero.
EPOCH = 1_750_000_000.0
#: Seconds in earnest that a thread may take which works for an event loop.
THREAD_SECONDS = 10.0


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
        self._monkeypatch.setattr(time, "monotonic", lambda: self._monotonic)
        self._monkeypatch.setattr(time, "sleep", self.sleep)
        self._monkeypatch.setattr(asyncio.events, "new_event_loop", self.loop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._wall.stop()

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

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
        return _Loop(self)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; fail when it would wait for ever."""
        with asyncio.Runner(loop_factory=self.loop) as runner:
            return runner.run(main)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._jumping = _JumpingSelector(clock)
        super().__init__(self._jumping)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self._jumping.threads += 1
        future.add_done_callback(self._returned)
        return future

    def _returned(self, _: object) -> None:
        self._jumping.threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for time. It does wait, in earnest, for threads that work for the loop."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or (self.threads and timeout > 0):
            ready = super().select(THREAD_SECONDS)
            assert ready, "everybody waits for something that will not come"
            return ready
        ready = super().select(0)
        if not ready and timeout > 0:
            self._clock.sleep(timeout)
        return ready
