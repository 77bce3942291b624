# SPDX-License-Identifier: Apache-2.0

"""The distributed Airflow of the other tests works, and goes on when half of it is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.harness import AirflowUnderTest

DAG = """
from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, task

with DAG("two_of_each", schedule=None):

    @task
    def moment() -> str:
        return (datetime.now(timezone.utc) + timedelta(seconds=20)).isoformat()

    later = DateTimeSensorAsync.partial(task_id="later").expand(target_time=[moment()] * 4)
"""


def test_run_ends_well_when_one_worker_and_one_triggerer_are_killed(airflow: AirflowUnderTest) -> None:
    """Deferred tasks move to the triggerer that is left, and resume on the worker that is left."""
    run = airflow.trigger(airflow.add_dag("two_of_each", DAG))
    airflow.wait_until(
        lambda: [airflow.task_states(run).get(f"later[{index}]") for index in range(4)] == ["deferred"] * 4,
        what="all sensors are deferred",
    )
    airflow.kill("worker-1")
    airflow.kill("triggerer")
    assert airflow.wait_for_run(run, timeout=180).state == "success"
