# SPDX-License-Identifier: Apache-2.0

"""The simulated clock that other tests live by."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.clock import EPOCH, Clock


def test_days_pass_at_once() -> None:
    """Time moves when everybody waits, by as much as the first of them waits."""
    clock = Clock()

    async def days() -> float:
        before = clock.time()
        await asyncio.gather(asyncio.sleep(3 * 86_400), asyncio.sleep(5))
        return clock.time() - before

    assert clock.run(days()) == pytest.approx(3 * 86_400)
    assert clock.time() == EPOCH + clock.monotonic()


def test_waiting_for_ever_fails() -> None:
    """A test in which nothing can happen any more ends with that message instead of hanging."""
    with pytest.raises(AssertionError, match="waits for something that will not come"):
        Clock().run(asyncio.Event().wait())
