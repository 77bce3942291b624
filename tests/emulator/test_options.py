# SPDX-License-Identifier: Apache-2.0

"""The language of options: latencies, rate limits, settings."""

from __future__ import annotations

import re
import statistics
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from airflow_provider_distribute.emulator import latency, limits
from airflow_provider_distribute.emulator.chance import generator
from airflow_provider_distribute.emulator.settings import Settings
from tests.emulator.wire import NOON, SERVICES, Wire

if TYPE_CHECKING:
    from collections.abc import Callable


def delays(spec: str, count: int = 2000, seed: int = 0) -> list[float]:
    """The delays of jobs that are all submitted at once."""
    distribution, chance = latency.parse(spec), generator(seed)
    return [distribution.finish(NOON, chance) - NOON for _ in range(count)]


def documented_latencies() -> set[str]:
    """The specs that stand in the documents, the docstrings and the command line's help."""
    texts = [
        path.read_text()
        for pattern in ("*.md", "airflow_provider_distribute/**/*.py", "example_dags/*.py", "demo/*.py")
        for path in ROOT.glob(pattern)
    ]
    found = (match for text in texts for match in LATENCY.finditer(text))
    return {match[1] or match[2] or match[3] for match in found}


ROOT = Path(__file__).parents[2]
#: As a keyword, as an option, or a distribution with parameters wherever it stands.
LATENCY = re.compile(
    rf'latency="([^"]+)"|--latency (?:(?:{"|".join(SERVICES)})/)?([^\s`]+)'
    rf"|\b((?:{'|'.join(latency.DISTRIBUTIONS)}):[\w.=,]*\w)"
)


@pytest.mark.parametrize("spec", sorted(documented_latencies()))
def test_the_documented_latencies_can_be_parsed(spec: str) -> None:
    """Who copies an example gets no error."""
    latency.parse(spec)


def test_the_documents_name_latencies() -> None:
    """Of each of the three forms that are looked for, one is found."""
    assert {"2", "lognormal:median=5,sigma=0.5", "exponential:mean=30"} <= documented_latencies()


@pytest.mark.parametrize("spec", ["2.5", "constant:seconds=2.5"])
def test_a_constant_latency_is_that_many_seconds(spec: str) -> None:
    """A bare number is a constant."""
    assert delays(spec, 2) == [2.5, 2.5]


def test_a_uniform_latency_stays_within_its_bounds() -> None:
    """And comes close to both."""
    found = delays("uniform:low=2,high=10")
    assert 2 <= min(found) < 2.1
    assert 9.9 < max(found) <= 10


def test_an_exponential_latency_has_its_mean() -> None:
    """Within the error of 2,000 samples."""
    assert statistics.mean(delays("exponential:mean=30")) == pytest.approx(30, rel=0.1)


def test_a_lognormal_latency_has_its_median() -> None:
    """Within the error of 2,000 samples."""
    assert statistics.median(delays("lognormal:median=30,sigma=1")) == pytest.approx(30, rel=0.1)


def test_a_fifo_latency_finishes_jobs_in_turn_at_its_rate() -> None:
    """Ten jobs at once, two a second: the last is done after five seconds."""
    assert delays("fifo:rate=2", 10) == pytest.approx([0.5 * n for n in range(1, 11)])


def test_a_fifo_that_has_caught_up_does_not_owe_the_idle_time() -> None:
    """A job that comes to an empty queue takes one turn."""
    queue, chance = latency.parse("fifo:rate=2"), generator(0)
    queue.finish(NOON, chance)
    assert queue.finish(NOON + 100, chance) == NOON + 100.5


def test_a_noisy_fifo_swaps_neighbours_but_never_answers_before_the_question() -> None:
    """Noise is symmetric, so without the bound a tenth of the first jobs would be done in the past."""
    found = delays("fifo:rate=2,noise=5", 200)
    assert found != sorted(found)
    assert min(found) >= 0


def test_a_wave_finishes_all_its_jobs_at_one_instant_and_the_next_job_starts_another() -> None:
    """However late in the wave a job was submitted."""
    wave, chance = latency.parse("wave:after=60"), generator(0)
    assert [wave.finish(NOON + at, chance) - NOON for at in (0, 30, 60, 61)] == [60, 60, 60, 121]


def test_the_same_seed_repeats_latencies() -> None:
    """And another seed does not."""
    assert delays("exponential:mean=30", 5) == delays("exponential:mean=30", 5)
    assert delays("exponential:mean=30", 5) != delays("exponential:mean=30", 5, seed=1)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gamma:k=1", "no such latency; there are constant, uniform"),
        ("soon", "valid number"),
        ("uniform:low", "key=value, got 'low'"),
        ("uniform:low=1", "high: Field required"),
        ("constant:minutes=1", "minutes: Extra inputs are not permitted (parameters: seconds)"),
        ("exponential:mean=0", "greater than 0"),
    ],
)
def test_a_wrong_latency_is_refused_with_what_there_is(spec: str, says: str) -> None:
    """At the start, not with the first job."""
    with pytest.raises(ValueError, match=re.escape(says)):
        latency.parse(spec)


def test_a_rate_limit_grants_no_burst_above_it_in_any_window() -> None:
    """Unlike a token bucket, which would let a second burst through at the end of the first second."""
    limit = limits.parse("3/s")
    assert [limit.wait(NOON + at) == 0 for at in (0.0, 0.8, 0.9, 0.95, 1.0, 1.1)] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]


def test_a_rate_limit_says_when_the_next_request_may_pass() -> None:
    """In seconds; the header rounds up, so that who waits that long is not refused again."""
    limit = limits.parse("1/min")
    limit.wait(NOON)
    assert limit.wait(NOON + 20.5) == pytest.approx(39.5)
    assert limit.headers(39.5, NOON) == {"Retry-After": "40"}


def test_a_rate_limit_may_write_an_http_date_or_say_nothing() -> None:
    """Both forms of Retry-After that RFC 9110 allows, and none."""
    dated = limits.parse("1/s:http_date=true").headers(2.5, NOON)
    assert parsedate_to_datetime(dated["Retry-After"]).timestamp() == NOON + 3
    assert limits.parse("1:silent=true").headers(2.5, NOON) == {}


@pytest.mark.parametrize("spec", ["many/s", "1/week", "0/s", "1/s:burst=3"])
def test_a_wrong_rate_limit_is_refused(spec: str) -> None:
    """At the start."""
    with pytest.raises(ValueError, match=spec.split("/")[0]):
        limits.parse(spec)


@pytest.mark.parametrize(
    "options",
    [
        {"latency": "soon"},
        {"latency": {"distribut": "1"}},
        {"rate_limit": "1/week"},
        {"not_found": "looks"},
        {"faults": ("explode",)},
        {"time_scale": 0},
        {"colour": "red"},
    ],
)
def test_settings_with_a_wrong_option_cannot_be_made(options: dict[str, object]) -> None:
    """Whatever the option, so that a running emulator's settings can be trusted."""
    with pytest.raises(ValidationError):
        Settings(**options)


def test_the_key_is_not_in_the_settings_repr() -> None:
    """It would be in tracebacks and logs."""
    assert "secret" not in repr(Settings(key="secret"))


def test_options_may_differ_between_the_services() -> None:
    """A mapping by service name; a service that is not in it has the default."""
    settings = Settings(latency={"distribute": "7"}, rate_limit={"inference_net": "1/s"})
    assert settings.latency_of("distribute") == latency.Constant(seconds=7)
    assert settings.latency_of("inference_net") == latency.Constant(seconds=0)
    assert settings.rate_limit_of("distribute") is None
    assert settings.rate_limit_of("inference_net") is not None


def test_time_scale_makes_latencies_pass_faster(wire: Callable[..., Wire]) -> None:
    """An hour's queue in 3.6 seconds; timestamps stay true."""
    wired = wire(latency="fifo:rate=0.001", time_scale=1000)
    job = wired.job()
    wired.now += 0.9
    assert not wired.emulator.describe(wired.emulator.services[wired.service].jobs[job], wired.now).done
    wired.now += 0.2
    assert wired.emulator.describe(wired.emulator.services[wired.service].jobs[job], wired.now).done
