# SPDX-License-Identifier: Apache-2.0

"""A bulk run in parts, on Celery workers and several triggerers, of which one each is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from demo.deployment import label
from tests.integration.bulk import WINDOW, BulkRun, results_of, write_questions

if TYPE_CHECKING:
    from demo.deployment import Run
    from tests.integration.emulator import EmulatorProcess
    from tests.integration.harness import AirflowUnderTest

DAG = Path(__file__).parent / "dags" / "bulk_parts.py"
SPLIT = 4
"""As the Dag has it."""
FILES = 2
ROWS = 500
"""Of each part."""
PATIENCE = 300
"""Seconds; a dozen processes share two cores."""


def start(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> list[BulkRun]:
    """Trigger the Dag, and return its parts: the shards of one file, and some files of their own."""
    whole = {index: f"What is {index} squared?" for index in range(SPLIT * ROWS)}
    others = [
        {index: f"What is {index} in file {number}?" for index in range(ROWS)} for number in range(FILES)
    ]
    conf = {
        "conn_id": emulator.connect(airflow, max_connections=8),
        "requests": write_questions(airflow, "whole", list(whole.values())),
        "files": [
            write_questions(airflow, f"file-{number}", list(file.values()))
            for number, file in enumerate(others)
        ],
        "result_path": results_of(airflow).as_uri(),
    }
    run = airflow.trigger(airflow.add_dag("bulk_parts", DAG), conf)
    shards = [
        {index: question for index, question in whole.items() if index % SPLIT == number}
        for number in range(SPLIT)
    ]
    return [
        BulkRun(airflow, emulator, run, questions, task_id, number)
        for task_id, parts in {"shard": shards, "file": others}.items()
        for number, questions in enumerate(parts)
    ]


def tasks_on(airflow: AirflowUnderTest, worker: str, run: Run) -> set[str]:
    """Return the tasks that a worker is running."""
    session = airflow.processes[worker].pid
    running = [
        ti for ti in airflow.task_instances(run) if ti["state"] == "running" and psutil.pid_exists(ti["pid"])
    ]
    return {label(ti) for ti in running if os.getsid(ti["pid"]) == session}


def looks_at(airflow: AirflowUnderTest, triggerer: str, emulator: EmulatorProcess) -> bool:
    """Return whether a triggerer is connected to an emulator."""
    family = psutil.Process(airflow.processes[triggerer].pid).children(recursive=True)
    connections = [connection for process in family for connection in process.net_connections("tcp")]
    return any(connection.raddr and connection.raddr.port == emulator.port for connection in connections)


def test_every_row_is_right_when_a_worker_and_a_triggerer_are_killed(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """
    A worker dies while it sends, a triggerer while it waits: both are made up for by those that are left.

    Every part has each of its rows once. What was recorded is not sent again; what was in flight at the kill
    is, and is counted.
    """
    # Slow enough that the kill meets requests which are paid for and not answered yet.
    emulator.fault("slow", operation="submit", seconds=0.25)
    parts = start(airflow, emulator)
    run = parts[0].run

    def sending_on_first_worker() -> set[str]:
        there = tasks_on(airflow, "worker-1", run)
        return {part.label for part in parts if part.label in there and len(part.journal().tickets) >= 50}

    sending = airflow.wait_until(
        sending_on_first_worker, timeout=PATIENCE, what="a task on worker-1 has recorded some jobs"
    )
    killed = tasks_on(airflow, "worker-1", run)
    airflow.kill("worker-1")
    recorded = {part.label: dict(part.journal().tickets) for part in parts if part.label in killed}
    emulator.forget_faults()
    labels = {part.label for part in parts}
    airflow.wait_until(
        lambda: {airflow.task_states(run).get(label) for label in labels} == {"deferred"},
        timeout=PATIENCE,
        what="all parts are deferred, on the worker that is left",
    )

    emulator.finish(*(job_id for part in parts for job_id in list(part.job_ids())[: ROWS // 2]))
    airflow.wait_until(
        lambda: all(part.landed() for part in parts), timeout=PATIENCE, what="rows of every part are kept"
    )
    airflow.kill(next(name for name in ("triggerer", "triggerer-2") if looks_at(airflow, name, emulator)))
    emulator.finish()
    assert airflow.wait_for_run(run, timeout=PATIENCE).state == "success"

    assert sending <= killed
    for part in parts:
        part.check_results()
        rows, paid, duplicates = part.results(), part.paid(), part.manifest()["duplicates_possible"]
        twice = sum(paid.values()) - ROWS
        assert twice <= duplicates <= (WINDOW if part.label in killed else 0)
        assert twice > 0 or part.label not in sending
        for row, job_id in recorded.get(part.label, {}).items():
            assert (rows[row]["job_id"], paid[rows[row]["index"]]) == (job_id, 1)
