# SPDX-License-Identifier: Apache-2.0

"""A service that is gone for ten minutes, while a run sends and while it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.unit.bulk.world import Service, World, prompts

if TYPE_CHECKING:
    from tests.unit.clock import Clock

ROWS = 200
MINUTES = 60.0


class Down(Service):
    """Is down from one instant to another one, in its own way."""

    def __init__(self, clock: Clock, how: httpx.Response | Exception, *, after: float) -> None:
        super().__init__()
        self._clock = clock
        self._how = how
        self.down_from = clock.monotonic() + after
        self.up_from = self.down_from + 10 * MINUTES
        self.refused = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer, or not."""
        if not self.down_from <= self._clock.monotonic() < self.up_from:
            return await super().__call__(request)
        self.refused += 1
        if isinstance(self._how, Exception):
            raise self._how
        return httpx.Response(self._how.status_code)


def run_through(world: World, *, how: Any, after: float) -> tuple[Down, dict[str, Any]]:
    """Make one attempt at a pace of ten requests a second; jobs take a minute."""
    assert world.clock
    clock = world.clock
    service = world.service = Down(clock, how, after=after)
    taken_at: dict[str, float] = {}

    def answer(prompt: str) -> str | None:
        ended = clock.monotonic() > taken_at.setdefault(prompt, clock.monotonic()) + MINUTES
        return f"Answer to {prompt}" if ended else None

    service.answer = answer
    world.fields["requests_per_second"] = 10
    manifest = world.attempt(prompts(ROWS), poke_interval=10.0, deadline=world.now() + 120 * MINUTES)
    assert clock.monotonic() > service.up_from
    return service, manifest


def check_all_is_right(world: World, manifest: dict[str, Any]) -> None:
    assert manifest["counts"]["succeeded"] == ROWS
    assert [row["output"] for row in world.results()] == [f"Answer to {prompt}" for prompt in prompts(ROWS)]


@pytest.mark.parametrize("after", [5.0, 60.0], ids=["sending", "waiting"])
def test_a_service_that_cannot_be_reached(timeless: World, after: float) -> None:
    """Nothing fails, nothing is lost, and nothing is paid twice, in one attempt; hardly anybody asks."""
    service, manifest = run_through(timeless, how=httpx.ConnectError("refused"), after=after)
    check_all_is_right(timeless, manifest)
    assert (service.paid, manifest["duplicates_possible"]) == (ROWS, 0)
    assert service.refused < 60


def test_a_service_that_answers_503_to_looks(timeless: World) -> None:
    """The jobs go on, and so does the wait."""
    service, manifest = run_through(timeless, how=httpx.Response(503), after=60.0)
    check_all_is_right(timeless, manifest)
    assert service.paid == ROWS
    assert service.refused < 60


def test_a_service_that_answers_503_to_requests(timeless: World) -> None:
    """What it may have taken is sent again a few times, and left to the next attempt; no row is lost."""
    service, manifest = run_through(timeless, how=httpx.Response(503), after=5.0)
    counts = manifest["counts"]
    assert counts["succeeded"] + counts["unknown"] == ROWS
    assert counts["unknown"] <= service.refused / 4 < 20
    again = timeless.attempt(prompts(ROWS), poke_interval=10.0)
    check_all_is_right(timeless, again)
    assert service.paid == ROWS
    assert again["duplicates_possible"] == service.refused
