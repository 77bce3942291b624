# SPDX-License-Identifier: Apache-2.0

"""Chat on a real Airflow: from the questions to the answers, and to the errors an author sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.emulator import PLANTED_KEY, prompts

if TYPE_CHECKING:
    from tests.integration.emulator import EmulatorProcess
    from tests.integration.harness import AirflowUnderTest

pytestmark = pytest.mark.usefixtures("chat_dags")

EXAMPLES = [
    path
    for path in sorted(Path(__file__).parents[2].joinpath("example_dags").glob("*.py"))
    if not path.stem.startswith("example_bulk")
]


@pytest.mark.every_airflow
@pytest.mark.parametrize("service", ["distribute", "inference_net"])
def test_answers_come_back_in_the_order_of_the_questions(
    airflow: AirflowUnderTest, emulator: EmulatorProcess, service: str
) -> None:
    """Submit and sensor, and the operator that is both, defer and return what was answered."""
    asked = prompts(3)
    run = airflow.trigger("chat_spine", {"conn_id": emulator.connect(airflow, service), "prompts": asked})
    for task in ("wait", "ask"):
        airflow.wait_for_task(run, task, "deferred")
    emulator.finish()
    assert airflow.wait_for_run(run).tasks == dict.fromkeys(("submit", "wait", "ask"), "success")

    answers: list[dict[str, Any]] = airflow.xcom(run, "wait")
    assert [answer["job_id"] for answer in answers] == airflow.xcom(run, "submit")
    for question, answer in zip([*asked, asked[0]], [*answers, airflow.xcom(run, "ask")], strict=True):
        assert (answer["service"], answer["status"]) == (service, "succeeded")
        assert question in answer["content"]
    assert emulator.paid == len(asked) + 1


@pytest.mark.every_airflow
def test_deferred_tasks_hold_no_slot(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """Three sensors wait at the same time in an Airflow pool of one slot, and leave it free."""
    airflow.add_pool("one_slot", slots=1)
    job_id = emulator.submit("distribute")
    run = airflow.trigger("chat_one_slot", {"conn_id": emulator.connect(airflow), "job_ids": [job_id]})
    for number in range(3):
        airflow.wait_for_task(run, f"wait_{number}", "deferred")
    assert airflow.running_slots("one_slot") == 0
    emulator.finish()
    assert airflow.wait_for_run(run).state == "success"


def test_every_example_runs(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """The example DAGs of chat succeed on the default connections. Each file is named as its DAG."""
    for service in ("distribute", "inference_net"):
        emulator.connect_as(f"{service}_default", airflow, service)
    runs = [airflow.trigger(airflow.add_dag(path.stem, path)) for path in EXAMPLES]
    assert runs
    runs.append(airflow.trigger("example_two_services", {"conn_id": "inference_net_default"}))
    for run in runs:
        for _ in airflow.watch(run, timeout=240):
            emulator.finish()
    assert [(run.dag_id, airflow.state(run)) for run in runs] == [(run.dag_id, "success") for run in runs]


def test_link_shows_while_the_task_waits(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """The dashboard is a click away from a task that is deferred."""
    conn_id = emulator.connect(airflow, dashboard_url="https://dashboard.example/jobs")
    run = airflow.trigger("chat_spine", {"conn_id": conn_id, "prompts": prompts(1)})
    for task in ("wait", "ask"):
        airflow.wait_for_task(run, task, "deferred")
    links = {task: airflow.links(run, task) for task in ("submit", "wait", "ask")}
    emulator.finish()
    for link in links.values():
        assert link == {"Inference dashboard": "https://dashboard.example/jobs"}
    assert airflow.wait_for_run(run).state == "success"


def test_deadline_fails_the_sensor_for_good(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """The error names the job that is still pending and its last status; there is no retry."""
    ended, pending = (emulator.submit("inference_net") for _ in range(2))
    emulator.finish(ended)
    run = airflow.trigger(
        "chat_deadline",
        {"conn_id": emulator.connect(airflow, "inference_net"), "job_ids": [ended, pending]},
    )
    assert airflow.wait_for_run(run).tasks == {"wait": "failed"}
    assert airflow.tries(run) == {"wait": 1}
    [word] = [job["status"] for job in emulator.jobs() if job["id"] == pending]
    log = airflow.task_log(run, "wait")
    assert f"The deadline passed with 1 of 2 jobs still pending: {pending} ({word})." in log
    assert "They cannot be cancelled: they go on at the service and are billed." in log


def test_rejected_key_fails_at_once(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """A 401 at a look, as after the key was rotated, ends the wait without a retry and says what to do."""
    job_id = emulator.submit("distribute")
    run = airflow.trigger("chat_wait", {"conn_id": emulator.connect(airflow), "job_ids": [job_id]})
    airflow.wait_for_task(run, "wait", "deferred")
    emulator.fault("401", operation="look", value=f"{PLANTED_KEY} was revoked")
    assert airflow.wait_for_run(run).tasks == {"wait": "failed"}
    assert airflow.tries(run) == {"wait": 1}
    log = airflow.task_log(run, "wait")
    assert "correct the connection's password, then clear the task" in log
