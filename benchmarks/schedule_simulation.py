# SPDX-License-Identifier: Apache-2.0

"""
Looks per job and detection delay of the pool's schedule, beside a fixed interval.

The schedule is used as the pool uses it: looks take a while, at most so many are in flight, and a rate limit
may hold them back. The clock is simulated, the schedule is the real one. The fixed interval looks at each
job ``poke_interval`` seconds after its submission and then every ``poke_interval`` seconds, with the same
latency. It is not held back by a rate limit. A sensor of Airflow's looks at once as well, and so once more;
the column ``sensor`` is the ratio to it.

Each line of the table goes on with seed after seed until the standard errors of the ratio of looks and of the
mean delay are below ``--error`` of them; both errors are printed behind their figures.

Run it with ``python -m benchmarks.schedule_simulation``; ``--help`` lists what can be changed.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_distribute.waiting.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

MINUTE, HOUR = 60.0, 3600.0
FEWEST_SEEDS = 8


class Job(NamedTuple):
    """When a job is submitted and when it ends, in seconds."""

    submitted: float
    ended: float


class Conditions(NamedTuple):
    """Seconds, looks, and looks per second (``None``: no limit)."""

    poke_interval: float = 30.0
    latency: float = 0.05
    in_flight: int = 32
    rate: float | None = None


class Outcome(NamedTuple):
    """Looks that were sent, and the delay of each job in seconds."""

    looks: int
    delays: list[float]


def ours(jobs: list[Job], conditions: Conditions, seed: int) -> Outcome:
    """Wait for all jobs with the schedule."""
    schedule = Schedule(random.Random(seed))
    arrivals = sorted(range(len(jobs)), key=lambda index: jobs[index].submitted, reverse=True)
    answers: list[tuple[float, int, bool]] = []
    delays: list[float] = []
    looks, now, free_at = 0, 0.0, 0.0
    while len(delays) < len(jobs):
        while arrivals and jobs[arrivals[-1]].submitted <= now:
            schedule.add(str(arrivals.pop()), now=now, poke_interval=conditions.poke_interval)
        while answers and answers[0][0] <= now:
            _, index, done = heappop(answers)
            schedule.saw(str(index), done=done, now=now)
            if done:
                delays.append(now - jobs[index].ended)
        room = conditions.in_flight - len(answers)
        if conditions.rate and now < free_at:
            room = 0
        for key in schedule.due(now, min(room, 1) if conditions.rate else room):
            looks += 1
            index, answered = int(key), now + conditions.latency
            heappush(answers, (answered, index, jobs[index].ended <= now + conditions.latency / 2))
            free_at = now + 1 / conditions.rate if conditions.rate else now
        coming = [jobs[arrivals[-1]].submitted] if arrivals else []
        if answers:
            coming.append(answers[0][0])
        if len(answers) < conditions.in_flight and (at := schedule.next_at(now)) is not None:
            coming.append(max(at, free_at))
        now = min(coming, default=now)
    return Outcome(looks, delays)


def fixed(jobs: list[Job], conditions: Conditions) -> Outcome:
    """Wait for all jobs with one timer for each."""
    looks, delays = 0, []
    for submitted, ended in jobs:
        turns = max(1, math.ceil((ended - submitted - conditions.latency / 2) / conditions.poke_interval))
        looks += turns
        delays.append(submitted + turns * conditions.poke_interval + conditions.latency - ended)
    return Outcome(looks, delays)


def submitted_at_once(ends: Callable[[int, random.Random], list[float]]) -> Callable[..., list[Job]]:
    """Jobs that are submitted within 30 s, so that no fixed timer is in step with the service."""

    def jobs(count: int, rng: random.Random) -> list[Job]:
        submitted = sorted(rng.uniform(0, 30) for _ in range(count))
        return [Job(at, max(at + 1, 30 + end)) for at, end in zip(submitted, ends(count, rng), strict=True)]

    return jobs


def submitted_over(span: float, lasts: Callable[[random.Random], float]) -> Callable[..., list[Job]]:
    """Jobs that are submitted one after another over ``span`` seconds."""

    def jobs(count: int, rng: random.Random) -> list[Job]:
        submitted = sorted(rng.uniform(0, span) for _ in range(count))
        return [Job(at, at + lasts(rng)) for at in submitted]

    return jobs


def one_by_one(noise: float) -> Callable[[int, random.Random], list[float]]:
    """A service that works on jobs in order for an hour, give or take normal noise in seconds."""
    return lambda count, rng: [HOUR * (i + 1) / count + rng.gauss(0, noise) for i in range(count)]


def each(draw: Callable[[random.Random], float]) -> Callable[[int, random.Random], list[float]]:
    """Jobs that know nothing of each other."""
    return lambda count, rng: [draw(rng) for _ in range(count)]


def log_normal(median: float) -> Callable[[random.Random], float]:
    """Seconds that are short for most and long for few."""
    return lambda rng: median * rng.lognormvariate(0, 1)


SCENARIOS: dict[str, Callable[[int, random.Random], list[Job]]] = {
    "FIFO over 1 h": submitted_at_once(one_by_one(0)),
    "FIFO, flowing": submitted_over(HOUR, lambda rng: 10.25 * MINUTE),
    "noisy FIFO, 1 min": submitted_at_once(one_by_one(MINUTE)),
    "noisy FIFO, 5 min": submitted_at_once(one_by_one(5 * MINUTE)),
    "wave at 30 min, 10 s": submitted_at_once(each(lambda rng: rng.gauss(30 * MINUTE, 10))),
    "wave at 30 min, 60 s": submitted_at_once(each(lambda rng: rng.gauss(30 * MINUTE, 60))),
    "log-normal, 2 min": submitted_at_once(each(log_normal(2 * MINUTE))),
    "log-normal, 10 min": submitted_at_once(each(log_normal(10 * MINUTE))),
    "log-normal, flowing": submitted_over(HOUR, log_normal(10 * MINUTE)),
    "log-normal, 2 h": submitted_at_once(each(log_normal(2 * HOUR))),
    "uniform over 24 h": submitted_at_once(each(lambda rng: rng.uniform(0, 24 * HOUR))),
    "10 s each": submitted_over(1.0, lambda rng: 10.0),
    "20 s each": submitted_over(1.0, lambda rng: 20.0),
    "uniform over 1 min": submitted_over(1.0, lambda rng: rng.uniform(0, MINUTE)),
    "10 s each, flowing": submitted_over(10 * MINUTE, lambda rng: 10.0),
    "20 s each, flowing": submitted_over(10 * MINUTE, lambda rng: 20.0),
    "20 s each, lone": lambda count, rng: [Job(at, at + 20) for at in (100.0 * i for i in range(count))],
}


class Sample(NamedTuple):
    """What one seed gave: looks and mean delays in seconds."""

    looks: int
    looks_fixed: int
    delay: float
    delay_fixed: float


class Figures(NamedTuple):
    """What several seeds gave. Errors are standard errors; ``ratio`` is that of the looks."""

    ratio: float
    ratio_error: float
    ratio_sensor: float
    delay: float
    delay_error: float
    delay_fixed: float

    @classmethod
    def of(cls, samples: list[Sample], jobs: int) -> Figures:
        """Sum samples up that are of so many jobs each."""
        looks_fixed = statistics.fmean(sample.looks_fixed for sample in samples)
        ratio = statistics.fmean(sample.looks for sample in samples) / looks_fixed
        residuals = [(sample.looks - ratio * sample.looks_fixed) / looks_fixed for sample in samples]
        delays = [sample.delay for sample in samples]
        root = math.sqrt(len(samples))
        return cls(
            ratio,
            statistics.stdev(residuals) / root,
            ratio * looks_fixed / (looks_fixed + jobs),
            statistics.fmean(delays),
            statistics.stdev(delays) / root,
            statistics.fmean(sample.delay_fixed for sample in samples),
        )

    def certain(self, error: float) -> bool:
        """Return whether both standard errors are small enough."""
        return self.ratio_error <= error * self.ratio and self.delay_error <= error * self.delay


def row(name: str, count: int, conditions: Conditions, error: float, first_seed: int) -> str:
    """One line of the table."""
    samples: list[Sample] = []
    while len(samples) < FEWEST_SEEDS or not (figures := Figures.of(samples, count)).certain(error):
        seed = first_seed + len(samples)
        jobs = SCENARIOS[name](count, random.Random(seed))
        new, old = ours(jobs, conditions, seed), fixed(jobs, conditions)
        samples.append(
            Sample(new.looks, old.looks, statistics.fmean(new.delays), statistics.fmean(old.delays))
        )
    waited = len(samples) * count
    return (
        f"{name:22}{count:7}{len(samples):7}"
        f"{sum(sample.looks for sample in samples) / waited:9.2f}"
        f"{sum(sample.looks_fixed for sample in samples) / waited:9.2f}"
        f"{figures.ratio:8.3f} +-{figures.ratio_error:.3f}{figures.ratio_sensor:8.2f}"
        f"{figures.delay:9.2f} +-{figures.delay_error:.2f}{figures.delay_fixed:9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, nargs="*", default=[2, 10, 30, 100], help="jobs per scenario")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--poke-interval", type=float, default=30.0, help="seconds")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds of a look")
    parser.add_argument("--rate", type=float, help="looks per second at most")
    parser.add_argument("--error", type=float, default=0.01, help="relative standard error of the figures")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    conditions = Conditions(given.poke_interval, given.latency, rate=given.rate)

    print(f"{'':36}{'looks per job':>18}{'':24}{'mean delay, s':>25}")
    print(
        f"{'scenario':22}{'jobs':>7}{'seeds':>7}{'ours':>9}{'fixed':>9}{'ratio':>8}{'':8}{'sensor':>8}"
        f"{'ours':>9}{'':7}{'fixed':>9}"
    )
    for name in SCENARIOS:
        if given.only in name:
            for count in given.jobs:
                print(row(name, count, conditions, given.error, given.seed), flush=True)
    if not given.only:
        print(row("FIFO over 1 h", 10_000, conditions, given.error, given.seed))


if __name__ == "__main__":
    main()
