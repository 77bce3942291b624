# SPDX-License-Identifier: Apache-2.0

"""The record of submissions is whole wherever the process that writes it dies."""

from __future__ import annotations

import contextlib
from itertools import product
from math import inf
from typing import Any

import pytest

from airflow_provider_distribute.models import ChatRequest
from airflow_provider_distribute.operators.record import SubmissionRecord
from airflow_provider_distribute.services import SERVICES
from tests.airflow.wire import Killed

SETTINGS = SERVICES["distribute"].settings.parse("default", {"api_key": "a-key"})
REQUESTS = [ChatRequest.parse(f"question {number}") for number in range(250)]


class Store:
    """
    Airflow's task state store.

    :ivar steps: So many more changes, and the process dies before the next.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.steps: float = inf

    def get(self, key: str) -> Any:
        """Return a value."""
        return self.values.get(key)

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._step()
        self.values[key] = value

    def delete(self, key: str) -> None:
        """Drop a value."""
        self._step()
        self.values.pop(key, None)

    def _step(self) -> None:
        if self.steps <= 0:
            raise Killed
        self.steps -= 1


def record_of(store: Store) -> SubmissionRecord:
    """Return the record as a new process reads it."""
    record = SubmissionRecord(store, size=len(REQUESTS))
    record.match(REQUESTS, SETTINGS)
    return record


def jobs_in(record: SubmissionRecord) -> set[str | None]:
    """Return the jobs that it knows."""
    return {record.job_id(index) for index in range(len(REQUESTS))} - {None}


@pytest.mark.parametrize(("dropping", "writing"), [*product(range(4), range(4))])
def test_nothing_is_missing_after_two_crashes(dropping: int, writing: int) -> None:
    """One while it is dropped, and another while the next attempt writes what is left anew."""
    store = Store()
    record = record_of(store)
    for index in range(len(REQUESTS)):
        record.note_accepted(index, f"job-{index}")
    record.write()
    assert store.values.keys() == {f"distribute.submitted.{first}" for first in (0, 100, 200)}
    store.steps = dropping
    with pytest.raises(Killed):
        record.clear()
    store.steps = writing
    again = record_of(store)
    everything = {f"job-{index}" for index in range(len(REQUESTS))}
    assert jobs_in(again) == everything
    with contextlib.suppress(Killed):
        again.write_forgotten(["job-5"])
    store.steps = inf
    last = record_of(store)
    assert jobs_in(last) >= everything - {"job-5"}
    last.clear()
    assert store.values == {}


def test_marks_are_kept_until_a_job_is_found() -> None:
    """Of the jobs that this attempt asks for; their requests may have moved."""
    store = Store()
    record = record_of(store)
    for index in range(3):
        record.note_accepted(index, f"job-{index}")
    record.write_unclear(["job-0", "job-2"])
    again = SubmissionRecord(store)
    again.match([REQUESTS[2], REQUESTS[1]], SETTINGS)
    assert again.unclear() == ["job-2"]
    assert again.others() == ["job-0"]
    again.write_found(["job-2"])
    assert record_of(store).unclear() == ["job-0"]
