# SPDX-License-Identifier: Apache-2.0

"""The schedule: what it promises, whatever happens to the jobs and the answers."""

from __future__ import annotations

import random
import statistics
import tracemalloc
from collections import Counter, deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_distribute.waiting.schedule import JITTER, PACE, SCOUT, Schedule

P = 30.0
IN_FLIGHT = 32
LATENCY = 0.05


class Service:
    """Jobs that end when they are told to, and a clock; one schedule waits for them as the pool does."""

    def __init__(self, seed: int = 0) -> None:
        self.schedule = Schedule(random.Random(seed))
        self.now = 0.0
        self.ends: dict[str, float] = {}
        self.looks: list[tuple[float, str]] = []
        self.delays: list[float] = []
        self.earned = 0.0
        self.answers: deque[tuple[float, str]] = deque()

    def submit(self, *lasts: float, poke_interval: float = P) -> list[str]:
        """Add a job for each number of seconds until it ends."""
        keys = [f"job-{len(self.ends) + index}" for index in range(len(lasts))]
        for key, seconds in zip(keys, lasts, strict=True):
            self.ends[key] = self.now + seconds
            self.schedule.add(key, now=self.now, poke_interval=poke_interval)
        return keys

    def run(self, until: float) -> Service:
        """Send looks and tell answers until an instant."""
        while (step := self._next_step()) <= until:
            self._move(step)
            for key in self.schedule.due(step, IN_FLIGHT - len(self.answers)):
                self.looks.append((step, key))
                self.answers.append((step + LATENCY, key))
            while self.answers and self.answers[0][0] <= step:
                key = self.answers.popleft()[1]
                done = self.ends[key] <= step
                self.delays += [step - self.ends[key]] * done
                self.schedule.saw(key, done=done, now=step)
        self._move(until)
        return self

    def _next_step(self) -> float:
        at = self.schedule.next_at(self.now) if len(self.answers) < IN_FLIGHT else None
        return min([when for when, _ in self.answers] + ([] if at is None else [at]), default=float("inf"))

    def _move(self, now: float) -> None:
        self.earned += len(self.schedule) * (now - self.now) / P
        self.now = now


def waiting(*lasts: float, until: float, seed: int = 0, poke_interval: float = P) -> Service:
    """Jobs that were submitted together, after waiting for them until an instant."""
    service = Service(seed)
    service.submit(*lasts, poke_interval=poke_interval)
    return service.run(until)


NEVER = 1e9


# What an author sees


def test_a_lone_job_is_looked_at_after_a_second_then_ever_more_slowly_up_to_poke_interval() -> None:
    """Steps between looks grow from 1 s and never pass poke_interval by more than jitter."""
    ages = [at for at, _ in waiting(NEVER, until=300).looks]
    steps = [later - earlier for earlier, later in pairwise([0.0, *ages])]

    assert steps[0] == pytest.approx(1, rel=JITTER)
    assert steps[0] < steps[1] < steps[2]
    assert max(steps) <= P * (1 + 2 * JITTER)
    assert len(steps) <= 300 / P * PACE + 4


@pytest.mark.parametrize("poke_interval", [P, 600.0])
@pytest.mark.parametrize("share", [0.2, 0.4, 2 / 3, 0.9])
def test_a_lone_job_that_takes_less_than_poke_interval_is_found_within_half_of_it(
    poke_interval: float, share: float
) -> None:
    """On average, whatever it takes, though its first looks come at about the same time always."""
    takes = share * poke_interval
    delays = [
        waiting(takes, until=3 * poke_interval, seed=seed, poke_interval=poke_interval).delays[0]
        for seed in range(300)
    ]

    assert statistics.fmean(delays) <= poke_interval / 2


def test_the_first_look_at_a_lone_job_comes_before_its_poke_interval_is_over() -> None:
    """An interval below a second is kept as well."""
    looks = waiting(NEVER, until=0.2, poke_interval=0.2).looks

    assert looks[0][0] == pytest.approx(SCOUT * 0.2, rel=JITTER)


def test_a_job_that_is_not_alone_any_more_has_no_early_look() -> None:
    """Two jobs from the start: neither is looked at before a quarter of poke_interval is over."""
    looks = waiting(NEVER, NEVER, until=P).looks

    assert looks[0][0] > P / 4


def test_a_thousand_jobs_cost_no_early_looks() -> None:
    """They come at once, and the first of them counts as one among many."""
    service = waiting(*[NEVER] * 1000, until=1.2)

    assert len(service.looks) <= 1.2 * 1000 / P * PACE + 1


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_jobs_that_end_in_order_cost_fewer_looks_and_are_found_sooner(count: int) -> None:
    """FIFO over an hour, beside a look at every job every poke_interval."""
    service = waiting(*[(index + 1) * 3600 / count for index in range(count)], until=3700)

    assert len(service.delays) == count
    assert len(service.looks) < {10: 0.9, 100: 0.3, 1000: 0.1}[count] * service.earned
    assert statistics.fmean(service.delays) < P / 2


def test_ten_thousand_jobs_over_an_hour_cost_at_most_three_looks_each() -> None:
    """The figure a bulk run is planned with, at a mean delay far below 30 s."""
    service = waiting(*[(index + 1) * 0.36 for index in range(10_000)], until=3700)

    assert len(service.delays) == 10_000
    assert len(service.looks) <= 30_000
    assert statistics.fmean(service.delays) < P / 2


def test_a_wave_is_found_at_once_and_costs_little_to_wait_for() -> None:
    """Five hundred jobs that all end at the same instant: the first find leads to the others."""
    service = waiting(*[1800.0] * 500, until=1900)

    assert len(service.delays) == 500
    assert max(service.delays) < P
    assert len(service.looks) < service.earned / 2


def test_jobs_in_no_order_are_found_as_soon_as_with_a_fixed_interval() -> None:
    """Uniform over half an hour: the mean delay of 1,000 jobs is half of poke_interval at most."""
    rng = random.Random(1)
    service = waiting(*[rng.uniform(0, 1800) for _ in range(1000)], until=1900)

    assert len(service.delays) == 1000
    assert statistics.fmean(service.delays) <= P / 2
    assert len(service.looks) <= 1.1 * service.earned


def test_an_order_that_breaks_is_unlearned() -> None:
    """200 jobs end in order, then 200 in none: the last ones are found as with a fixed interval."""
    rng = random.Random(2)
    ordered = [index * 3.0 for index in range(200)]
    service = waiting(*ordered, *[rng.uniform(600, 2400) for _ in range(200)], until=2500)

    assert len(service.delays) == 400
    assert statistics.fmean(service.delays[-150:]) <= 0.6 * P


def test_looks_are_spread_out_when_a_thousand_jobs_come_at_once() -> None:
    """No second of the first minute has more than three times its share."""
    looks = waiting(*[NEVER] * 1000, until=60).looks

    assert max(Counter(int(at) for at, _ in looks).values()) <= 3 * 1000 / P


def test_looks_are_even_after_the_first_ones() -> None:
    """A hundred jobs that came at once: from then on, no five seconds are far from their share."""
    looks = waiting(*[NEVER] * 100, until=4 * P).looks
    counts = Counter(int(at / 5) for at, _ in looks)
    later = [counts[index] for index in range(9, 24)]

    assert min(later) >= 0.5 * 100 * 5 / P
    assert max(later) <= 1.5 * 100 * 5 / P


def test_every_job_has_its_turn() -> None:
    """No job among a hundred is passed over for three poke_intervals while nothing is known of the order."""
    looks = waiting(*[NEVER] * 100, until=4 * P).looks

    assert {key for at, key in looks if at > P} == {f"job-{index}" for index in range(100)}


def test_each_poke_interval_is_kept() -> None:
    """Slow and fast waiters share a schedule; each gets the looks of its own interval."""
    service = Service()
    fast = set(service.submit(*[NEVER] * 20, poke_interval=10))
    service.submit(*[NEVER] * 20, poke_interval=100)
    looks = Counter(key in fast for _, key in service.run(200).looks)

    assert looks[True] == pytest.approx(20 * 200 / 10, rel=0.1)
    assert looks[False] == pytest.approx(20 * 200 / 100, rel=0.25)


def test_the_same_seed_gives_the_same_looks_and_another_seed_others() -> None:
    """Jitter comes from the generator that is passed in, and from nowhere else."""
    first, same, other = (waiting(*[NEVER] * 10, until=200, seed=seed).looks for seed in (1, 1, 2))

    assert first == same
    assert first != other


# What the pool relies on


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(random.Random(0))


def lone(schedule: Schedule) -> str:
    """A job in flight since 2 s, added at 0 s."""
    schedule.add("a", now=0, poke_interval=P)
    (key,) = schedule.due(2, 10)
    return key


@pytest.mark.parametrize("poke_interval", [0, -1, float("inf"), float("nan")])
def test_a_poke_interval_that_is_no_interval_is_refused(schedule: Schedule, poke_interval: float) -> None:
    """The error names the value; nothing is added."""
    with pytest.raises(ValueError, match=repr(poke_interval)):
        schedule.add("a", now=0, poke_interval=poke_interval)
    assert len(schedule) == 0


def test_an_empty_schedule_has_no_next_look(schedule: Schedule) -> None:
    """There is nothing to wake up for before a job comes, and after the last has gone."""
    assert schedule.next_at(0) is None
    schedule.saw(lone(schedule), done=True, now=2)

    assert schedule.next_at(2) is None
    assert schedule.due(1000, 10) == []


def test_a_job_in_flight_is_not_due_again(schedule: Schedule) -> None:
    """However late its answer comes."""
    lone(schedule)

    assert schedule.next_at(2) is None
    assert schedule.due(1000, 10) == []


def test_a_limit_of_none_gives_none(schedule: Schedule) -> None:
    """A pool without a free connection gets no key, and keeps the turn for later."""
    schedule.add("a", now=0, poke_interval=P)

    assert schedule.due(2, 0) == []
    assert schedule.due(2, 1) == ["a"]


def test_a_failed_look_is_repeated_when_its_time_has_come_not_before(schedule: Schedule) -> None:
    """The job waits for retry_in, even if that is longer than poke_interval."""
    schedule.failed(lone(schedule), now=2, retry_in=100)

    assert schedule.next_at(3) == 102
    assert schedule.due(101.9, 10) == []
    assert schedule.due(102, 10) == ["a"]


def test_an_outage_costs_no_looks_but_the_retries(schedule: Schedule) -> None:
    """When every job waits for its retry, the next look is the first retry."""
    for index in range(50):
        schedule.add(str(index), now=0, poke_interval=P)
    for second in range(1, 200):
        for key in schedule.due(second, 100):
            schedule.failed(key, now=second, retry_in=1000)

    at = schedule.next_at(200)
    assert at is not None
    assert 1001 <= at <= 1000 + 2 * P


def test_one_jobs_retries_cost_the_others_nothing(schedule: Schedule) -> None:
    """A job that never answers is asked every second; the other nine have their turns as ever."""
    for index in range(10):
        schedule.add(str(index), now=0, poke_interval=P)
    looks: Counter[str] = Counter()
    for second in range(1, 601):
        for key in schedule.due(second, 100):
            looks[key] += 1
            if key == "3":
                schedule.failed(key, now=second, retry_in=1)
            else:
                schedule.saw(key, done=False, now=second)

    assert looks["3"] > 500
    assert min(looks.values()) >= 600 / P * 0.8


def test_a_hint_makes_a_job_due_at_once(schedule: Schedule) -> None:
    """A webhook's word is worth a look now."""
    for index in range(100):
        schedule.add(str(index), now=0, poke_interval=P)
    schedule.hint("77", now=0.01)

    assert schedule.next_at(0.01) == 0.01
    assert schedule.due(0.01, 1) == ["77"]


def test_a_hint_during_a_look_leads_to_another_look(schedule: Schedule) -> None:
    """The look may have been answered before the job ended."""
    key = lone(schedule)
    schedule.hint(key, now=2)
    assert schedule.due(2, 10) == []
    schedule.saw(key, done=False, now=2.1)

    assert schedule.due(2.1, 10) == [key]


def test_a_hint_ends_the_wait_for_a_retry(schedule: Schedule) -> None:
    """Who hints knows more than the one who failed to ask."""
    schedule.failed(lone(schedule), now=2, retry_in=100)
    schedule.hint("a", now=3)

    assert schedule.due(3, 10) == ["a"]
    assert schedule.due(102, 10) == []


def test_a_discarded_job_is_forgotten_even_in_flight(schedule: Schedule) -> None:
    """Its answer, failure and hints are ignored."""
    key = lone(schedule)
    schedule.discard(key, now=3)
    schedule.saw(key, done=False, now=3)
    schedule.failed(key, now=3, retry_in=0)
    schedule.hint(key, now=3)
    schedule.discard(key, now=3)

    assert len(schedule) == 0
    assert schedule.next_at(4) is None


def test_a_promise_to_a_discarded_job_is_not_kept_for_its_successor(schedule: Schedule) -> None:
    """A key that comes back starts afresh."""
    schedule.failed(lone(schedule), now=2, retry_in=50)
    schedule.discard("a", now=9)
    schedule.add("a", now=10, poke_interval=P)

    assert schedule.next_at(10) == pytest.approx(11, abs=JITTER)


def test_a_job_added_twice_keeps_the_shorter_interval(schedule: Schedule) -> None:
    """Two waiters for one job are served as the more impatient asks, and there is one job."""
    for poke_interval in (100, 10, 50):
        schedule.add("a", now=0, poke_interval=poke_interval)
    looks = 0
    for second in range(1, 200):
        for key in schedule.due(second, 10):
            schedule.saw(key, done=False, now=second)
            looks += 1

    assert len(schedule) == 1
    assert looks == pytest.approx(200 / 10, abs=5)


def test_a_job_that_gets_a_shorter_interval_leaves_the_others_theirs() -> None:
    """One impatient waiter among twenty jobs costs looks at its own job only."""
    service = Service()
    service.submit(*[NEVER] * 20, poke_interval=100)
    service.schedule.add("job-7", now=0, poke_interval=10)
    looks = Counter(key for _, key in service.run(1000).looks)

    assert looks.pop("job-7") == pytest.approx(1000 / 10, rel=0.15)
    assert looks.total() <= 19 * 1000 / 100 * 1.1


def test_many_jobs_that_get_a_shorter_interval_are_looked_at_by_it() -> None:
    """All of two hundred, one after another; an interval of 100 s would give each a look or two."""
    service = Service()
    for key in service.submit(*[NEVER] * 200, poke_interval=100):
        service.schedule.add(key, now=0, poke_interval=10)
    looks = Counter(key for _, key in service.run(100).looks)

    assert len(looks) == 200
    assert min(looks.values()) >= 5


def test_a_job_whose_interval_shrinks_in_flight_is_not_sent_twice(schedule: Schedule) -> None:
    """The look that is under way counts for the new interval as well, and no other waits for it."""
    lone(schedule)
    schedule.add("b", now=2, poke_interval=P)
    schedule.failed("b", now=2, retry_in=1000)
    schedule.add("a", now=2, poke_interval=5)

    assert schedule.due(1001, 10) == []
    assert schedule.due(1002, 10) == ["b"]


def test_an_answer_that_nobody_waited_for_ends_the_job(schedule: Schedule) -> None:
    """Somebody else looked: the job is done all the same."""
    schedule.add("a", now=0, poke_interval=P)
    schedule.saw("a", done=True, now=0.5)

    assert schedule.next_at(1) is None


def test_the_head_of_the_line_may_wait_for_retries() -> None:
    """Jobs end in order until nobody answers for the oldest twenty: their retries find them."""
    service = waiting(*[10.0 * (index + 1) for index in range(60)], until=300)
    unanswered = {key for key, end in service.ends.items() if 300 < end <= 500}
    for key in unanswered:
        service.schedule.failed(key, now=300, retry_in=120)
    service.run(1000)

    assert len(service.delays) == 60
    assert min(at for at, key in service.looks if key in unanswered and at > 300.1) == 420


def test_a_pause_is_not_made_up_for_in_a_burst(schedule: Schedule) -> None:
    """The process slept for an hour: the looks it missed are not all sent at once."""
    for index in range(1000):
        schedule.add(str(index), now=0, poke_interval=P)

    assert len(schedule.due(3600, 10_000)) < 1000 / P


# For any course of events

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "due", "due", "discard", "hint", "done", "pending", "fail"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.1, 1.0, 10.0, 40.0]),
    ),
    min_size=20,
    max_size=100,
)


@settings(deadline=None)
@given(EVENTS, st.integers(0, 3))
def test_no_course_of_events_loses_or_doubles_a_job(events: list[tuple[str, int, float]], seed: int) -> None:
    """
    Keys that are due are waited for and not in flight, there are never more than asked for, and whoever
    is waited for at the end has a look within three intervals of the last answer.
    """
    schedule, now = Schedule(random.Random(seed)), 0.0
    waited: set[str] = set()
    flying: set[str] = set()

    for name, number, seconds in events:
        key = str(number)
        now += seconds
        if name == "add":
            schedule.add(key, now=now, poke_interval=[P, 7.0, 100.0][number % 3])
            waited.add(key)
        elif name == "discard":
            schedule.discard(key, now=now)
            waited.discard(key)
            flying.discard(key)
        elif name == "hint":
            schedule.hint(key, now=now)
        elif name == "due":
            keys = schedule.due(now, number)
            assert len(keys) == len(set(keys)) <= number
            assert waited - flying >= set(keys)
            flying.update(keys)
        elif name == "fail":
            schedule.failed(key, now=now, retry_in=seconds)
            flying.discard(key)
        else:
            schedule.saw(key, done=name == "done", now=now)
            flying.discard(key)
            waited -= {key} if name == "done" else set()
        assert len(schedule) == len(waited)

    for key in flying:
        schedule.failed(key, now=now, retry_in=0)
    looked: set[str] = set()
    end = now + 400
    while (at := schedule.next_at(now)) is not None and at <= end:
        assert at >= now
        now = at
        for key in schedule.due(now, 1):
            looked.add(key)
            schedule.saw(key, done=False, now=now)
    assert looked == waited


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 60), st.integers(1, 30), st.floats(1, 400)), min_size=1, max_size=6),
    st.sampled_from(["same", "order", "spread"]),
    st.integers(0, 5),
)
def test_looks_never_exceed_what_pending_and_finished_jobs_call_for(
    batches: list[tuple[float, int, float]], kind: str, seed: int
) -> None:
    """A pending job calls for one look in each interval, its end for one, a lone job for a few more."""
    service, rng = Service(seed), random.Random(seed)
    for gap, count, lasts in batches:
        service.submit(
            *{
                "same": [lasts] * count,
                "order": [lasts * (index + 1) / count for index in range(count)],
                "spread": [rng.uniform(0, lasts) for _ in range(count)],
            }[kind]
        )
        service.run(service.now + gap)
    service.run(service.now + 600)

    assert len(service.delays) == len(service.ends)
    assert len(service.looks) <= PACE * service.earned + len(service.delays) + 4 * len(batches)


def test_an_order_that_comes_and_goes_costs_no_more_than_a_fixed_interval() -> None:
    """Forty jobs in order, forty in none, and again: every turn is a surprise, and none is paid for twice."""
    rng = random.Random(3)
    service = Service()
    for block in range(12):
        service.submit(*[10.0 * index if block % 2 else rng.uniform(0, 400) for index in range(1, 41)])
        service.run(service.now + 400)
    service.run(service.now + 100)

    assert len(service.delays) == 480
    assert len(service.looks) <= 1.1 * service.earned
    assert statistics.fmean(service.delays) <= P / 2


@pytest.mark.parametrize("jobs", [50, 300])
def test_jobs_that_end_before_anybody_looks_are_found_like_a_backlog(jobs: int) -> None:
    """They have earned nothing, but a fixed interval would look at each of them once as well."""
    service = waiting(*[1.0] * jobs, until=P)

    assert len(service.delays) == jobs
    assert statistics.fmean(service.delays) < P / 2
    assert len(service.looks) < 1.1 * jobs


@pytest.mark.parametrize("jobs", [10, 100])
@pytest.mark.parametrize("takes", [10.0, 20.0])
def test_jobs_shorter_than_poke_interval_cost_one_look_each(jobs: int, takes: float) -> None:
    """They end together before most first looks; one job among them is looked at early, and that is all."""
    service = waiting(*[takes] * jobs, until=2 * P)

    assert len(service.delays) == jobs
    assert len(service.looks) <= jobs + 1
    assert statistics.fmean(service.delays) < (P - takes) / 2


def test_short_jobs_that_follow_each_other_cost_no_more_than_a_look_each() -> None:
    """A hundred jobs of 20 s over ten minutes: a fixed interval spends one look on each and is later."""
    looks = jobs = 0
    delays: list[float] = []
    for seed in range(10):
        rng, service = random.Random(seed), Service(seed)
        for at in sorted(rng.uniform(0, 600) for _ in range(100)):
            service.run(at)
            service.submit(20.0)
        service.run(700)
        looks, jobs = looks + len(service.looks), jobs + 100
        delays += service.delays

    assert len(delays) == jobs
    assert looks <= 1.1 * jobs
    assert statistics.fmean(delays) <= P - 20


def test_what_was_learned_of_short_jobs_does_not_hide_shorter_ones() -> None:
    """A hundred jobs in order after an hour, then a hundred that begin to end at once: found as soon."""
    service = waiting(*[3600.0 + 5 * index for index in range(100)], until=4200)
    found = len(service.delays)
    service.submit(*[5.0 * index for index in range(1, 101)])
    service.run(4200 + 700)

    assert (found, len(service.delays)) == (100, 200)
    assert statistics.fmean(service.delays[100:]) <= P / 2


@pytest.mark.parametrize("jobs", [2, 3, 10])
@pytest.mark.parametrize("poke_interval", [10.0, 30.0, 300.0])
def test_a_few_jobs_that_take_no_time_are_found_together(jobs: int, poke_interval: float) -> None:
    """The first look finds its job done, and the others follow at once."""
    service = waiting(*[0.0] * jobs, until=poke_interval, poke_interval=poke_interval)

    first = service.looks[0][0]
    assert len(service.delays) == len(service.looks) == jobs
    assert max(service.delays) < first + 1
    assert first <= poke_interval / 2


def test_what_was_learned_outlives_an_empty_line() -> None:
    """Jobs in order, then nobody for an hour, then a hundred more: they are known to come in order."""
    service = waiting(*[5.0 * index for index in range(1, 101)], until=4000)
    looks, earned = len(service.looks), service.earned
    service.submit(*[60.0 + 5.0 * index for index in range(100)])
    service.run(4000 + 700)

    assert len(service.delays) == 200
    assert len(service.looks) - looks < 0.5 * (service.earned - earned)


def test_an_empty_line_is_not_a_silent_one() -> None:
    """An hour without jobs tells nothing of their order: new ones have their first looks as ever."""
    service = waiting(5.0, until=3600)
    service.submit(*[NEVER] * 100)
    service.run(3600 + 1.4 * P)

    assert len({key for _, key in service.looks}) == 101


def test_a_silent_line_is_looked_at_less_and_less() -> None:
    """Five hundred jobs that end in no order after an hour: few looks before, no delay after."""
    rng = random.Random(4)
    service = waiting(*[3600 + rng.uniform(0, 3600) for _ in range(500)], until=3600)
    assert len(service.looks) < 0.5 * service.earned
    service.run(7400)

    assert len(service.delays) == 500
    assert statistics.fmean(service.delays) <= 1.1 * P / 2


# At size


def test_ten_thousand_jobs_are_light() -> None:
    """Less than 500 bytes for each job, keys not counted."""
    keys = [str(index) for index in range(10_000)]
    tracemalloc.start()
    schedule = Schedule(random.Random(0))
    for key in keys:
        schedule.add(key, now=0, poke_interval=P)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size / len(keys) < 500
    assert schedule.due(P, 10) != []


def test_jobs_that_have_ended_leave_nothing_behind() -> None:
    """Ten thousand jobs come and end in order, five hundred at a time."""
    schedule, now = Schedule(random.Random(0)), 0.0
    keys = deque(str(index) for index in range(10_500))
    there: deque[str] = deque()
    tracemalloc.start()
    while keys:
        there.append(keys.popleft())
        schedule.add(there[-1], now=now, poke_interval=P)
        if len(there) > 500:
            schedule.saw(there.popleft(), done=True, now=now)
        now += 0.01
        schedule.next_at(now)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size < 500 * 700
