# SPDX-License-Identifier: Apache-2.0

"""What is lost, and what is paid twice, when parts of a real Airflow die or people step in."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.emulator import prompts

if TYPE_CHECKING:
    from demo.deployment import Run
    from tests.integration.emulator import EmulatorProcess
    from tests.integration.harness import AirflowUnderTest

pytestmark = pytest.mark.usefixtures("chat_dags")

KEEPS_TASK_STATE = tuple(map(int, version("apache-airflow").split(".")[:2])) >= (3, 3)
on_task_state = pytest.mark.skipif(not KEEPS_TASK_STATE, reason="Airflow keeps task state from 3.3 on")
without_task_state = pytest.mark.skipif(KEEPS_TASK_STATE, reason="about Airflow before 3.3")

GARBAGE: dict[str, dict[str, Any]] = {
    "wait_0": {"conn_id": 7, "job_ids": {"a": None}, "deadline": "soon", "poke_interval": -1},
    "wait_1": {"nothing": "known"},
}


def ask(airflow: AirflowUnderTest, emulator: EmulatorProcess, dag_id: str = "chat_ask") -> Run:
    """Ask three questions in one task."""
    return airflow.trigger(dag_id, {"conn_id": emulator.connect(airflow), "prompts": prompts(3)})


def wait_until_looked_at(airflow: AirflowUnderTest, emulator: EmulatorProcess, *, more_than: int = 0) -> None:
    """Wait until the triggerer looks at jobs."""
    airflow.wait_until(lambda: emulator.looks > more_than, what="the triggerer looks at the jobs")


def paid_by_question(emulator: EmulatorProcess) -> dict[int, int]:
    """Return how often each question was paid, by its place in the input."""
    return dict(Counter(int(job["request"]["metadata"]["airflow_index"]) for job in emulator.jobs()))


@pytest.mark.every_airflow
def test_waiting_resumes_when_the_triggerer_is_killed(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """The next triggerer takes over the same trigger with the same deadline; nothing is submitted again."""
    run = ask(airflow, emulator)
    airflow.wait_for_task(run, "ask", "deferred")
    wait_until_looked_at(airflow, emulator)
    before = airflow.trigger_rows(run)
    airflow.kill("triggerer")
    looks = emulator.looks
    airflow.start("triggerer")
    wait_until_looked_at(airflow, emulator, more_than=looks)
    assert airflow.trigger_rows(run) == before
    assert "deadline" in before["ask"]["kwargs"]
    emulator.finish()
    assert airflow.wait_for_run(run).state == "success"
    assert paid_by_question(emulator) == {0: 1, 1: 1, 2: 1}


@on_task_state
@pytest.mark.parametrize(
    ("accepted", "paid"),
    [
        pytest.param(False, {0: 1, 1: 1, 2: 1}, id="lost on its way"),
        pytest.param(True, {0: 1, 1: 2, 2: 1}, id="accepted"),
    ],
)
def test_retry_submits_only_what_is_missing(
    airflow: AirflowUnderTest, emulator: EmulatorProcess, accepted: bool, paid: dict[int, int]
) -> None:
    """
    A task is killed while its second request is under way: the first is not sent again.

    The second is, because nobody knows what became of it; the log says so.
    """
    emulator.fault("hang", operation="submit", after=1, count=1, accepted=accepted)
    run = ask(airflow, emulator)
    airflow.wait_until(
        lambda: len(emulator.entries(operation="submit")) == 2, what="the second request is under way"
    )
    airflow.kill_task(run, "ask")
    airflow.wait_for_task(run, "ask", "deferred")
    assert paid_by_question(emulator) == paid
    emulator.finish()
    assert airflow.wait_for_run(run).state == "success"
    for prompt, answer in zip(prompts(3), airflow.xcom(run, "ask"), strict=True):
        assert prompt in answer["content"]
    log = airflow.task_log(run, "ask")
    assert log.count("Re-attached to job") == 1
    assert "sending request 2 of 3 when it ended" in log


@on_task_state
def test_retry_reattaches_when_the_worker_is_killed_before_it_defers(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """Everything was accepted and nothing waited for: the retry waits for the same jobs and sends nothing."""
    run = ask(airflow, emulator, "chat_held")
    airflow.wait_until(airflow.dags_folder.joinpath("ask.reached").exists, what="all is submitted")
    airflow.kill_task(run, "ask", with_worker=True)
    airflow.wait_for_task(run, "ask", "deferred")
    emulator.finish()
    assert airflow.wait_for_run(run).state == "success"
    assert [answer["job_id"] for answer in airflow.xcom(run, "ask")] == emulator.job_ids()
    assert paid_by_question(emulator) == {0: 1, 1: 1, 2: 1}


@without_task_state
@pytest.mark.every_airflow
def test_retry_submits_again_where_airflow_keeps_no_task_state(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """Before Airflow 3.3 a retry pays again, and the log has said so from the start."""
    run = ask(airflow, emulator, "chat_held")
    airflow.wait_until(airflow.dags_folder.joinpath("ask.reached").exists, what="all is submitted")
    assert "a retry submits, and pays, again" in airflow.task_log(run, "ask")
    airflow.kill_task(run, "ask", with_worker=True)
    airflow.wait_for_task(run, "ask", "deferred")
    emulator.finish()
    assert airflow.wait_for_run(run).state == "success"
    assert paid_by_question(emulator) == {0: 2, 1: 2, 2: 2}


def test_marking_a_waiting_task_failed_is_no_error(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """The trigger ends quietly and its log lists the jobs that go on."""
    run = ask(airflow, emulator)
    airflow.wait_for_task(run, "ask", "deferred")
    wait_until_looked_at(airflow, emulator)
    before = len(airflow.component_log("triggerer"))
    airflow.mark(run, "ask", "failed")
    log = airflow.wait_until(
        lambda: [log for log in [airflow.task_log(run, "ask")] if "Waiting stopped here" in log],
        what="the trigger has ended",
    )
    assert f"3 jobs pending: {', '.join(emulator.job_ids())}. They cannot be cancelled" in log[0]
    assert not re.search("error|traceback", airflow.component_log("triggerer")[before:], re.IGNORECASE)


@on_task_state
def test_clearing_a_waiting_task_waits_for_the_same_jobs(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """The trigger ends quietly, and the new attempt re-attaches."""
    run = ask(airflow, emulator)
    airflow.wait_for_task(run, "ask", "deferred")
    wait_until_looked_at(airflow, emulator)
    before = len(airflow.component_log("triggerer"))
    airflow.clear(run, "ask")
    airflow.wait_for_task(run, "ask", "deferred", attempt=2)
    airflow.wait_until(
        lambda: "stopped here with 3 jobs pending" in airflow.task_log(run, "ask"),
        what="the first attempt's trigger has ended",
    )
    emulator.finish()
    assert airflow.wait_for_run(run).state == "success"
    assert paid_by_question(emulator) == {0: 1, 1: 1, 2: 1}
    assert not re.search("error|traceback", airflow.component_log("triggerer")[before:], re.IGNORECASE)


def test_garbage_in_a_trigger_row_fails_that_task_alone(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """The triggerer outlives rows it cannot use: those tasks fail with a clear message, the third waits."""
    airflow.add_pool("one_slot", slots=1)
    job_id = emulator.submit("distribute")
    airflow.kill("triggerer")
    run = airflow.trigger("chat_one_slot", {"conn_id": emulator.connect(airflow), "job_ids": [job_id]})
    airflow.wait_until(
        lambda: set(airflow.task_states(run).values()) == {"deferred"}, what="all three sensors are deferred"
    )
    rows = airflow.trigger_rows(run)
    for task_id, kwargs in GARBAGE.items():
        airflow.sql(
            "UPDATE trigger SET kwargs = :kwargs WHERE id = :id",
            id=rows[task_id]["id"],
            kwargs=json.dumps({"__type": "dict", "__var": kwargs}),
        )
    airflow.start("triggerer")
    for task_id in GARBAGE:
        airflow.wait_for_task(run, task_id, "failed")
        assert "The trigger's arguments cannot be used" in airflow.task_log(run, task_id)
    emulator.finish()
    assert airflow.wait_for_run(run).tasks == {"wait_0": "failed", "wait_1": "failed", "wait_2": "success"}
