# SPDX-License-Identifier: Apache-2.0

"""When a whole service counts as down, and how it is asked then."""

from __future__ import annotations

import math
import random

import pytest

from airflow_provider_distribute.pacing import Backoff
from airflow_provider_distribute.waiting.outage import Outage, Storms


@pytest.fixture
def outage() -> Outage:
    return Outage(Backoff(base=1.0, cap=30.0), random.Random(1))


def test_one_jobs_trouble_is_that_jobs(outage: Outage) -> None:
    """However often looks at one or two jobs have no answer, the others are not slowed down."""
    for n in range(100):
        outage.failed(100.0, f"job-{n % 2}")
        assert not outage.down
        assert outage.quiet_until == -math.inf
        assert outage.width(32) == 32


def test_from_the_third_job_in_a_row_the_service_is_down(outage: Outage) -> None:
    """Then one look at a time, and only after a wait."""
    for job_id in ("a", "a", "b", "b", "c"):
        assert not outage.down
        outage.failed(100.0, job_id)
    assert outage.down
    assert outage.width(32) == 1
    assert 100.5 <= outage.quiet_until <= 101.0


def test_waits_grow_to_the_backoffs_cap(outage: Outage) -> None:
    """1, 2, 4 … seconds, then half a minute: an hour's outage costs some hundred and fifty looks."""
    waits = []
    for _ in range(12):
        outage.failed(0.0)
        waits.append(outage.quiet_until)
    assert waits[:2] == [-math.inf, -math.inf]
    assert all(2.0**n / 2 <= wait <= 2.0**n for n, wait in enumerate(waits[2:7]))
    assert all(15.0 <= wait <= 30.0 for wait in waits[7:])


def test_while_it_is_down_every_look_counts(outage: Outage) -> None:
    """Also those at a job that failed before: it may be the only one that is asked."""
    for job_id in ("a", "b", "c", "a", "a"):
        outage.failed(0.0, job_id)
    assert outage.failures == 5


def test_what_has_no_id_is_another_one_each_time(outage: Outage) -> None:
    """Submissions have no job id yet: three in a row are three."""
    for _ in range(3):
        outage.failed(0.0)
    assert outage.down


def test_an_answer_forgets_who_failed(outage: Outage) -> None:
    """Only looks in a row count."""
    for job_id in ("a", "b"):
        outage.failed(0.0, job_id)
    outage.answered()
    assert [outage.failed(0.0, job_id) for job_id in ("b", "b", "c")] == [True, False, True]
    assert not outage.down


def test_it_is_told_at_rising_failures(outage: Outage) -> None:
    """The 1st, 2nd, 4th, 8th … in a row is worth a line."""
    told = [n for n in range(1, 40) if outage.failed(0.0)]
    assert told == [1, 2, 4, 8, 16, 32]


def test_one_answer_ends_it(outage: Outage) -> None:
    """Everything goes on at once, and the count starts anew."""
    for _ in range(5):
        outage.failed(0.0)
    assert outage.answered() == 5
    assert not outage.down
    assert outage.width(32) == 32
    assert outage.quiet_until == -math.inf
    assert outage.failed(0.0)
    assert not outage.down


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_an_end_is_told_only_of_an_outage(outage: Outage, failures: int) -> None:
    """A blip or two, or none, has no end worth a line."""
    for _ in range(failures):
        outage.failed(0.0)
    assert outage.answered() == 0
    assert outage.failures == 0


def test_storms_are_told_at_rising_numbers() -> None:
    """The 1st, 2nd, 4th, 8th … of those that follow one another is worth a line."""
    storms = Storms()
    assert [n for n in range(1, 20) if storms.began(600.0 * n)] == [1, 2, 4, 8, 16]


def test_after_a_calm_hour_a_storm_is_news_again() -> None:
    """The count starts anew."""
    storms = Storms()
    assert [storms.began(at) for at in (0.0, 1.0, 2.0, 3602.0)] == [True, True, False, True]
    assert storms.count == 1
