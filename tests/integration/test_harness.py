# SPDX-License-Identifier: Apache-2.0

"""The real Airflow of the other tests does what they rely on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.integration.harness import AirflowUnderTest

DAG = """
from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, task

with DAG("harness", schedule=None, params={"number": 0, "seconds": 15}):

    @task
    def question(params: dict) -> str:
        return (datetime.now(timezone.utc) + timedelta(seconds=params["seconds"])).isoformat()

    @task
    def answer(factor: int, params: dict) -> int:
        print("asked for", params["number"])
        return factor * params["number"]

    later = DateTimeSensorAsync(task_id="later", target_time="{{ ti.xcom_pull('question') }}")
    question() >> later >> answer.expand(factor=[1, 2])
"""

LONG_TASK = """
from __future__ import annotations

import time

from airflow.sdk import DAG, task

with DAG("long_task", schedule=None):

    @task(retries=0)
    def sleeper() -> None:
        time.sleep(600)

    sleeper()
"""


@pytest.fixture(scope="module")
def dag_id(airflow: AirflowUnderTest) -> str:
    """Return the id of a Dag with a worker task, a deferred one and two mapped ones."""
    return airflow.add_dag("harness", DAG)


@pytest.mark.every_airflow
def test_run_goes_through_worker_and_triggerer(airflow: AirflowUnderTest, dag_id: str) -> None:
    """States, XComs and logs of all tasks can be read, and a deferred task holds no slot."""
    run = airflow.trigger(dag_id, {"number": 21})
    airflow.wait_for_task(run, "later", "deferred")
    assert airflow.running_slots() == 0
    result = airflow.wait_for_run(run)
    assert result.state == "success"
    assert result.tasks == dict.fromkeys(["question", "later", "answer[0]", "answer[1]"], "success")
    assert airflow.xcom(run, "answer", map_index=1) == 42
    assert "asked for 21" in airflow.task_log(run, "answer", map_index=0)


def test_killed_triggerer_is_replaced(airflow: AirflowUnderTest, dag_id: str) -> None:
    """A task that is deferred when the triggerer is killed ends under the next triggerer."""
    run = airflow.trigger(dag_id)
    airflow.wait_for_task(run, "later", "deferred")
    airflow.kill("triggerer")
    airflow.start("triggerer")
    assert airflow.wait_for_run(run).state == "success"


def test_killed_task_fails(airflow: AirflowUnderTest) -> None:
    """The executor notices a task whose process is killed."""
    run = airflow.trigger(airflow.add_dag("long_task", LONG_TASK))
    airflow.wait_for_task(run, "sleeper", "running")
    airflow.kill_task(run, "sleeper")
    assert airflow.wait_for_run(run).tasks == {"sleeper": "failed"}


def test_killed_worker_fails_the_task(airflow: AirflowUnderTest) -> None:
    """The scheduler misses the heartbeat of a task whose worker is gone, and goes on with other tasks."""
    run = airflow.trigger(airflow.add_dag("long_task", LONG_TASK))
    airflow.wait_for_task(run, "sleeper", "running")
    airflow.kill_task(run, "sleeper", with_worker=True)
    assert airflow.wait_for_run(run).tasks == {"sleeper": "failed"}


def test_clear_runs_a_task_again(airflow: AirflowUnderTest, dag_id: str) -> None:
    """A cleared task starts a new attempt."""
    run = airflow.trigger(dag_id)
    assert airflow.wait_for_run(run).state == "success"
    airflow.clear(run, "answer")
    airflow.wait_until(
        lambda: {ti["try_number"] for ti in airflow.task_instances(run) if ti["task_id"] == "answer"} == {2},
        what="both mapped tasks are in their second attempt",
    )
    assert airflow.wait_for_run(run).state == "success"


def test_marked_task_ends(airflow: AirflowUnderTest, dag_id: str) -> None:
    """A deferred task that is marked failed by hand ends its run."""
    run = airflow.trigger(dag_id, {"seconds": 600})
    airflow.wait_for_task(run, "later", "deferred")
    airflow.mark(run, "later", "failed")
    assert airflow.wait_for_run(run).state == "failed"


def test_connection_is_stored_encrypted(airflow: AirflowUnderTest) -> None:
    """A connection goes into the database, its password not in clear; a second one replaces it."""
    for host in ("http://one", "http://two"):
        airflow.add_connection(
            "stored", conn_type="generic", host=host, password="sesame", extra=json.dumps({"model": "m"})
        )
    [row] = airflow.sql("SELECT host, password FROM connection WHERE conn_id = :conn_id", conn_id="stored")
    assert row["host"] == "http://two"
    assert "sesame" not in row["password"]


def test_no_process_outlives_its_component(airflow: AirflowUnderTest) -> None:
    """Killing a component ends all processes it has started."""
    triggerer = psutil.Process(airflow.processes["triggerer"].pid)
    family = [triggerer, *triggerer.children(recursive=True)]
    airflow.kill("triggerer")
    airflow.start("triggerer")
    assert len(family) > 1
    alive = [process for process in family if process.is_running()]
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
