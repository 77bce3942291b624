# SPDX-License-Identifier: Apache-2.0

"""
One bulk run on each service, from the file of questions to the file of rows.

They are followed in stages, which all tests share: deferred; half of the jobs have ended; the triggerer was
killed there, and all the jobs have ended.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.integration.bulk import BulkRun
from tests.integration.emulator import EmulatorProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.integration.harness import AirflowUnderTest

ROWS = 200
HALF = ROWS // 2
PROGRESS_AGE_SECONDS = 30


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    """Return the emulator that both runs ask."""
    with EmulatorProcess(tmp_path_factory.mktemp("bulk") / "emulator.log") as running:
        yield running


@pytest.fixture(scope="module")
def deferred(airflow: AirflowUnderTest, emulator: EmulatorProcess, bulk_dag: None) -> Sequence[BulkRun]:
    """Start a run on each service, and return them when everything is sent and both are deferred."""
    runs = [
        BulkRun.start(airflow, emulator, ROWS, service=service) for service in ("distribute", "inference_net")
    ]
    for bulk in runs:
        bulk.wait_until_deferred()
    return runs


@pytest.fixture(scope="module")
def halfway(airflow: AirflowUnderTest, deferred: Sequence[BulkRun]) -> Sequence[BulkRun]:
    """Let the first half of the jobs end, and return the runs when their rows are kept."""
    for bulk in deferred:
        bulk.emulator.finish(*(job_id for job_id, index in bulk.job_ids().items() if index < HALF))
    for bulk in deferred:
        airflow.wait_until(lambda bulk=bulk: len(bulk.landed()) == HALF, what="half of the rows are kept")  # type: ignore[misc]
    return deferred


@pytest.fixture(scope="module")
def ended(airflow: AirflowUnderTest, emulator: EmulatorProcess, halfway: Sequence[BulkRun]) -> int:
    """
    Kill the triggerer, start another one, and let all jobs and both runs end.

    :returns: The number of the last request the emulator got from the triggerer that was killed.
    """
    airflow.kill("triggerer")
    last: int = emulator.entries()[-1]["sequence"]
    airflow.start("triggerer")
    airflow.wait_until(lambda: emulator.entries(after=last), what="the new triggerer looks at the jobs")
    emulator.finish()
    for bulk in halfway:
        assert airflow.wait_for_run(bulk.run).tasks == {"ask": "success", "count": "success"}
    return last


@pytest.mark.every_airflow
def test_deferred_run_holds_no_slot(airflow: AirflowUnderTest, deferred: Sequence[BulkRun]) -> None:
    """Two runs wait, and nothing runs."""
    assert airflow.running_slots() == 0


@pytest.mark.every_airflow
def test_run_has_one_small_trigger(airflow: AirflowUnderTest, deferred: Sequence[BulkRun]) -> None:
    """One row in the database for hundreds of jobs."""
    for bulk in deferred:
        assert len(bulk.job_ids()) == ROWS
        assert [len(row["kwargs"]) <= 4096 for row in airflow.trigger_rows(bulk.run).values()] == [True]


@pytest.mark.every_airflow
def test_progress_is_current(halfway: Sequence[BulkRun]) -> None:
    """``progress.json`` says how many have ended, and is written again and again."""
    for bulk in halfway:
        bulk.airflow.wait_until(lambda bulk=bulk: bulk.progress().get("succeeded") == HALF, what="it says so")  # type: ignore[misc]
        progress = bulk.progress()
        assert {name: progress[name] for name in ("total", "succeeded", "failed", "pending", "state")} == {
            "total": ROWS,
            "succeeded": HALF,
            "failed": 0,
            "pending": HALF,
            "state": "waiting",
        }
        age = datetime.now(UTC) - datetime.fromisoformat(progress["updated_at"])
        assert age.total_seconds() <= PROGRESS_AGE_SECONDS


def test_progress_is_logged_while_the_run_waits(halfway: Sequence[BulkRun]) -> None:
    """The task's log says how many rows are done, of how many."""
    for bulk in halfway:
        bulk.airflow.wait_until(lambda bulk=bulk: f"{HALF}/{ROWS} done, 0 failed" in bulk.log(), what="told")  # type: ignore[misc]
        assert f"Waiting for {ROWS} jobs" in bulk.log()


@pytest.mark.every_airflow
def test_killed_triggerer_costs_nothing(halfway: Sequence[BulkRun], ended: int) -> None:
    """Waiting resumed in the same attempt; no request was paid again."""
    for bulk in halfway:
        assert bulk.airflow.tries(bulk.run) == {"ask": 1, "count": 1}
        assert bulk.paid() == dict.fromkeys(range(ROWS), 1)


@pytest.mark.every_airflow
def test_rows_that_are_kept_are_not_looked_at_again(
    emulator: EmulatorProcess, halfway: Sequence[BulkRun], ended: int
) -> None:
    """The triggerer that took over looked only at what the other one had not kept."""
    looked_at = {look["job_id"] for look in emulator.entries(operation="look", after=ended)}
    for bulk in halfway:
        assert looked_at & bulk.job_ids().keys() == {
            job_id for job_id, index in bulk.job_ids().items() if index >= HALF
        }


@pytest.mark.every_airflow
def test_every_input_has_its_row_in_order(halfway: Sequence[BulkRun], ended: int) -> None:
    """Every row succeeded and holds the answer to its own question."""
    for bulk in halfway:
        bulk.check_results()


@pytest.mark.every_airflow
def test_downstream_task_gets_the_results(halfway: Sequence[BulkRun], ended: int) -> None:
    """XCom has the manifest; the next task took the results' URI from it."""
    for bulk in halfway:
        manifest = bulk.manifest()
        assert manifest["results"] == (bulk.directory / "results.jsonl").as_uri()
        assert (manifest["rows"], manifest["counts"]["succeeded"]) == (ROWS, ROWS)
        assert bulk.airflow.xcom(bulk.run, "count") == ROWS
