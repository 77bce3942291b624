# SPDX-License-Identifier: Apache-2.0

"""What is lost, and what is paid twice, when bulk runs meet crashes, outages, failed jobs and people."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tests.integration.bulk import WINDOW, BulkRun
from tests.integration.emulator import EmulatorProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.integration.harness import AirflowUnderTest

    Scene: TypeAlias = Callable[[AirflowUnderTest, EmulatorProcess], None]

ROWS = 200
FIRST = 50
CONNECTIONS = 8


def worker_is_killed_while_it_sends(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """What was recorded is not sent again; what was in flight is sent again, and counted as paid twice."""
    emulator.fault("hang", operation="submit", after=FIRST, count=CONNECTIONS, accepted=True, seconds=600)
    bulk = BulkRun.start(airflow, emulator, ROWS, max_connections=CONNECTIONS, timeout=600)
    airflow.wait_until(
        lambda: len(emulator.entries(fault="hang")) == CONNECTIONS and len(bulk.journal().tickets) == FIRST,
        what="all connections hang, and what was accepted before is recorded",
    )
    airflow.kill_task(bulk.run, "ask", with_worker=True)
    recorded = dict(bulk.journal().tickets)
    bulk.wait_until_deferred(attempt=2)
    emulator.finish()
    assert airflow.wait_for_run(bulk.run).state == "success"

    bulk.check_results()
    paid, job_of = bulk.paid(), {row["index"]: row["job_id"] for row in bulk.results()}
    assert len(recorded) == FIRST
    assert {index: (1, job_id) for index, job_id in recorded.items()} == {
        index: (paid[index], job_of[index]) for index in recorded
    }
    assert sum(paid.values()) - ROWS == CONNECTIONS
    assert CONNECTIONS <= bulk.manifest()["duplicates_possible"] <= WINDOW


def service_is_away_for_ten_minutes(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """It turns requests away, is not reachable, and then answers no look: one attempt, each row paid once."""
    emulator.fault("503", operation="submit", after=FIRST, count=CONNECTIONS, retry_after=10)
    bulk = BulkRun.start(airflow, emulator, ROWS, max_connections=CONNECTIONS)
    airflow.wait_until(
        lambda: len(emulator.entries(operation="submit", status=503)) == CONNECTIONS,
        what="all connections were turned away",
    )
    # Longer than they were told to wait: they come back to a service that is not reachable.
    emulator.outage("refuse", seconds=20)
    bulk.wait_until_deferred()
    for mode, status in {"503": 503, "reset": "reset"}.items():
        emulator.outage(mode, seconds=300)
        airflow.wait_until(
            lambda status=status: len(emulator.entries(operation="look", status=status)) >= 10,  # type: ignore[misc]
            what=f"ten looks were answered {mode}",
        )
    emulator.end_outage()
    emulator.finish()
    assert airflow.wait_for_run(bulk.run).state == "success"

    bulk.check_results()
    assert airflow.tries(bulk.run)["ask"] == 1
    assert bulk.paid() == dict.fromkeys(range(ROWS), 1)
    assert bulk.manifest()["duplicates_possible"] == 0
    assert "could not be reached" in bulk.log()
    assert bulk.log().count("answers again, after") == 2


def answers_to_submissions_are_lost(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """Nobody knows what was accepted: it is sent again in the same attempt, and each is counted."""
    accepted, lost = 3, 12
    emulator.fault("reset", operation="submit", after=FIRST, count=accepted, accepted=True)
    emulator.fault("reset", operation="submit", after=FIRST, count=lost)
    bulk = BulkRun.start(airflow, emulator, ROWS, max_connections=CONNECTIONS)
    bulk.wait_until_deferred()
    emulator.finish()
    assert airflow.wait_for_run(bulk.run).state == "success"

    bulk.check_results()
    assert airflow.tries(bulk.run)["ask"] == 1
    assert emulator.paid == ROWS + accepted
    assert bulk.manifest()["duplicates_possible"] == accepted + lost


def too_many_jobs_fail(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """Everything is landed, then the task fails; Airflow's retry asks the bad rows alone."""
    bad = 30
    emulator.fault("error", operation="submit", count=bad, value="the model is overloaded")
    bulk = BulkRun.start(airflow, emulator, ROWS, service="inference_net")
    bulk.wait_until_deferred()
    emulator.finish()
    bulk.wait_until_deferred(attempt=2)
    landed = bulk.results()
    failed = [row for row in landed if row["status"] == "failed"]
    assert (len(landed), len(failed)) == (ROWS, bad)
    assert {row["error"]["message"] for row in failed} == {"the model is overloaded"}
    emulator.finish()
    assert airflow.wait_for_run(bulk.run).state == "success"

    bulk.check_results()
    twice = dict.fromkeys((row["index"] for row in failed), 2)
    assert bulk.paid() == dict.fromkeys(range(ROWS), 1) | twice
    assert f"{bad} of {ROWS} rows did not succeed ({bad} failed)" in bulk.log()


def task_is_cleared_while_it_waits(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """The log says what goes on and names it; the next attempt waits for it and pays nothing."""
    bulk = BulkRun.start(airflow, emulator, ROWS)
    bulk.wait_until_deferred()
    airflow.wait_until(lambda: emulator.looks, what="the triggerer looks at the jobs")
    airflow.clear(bulk.run, "ask")
    bulk.wait_until_deferred(attempt=2)
    airflow.wait_until(
        lambda: f"Waiting stopped here with {ROWS} jobs pending. They cannot be cancelled" in bulk.log(),
        what="the first attempt's trigger has said what goes on",
    )
    assert emulator.job_ids()[0] in bulk.log()
    emulator.finish()
    assert airflow.wait_for_run(bulk.run).state == "success"

    bulk.check_results()
    assert bulk.paid() == dict.fromkeys(range(ROWS), 1)
    assert f"{ROWS} rows, 0 to send, {ROWS} accepted before" in bulk.log()


SCENES: tuple[Scene, ...] = (
    worker_is_killed_while_it_sends,
    service_is_away_for_ten_minutes,
    answers_to_submissions_are_lost,
    too_many_jobs_fail,
    task_is_cleared_while_it_waits,
)


@pytest.fixture(scope="module")
def playing(
    airflow: AirflowUnderTest, bulk_dag: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[Scene, Future[None]]]:
    """Play all scenes at once, each with an emulator of its own: most of each is waiting."""
    logs = {scene: tmp_path_factory.mktemp("scene") / "emulator.log" for scene in SCENES}

    def play(scene: Scene) -> None:
        with EmulatorProcess(logs[scene]) as emulator:
            scene(airflow, emulator)

    with ThreadPoolExecutor(len(SCENES)) as stage:
        yield {scene: stage.submit(play, scene) for scene in SCENES}


@pytest.mark.parametrize("scene", SCENES)
def test_scene(playing: Mapping[Scene, Future[None]], scene: Scene) -> None:
    """What the scene of this name says."""
    playing[scene].result()
