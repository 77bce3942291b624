# SPDX-License-Identifier: Apache-2.0

"""How fast and when again, in simulated time."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from bisect import bisect_right
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_distribute.pacing import RETRY_AFTER_CAP, Backoff, RateLimit, rising

if TYPE_CHECKING:
    from collections.abc import Callable

RATES = st.floats(0.05, 200) | st.integers(1, 200).map(float) | st.sampled_from([0.5, 2.5, 4.1667, 20.5])


def sent_at(
    limit: RateLimit, *, until: float, wakes: Callable[[float], float], start: float = 0.0
) -> list[float]:
    """Return when a sender that always has something to send may send; ``wakes`` says when it comes back."""
    now, sent = start, []
    while now < start + until:
        wait = limit.take(now)
        if wait:
            now = wakes(now + wait)
        else:
            sent.append(now)
    return sent


def punctual(at: float) -> float:
    return at + 1e-9


def late(rng: random.Random, lateness: float) -> Callable[[float], float]:
    return lambda at: punctual(at) + rng.random() * lateness


def stalled(rng: random.Random, *, seconds: float, share: float, longest: float) -> Callable[[float], float]:
    """A process that stands still for ``share`` of the time, never for longer than ``longest`` seconds."""
    stalls: list[float] = []
    while sum(stalls) < share * seconds:
        stalls.append(min(rng.uniform(0, longest), share * seconds - sum(stalls)))
    moving = sorted(rng.uniform(0, seconds * (1 - share)) for _ in stalls)
    begins = [at + before for at, before in zip(moving, itertools.accumulate([0.0, *stalls]), strict=False)]
    ends = [begin + stall for begin, stall in zip(begins, stalls, strict=True)]

    def wakes(at: float) -> float:
        return punctual(max([at, *ends[: bisect_right(begins, at)][-1:]]))

    return wakes


def sent_at_best(rate: float, *, until: float, wakes: Callable[[float], float]) -> list[float]:
    """Return when who begins one by one and keeps to the window may send at the earliest."""
    count, sent = math.ceil(rate), [0.0]
    while sent[-1] < until:
        number = len(sent)
        opens = sent[-count] + 1.002 * count / rate if number >= count else 0.0
        sent.append(wakes(max(number / rate, opens, sent[-1])))
    return sent[:-1]


class TestCeiling:
    """The author's limit."""

    @given(
        rate=RATES,
        seed=st.integers(0, 1000),
        lateness=st.sampled_from([0.0, 0.001, 0.02, 0.3]),
        share=st.sampled_from([0.0, 0.2, 0.5]),
    )
    @settings(max_examples=200, deadline=None)
    def test_no_window_holds_more_than_the_ceiling(
        self, rate: float, seed: int, lateness: float, share: float
    ) -> None:
        """In any second at most the ceiling, rounded up, also when a sender makes up what it missed."""
        rng = random.Random(seed)
        count, seconds = math.ceil(rate), max(5.0, 20 / rate)
        dozes = late(rng, lateness)
        stalls = stalled(rng, seconds=seconds, share=share, longest=0.4)
        sent = sent_at(RateLimit(rate), until=seconds, wakes=lambda at: stalls(dozes(at)))
        for first, beyond in zip(sent, sent[count:], strict=False):
            assert beyond - first > count / rate >= 1.0

    @given(rate=RATES, pauses=st.lists(st.floats(0, 3), max_size=200))
    @settings(max_examples=100, deadline=None)
    def test_no_call_breaks_the_ceiling(self, rate: float, pauses: list[float]) -> None:
        """Whenever somebody asks, and whether or not it waited as it was told."""
        limit, count = RateLimit(rate), math.ceil(rate)
        asked = itertools.accumulate(pauses)
        sent = [at for at in asked for _ in range(3) if limit.take(at) == 0.0]
        for first, beyond in zip(sent, sent[count:], strict=False):
            assert beyond - first > count / rate

    @given(rate=RATES, seed=st.integers(0, 1000))
    @settings(max_examples=100, deadline=None)
    def test_the_ceiling_is_used(self, rate: float, seed: int) -> None:
        """A sender on a busy event loop still gets within 3 % of what the author allows."""
        seconds = max(10.0, 200 / rate)
        sent = sent_at(RateLimit(rate), until=seconds, wakes=late(random.Random(seed), 0.005))
        assert len(sent) >= 0.97 * rate * seconds - 1

    @given(rate=RATES, seed=st.integers(0, 1000), share=st.floats(0, 0.5), longest=st.floats(0.01, 0.4))
    @settings(max_examples=150, deadline=None)
    def test_nobody_makes_more_of_a_stalled_process(
        self, rate: float, seed: int, share: float, longest: float
    ) -> None:
        """What a stall costs is what no window lets anybody make up."""
        seconds = max(10.0, 20 / rate)
        wakes = stalled(random.Random(seed), seconds=seconds, share=share, longest=longest)
        sent = sent_at(RateLimit(rate), until=seconds, wakes=wakes)
        assert len(sent) >= len(sent_at_best(rate, until=seconds, wakes=wakes)) - 1

    @pytest.mark.parametrize("rate", [0.5, 1.0, 20.0, 200.0])
    def test_the_ceiling_is_used_despite_stalls(self, rate: float) -> None:
        """A process that stands still for a fifth of the time, up to 0.4 s at once, loses less than 3 %."""
        seconds, rng = max(10.0, 20 / rate), random.Random(0)
        shares = [
            len(sent_at(RateLimit(rate), until=seconds, wakes=wakes)) / rate / seconds
            for wakes in (stalled(rng, seconds=seconds, share=0.2, longest=0.4) for _ in range(40))
        ]
        assert 0.97 <= statistics.fmean(shares) <= 1.0

    @given(rate=RATES, idle=st.floats(1.001, 1e6))
    @settings(max_examples=50, deadline=None)
    def test_idleness_is_not_saved_up(self, rate: float, idle: float) -> None:
        """After a pause of any length the next second holds no more than any other, one by one."""
        limit = RateLimit(rate)
        before = sent_at(limit, until=3 / rate, wakes=punctual)
        after = sent_at(limit, until=0.999, wakes=punctual, start=before[-1] + 1.1 / rate + idle)
        assert len(after) <= math.ceil(rate)
        assert all(late - early > 0.99 / rate for early, late in itertools.pairwise(after))

    def test_sends_are_spread(self) -> None:
        """Ten a second are one every tenth of a second from the first on, not ten at once."""
        sent = sent_at(RateLimit(10), until=5, wakes=punctual)
        gaps = [after - before for before, after in itertools.pairwise(sent)]
        assert max(gaps) < 0.2
        assert min(gaps) > 0.05

    def test_waits_are_exact(self) -> None:
        """Whoever waits as long as it was told may go then."""
        limit = RateLimit(0.5)
        assert limit.take(100.0) == 0.0
        wait = limit.take(100.0)
        assert 1.9 < wait < 2.1
        assert limit.take(100.0 + wait) == 0.0

    def test_no_ceiling_is_no_limit(self) -> None:
        """Until the service objects, everything goes at once."""
        limit = RateLimit()
        assert [limit.take(5.0) for _ in range(5000)] == [0.0] * 5000
        assert limit.rate == math.inf


class TestThrottling:
    """The service's limit."""

    def test_429_pauses_everybody(self) -> None:
        """Without ``Retry-After`` for a second, with it for as long as it says."""
        for retry_after, pause in ((None, 1.0), (7.0, 7.0), (0.0, 0.0)):
            limit = RateLimit(10)
            limit.take(100.0)
            limit.throttled(100.0, retry_after)
            assert limit.take(100.0) == pytest.approx(max(pause, 0.05), abs=0.11)

    def test_a_day_is_capped(self) -> None:
        """``Retry-After: 86400`` does not park paid work for a day."""
        limit = RateLimit(10)
        limit.throttled(0.0, 86_400.0)
        assert limit.take(0.0) == RETRY_AFTER_CAP
        assert limit.take(RETRY_AFTER_CAP) == 0.0

    def test_a_shorter_pause_does_not_end_a_longer_one(self) -> None:
        """The longest of several answers counts."""
        limit = RateLimit(10)
        limit.throttled(0.0, 60.0)
        limit.throttled(1.0, 1.0)
        assert limit.take(2.0) == 58.0

    def test_429_halves_the_rate(self) -> None:
        """Afterwards half as many go as before, for everybody who shares the limit."""
        limit = RateLimit(10)
        limit.throttled(0.0)
        assert limit.rate == 5.0
        assert len(sent_at(limit, until=10, wakes=punctual, start=1.0)) == pytest.approx(50, abs=2)

    def test_one_burst_of_429_is_one_objection(self) -> None:
        """Thirty requests in flight are refused together: the rate is halved once, and said once."""
        limit = RateLimit(100)
        assert limit.throttled(0.0)
        assert not any(limit.throttled(0.01 * n) for n in range(1, 30))
        assert limit.rate == 50.0
        assert limit.throttled(2.0)
        assert limit.rate == 25.0

    def test_successes_bring_it_back(self) -> None:
        """Each success returns a little, never more than the author's ceiling."""
        limit = RateLimit(10)
        limit.throttled(0.0)
        for _ in range(10):
            limit.succeeded()
        assert limit.rate == pytest.approx(6.0)
        for _ in range(1000):
            limit.succeeded()
        assert limit.rate == 10.0

    def test_a_service_without_a_ceiling_shows_its_own(self) -> None:
        """The rate that was refused is what was sent in the last second; half of it goes on."""
        limit = RateLimit()
        for n in range(200):
            limit.take(n * 0.025)
        limit.throttled(5.0)
        assert limit.rate == pytest.approx(20.0, abs=1)

    def test_the_limit_is_lifted_again(self) -> None:
        """A service that has taken four times what it once refused is not limited any more."""
        limit = RateLimit()
        limit.take(0.0)
        limit.throttled(0.0)
        assert limit.rate == 0.5
        for _ in range(30):
            limit.succeeded()
        assert limit.rate < 4.0
        for _ in range(10):
            limit.succeeded()
        assert limit.rate == math.inf

    def test_a_long_storm_does_not_lift_the_limit(self) -> None:
        """A quota that is used up for minutes was reached at the rate at which the storm began."""
        limit = RateLimit()
        for n in range(200):
            limit.take(n * 0.025)
        for n in range(30):
            limit.throttled(5.0 + 2 * n)
        for _ in range(40):
            limit.succeeded()
        assert limit.rate == pytest.approx(4.0, abs=0.1)

    def test_the_rate_never_reaches_zero(self) -> None:
        """However often the service objects, one request a minute finds out whether it still does."""
        limit = RateLimit(1)
        now = 0.0
        for _ in range(50):
            now += 100.0
            limit.throttled(now)
        assert limit.rate == pytest.approx(1 / 60)

    @given(
        rate=RATES, events=st.lists(st.tuples(st.floats(0, 5), st.booleans(), st.floats(0, 1e6)), max_size=60)
    )
    @settings(max_examples=100, deadline=None)
    def test_objections_never_break_the_ceiling(
        self, rate: float, events: list[tuple[float, bool, float]]
    ) -> None:
        """Whatever order 429s and successes come in, waits end, and no window holds more than the ceiling."""
        limit = RateLimit(rate)
        now, sent = 0.0, []
        for pause, refused, retry_after in events:
            now += pause
            while wait := limit.take(now):
                assert 0 < wait <= RETRY_AFTER_CAP + 61 + 1 / rate
                now += wait + 1e-9
            sent.append(now)
            if refused:
                limit.throttled(now, retry_after)
            else:
                limit.succeeded()
            assert 0 < limit.rate <= rate or limit.rate == pytest.approx(1 / 60)
        count = math.ceil(rate)
        for first, beyond in zip(sent, sent[count:], strict=False):
            assert beyond - first > count / rate


class TestBackoff:
    """Waits after failures."""

    @given(
        failures=st.integers(1, 100_000),
        base=st.floats(0.001, 100),
        cap=st.floats(0.001, 1000),
        seed=st.integers(0, 100),
    )
    def test_bounds(self, failures: int, base: float, cap: float, seed: int) -> None:
        """Between half and all of the doubled base, never beyond the cap, however many failures."""
        longest = min(cap, base * 2.0 ** min(failures - 1, 64))
        delay = Backoff(base=base, cap=cap).delay(failures, random.Random(seed))
        assert longest / 2 <= delay <= longest

    def test_it_doubles(self) -> None:
        """1, 2, 4, 8 … seconds at the longest, up to a minute."""
        rng = random.Random(0)
        longest = [max(Backoff().delay(failures, rng) for _ in range(2000)) for failures in range(1, 9)]
        assert longest == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60], rel=0.01)

    def test_those_who_failed_together_come_back_apart(self) -> None:
        """Two waits are not the same."""
        rng = random.Random(0)
        assert len({Backoff().delay(3, rng) for _ in range(10)}) == 10


def test_failures_are_told_as_they_rise() -> None:
    """The 1st, 2nd, 4th, 8th … in a row: an hour of trouble is a dozen lines."""
    assert [failures for failures in range(1, 100) if rising(failures)] == [1, 2, 4, 8, 16, 32, 64]
