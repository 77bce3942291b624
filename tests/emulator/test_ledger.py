# SPDX-License-Identifier: Apache-2.0

"""The record of what was asked, and what tests read off it."""

from __future__ import annotations

import gc
import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from airflow_provider_distribute.emulator.faults import parse
from airflow_provider_distribute.emulator.latency import Latency
from airflow_provider_distribute.emulator.ledger import Ledger
from tests.emulator.wire import KEY, Wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


def test_each_request_is_written_down(wire: Callable[..., Wire]) -> None:
    """What it was, what it was answered, whether it was paid."""
    wired = wire()
    job = wired.job(metadata={"row": "1"})
    wired.look(job)
    wired.emulator.faults.add(parse("reset"))
    wired.submit()
    first, second, third = wired.emulator.ledger.entries
    assert (first.operation, first.job_id, first.status, first.paid) == ("submit", job, 200, 1)
    assert (first.metadata, first.fault, first.authorized) == ('{"row":"1"}', None, True)
    assert (second.operation, second.job_id, second.status, second.paid) == ("look", job, 200, 0)
    assert (third.job_id, third.status, third.fault, third.paid) == (None, None, "reset", 0)


class Broken(Latency):
    """A mistake in the emulator."""

    def finish(self, now: float, chance: Random) -> float:
        """Fail."""
        raise ZeroDivisionError


def test_a_mistake_of_the_emulator_is_written_down(
    wire: Callable[..., Wire], caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered as the service answers 500; the traceback is in the log."""
    wired = wire()
    wired.emulator.services[wired.service].latency = Broken()
    reply = wired.submit()
    assert reply.status == 500
    assert "The emulator failed; its log says where" in str(json.loads(reply.body))
    assert "ZeroDivisionError" in caplog.text
    (entry,) = wired.emulator.ledger.entries
    assert (entry.operation, entry.status, entry.paid, entry.authorized) == ("submit", 500, 0, True)


def test_no_key_and_no_prompt_is_kept(wire: Callable[..., Wire]) -> None:
    """Not even a wrong key."""
    wired = wire()
    wired.job("a secret prompt")
    wired.header = "another-secret"
    wired.submit()
    kept = repr(wired.emulator.ledger.entries)
    assert not any(secret in kept for secret in (KEY, "another-secret", "secret prompt"))


def test_prompts_are_kept_if_asked_for(wire: Callable[..., Wire]) -> None:
    """For a person who debugs."""
    wired = wire(keep_prompts=True)
    wired.job("a secret prompt")
    assert wired.emulator.ledger.entries[0].prompt == "a secret prompt"


def test_long_metadata_is_left_out(wire: Callable[..., Wire]) -> None:
    """The job still has it."""
    wired = wire()
    job = wired.job(metadata={"text": "x" * 2000})
    assert wired.emulator.ledger.entries[0].metadata is None
    view = wired.emulator.describe(wired.emulator.services[wired.service].jobs[job], wired.now)
    assert view.metadata == {"text": "x" * 2000}


def test_counts_go_on_when_entries_are_dropped(wire: Callable[..., Wire]) -> None:
    """The newest entries are kept."""
    wired = wire(keep=3)
    for _ in range(10):
        wired.job()
    ledger = wired.emulator.ledger
    assert [entry.sequence for entry in ledger.entries] == [8, 9, 10]
    assert ledger.paid[wired.service] == 10


def test_pages_select_and_go_on() -> None:
    """Each names where the next begins; the last names none."""
    ledger = Ledger(100)
    for number in range(10):
        ledger.record(float(number), "s", "submit" if number % 2 else "look", status=200, authorized=True)
    first, follow = ledger.page(0, 2, operation="submit")
    second, end = ledger.page(follow or 0, 10, operation="submit")
    assert [entry.sequence for entry in first + second] == [2, 4, 6, 8, 10]
    assert end is None


def test_stats_count_by_service_operation_and_status(wire: Callable[..., Wire]) -> None:
    """Jobs by their state, looks per job, and the busiest second."""
    wired = wire(latency="10")
    first = wired.job(metadata={"emulate": "error"})
    wired.job(metadata={"emulate": "never"})
    wired.now += 10
    wired.job()
    wired.look(first)
    wired.look(first)
    wired.emulator.faults.add(parse("reset"))
    wired.submit()
    stats, name = wired.emulator.stats(wired.now), wired.service
    assert stats["requests"] == {name: {"submit": {"200": 3, "reset": 1}, "look": {"200": 2}}}
    assert stats["jobs"][name] == {"created": 3, "pending": 2, "succeeded": 0, "failed": 1}
    assert stats["looks"][name] == {"total": 2, "mean_per_job": 0.667, "most_per_job": 2}
    assert stats["peak_requests_in_a_second"] == {name: {"look": 2, "submit": 2}}
    assert stats["faults"] == {"reset": 1}


@pytest.mark.parametrize("error", [None, "boom"])
def test_a_job_can_be_finished(wire: Callable[..., Wire], error: str | None) -> None:
    """Even one that would never be; as failed if there is an error."""
    wired = wire(latency="1000")
    job = wired.job(metadata={"emulate": "never"})
    wired.emulator.finish(wired.emulator.services[wired.service].jobs[job], wired.now, error=error)
    assert wired.status(job) in (("COMPLETED", "Success") if error is None else ("ERROR", "Failed"))


def test_a_job_that_has_ended_stays_as_it_is(wire: Callable[..., Wire]) -> None:
    """An answer that was given is not taken back."""
    wired = wire()
    job = wired.job()
    wired.now += 1
    wired.emulator.finish(wired.emulator.services[wired.service].jobs[job], wired.now, error="boom")
    assert wired.status(job) in ("COMPLETED", "Success")


def test_reset_begins_again(wire: Callable[..., Wire]) -> None:
    """With the settings' faults, and the same ids."""
    wired = wire(faults=("500:after=1",))
    job = wired.job()
    wired.emulator.faults.add(parse("502"))
    wired.emulator.reset()
    assert wired.job() == job
    assert wired.submit().status == 500
    assert wired.emulator.ledger.sequence == 2


def test_jobs_take_less_than_a_kibibyte_each_beside_their_requests(
    wire: Callable[..., Wire],
) -> None:
    """Ledger included; 100,000 jobs with prompts of 2 KiB fit into a few hundred MiB."""
    wired = wire()
    wired.job()
    gc.collect()
    tracemalloc.start()
    for number in range(500):
        wired.submit(f"{number}")
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 500 * 1024


def test_a_long_request_is_held_compressed(wire: Callable[..., Wire]) -> None:
    """And comes back as it was."""
    wired = wire()
    job = wired.emulator.services[wired.service].jobs[wired.job("word " * 1000)]
    assert len(job.packed) < 300
    assert json.loads(job.request)["messages"][0]["content"] == "word " * 1000
