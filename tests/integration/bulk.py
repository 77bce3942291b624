# SPDX-License-Identifier: Apache-2.0

"""A bulk run on a real Airflow, and what can be known about it from outside."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upath import UPath

from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.ledger.rows import read_rows
from tests.integration.emulator import prompts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from airflow_provider_distribute.ledger.replay import State
    from demo.deployment import Run
    from tests.integration.emulator import EmulatorProcess
    from tests.integration.harness import AirflowUnderTest

#: A bulk operator's default: rows that may be unknown after a crash.
WINDOW = 64


@dataclass(frozen=True)
class BulkRun:
    """
    What one task instance asks.

    :param questions: Each question by its place in the input.
    """

    airflow: AirflowUnderTest
    emulator: EmulatorProcess
    run: Run
    questions: Mapping[int, str]
    task_id: str = "ask"
    map_index: int = -1

    @classmethod
    def start(
        cls,
        airflow: AirflowUnderTest,
        emulator: EmulatorProcess,
        rows: int,
        *,
        service: str = "distribute",
        **extra: Any,
    ) -> BulkRun:
        """
        Trigger the Dag of ``dags/bulk.py``.

        :param extra: Fields of the connection's extra.
        """
        conn_id = emulator.connect(airflow, service, **extra)
        questions = prompts(rows)
        requests = write_questions(airflow, conn_id, questions)
        conf = {"conn_id": conn_id, "requests": requests, "result_path": results_of(airflow).as_uri()}
        return cls(airflow, emulator, airflow.trigger("bulk", conf), dict(enumerate(questions)))

    @property
    def label(self) -> str:
        """The task instance, as states name it."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"

    @property
    def directory(self) -> Path:
        """The run's directory."""
        owner = Owner(self.run.dag_id, self.run.run_id, self.task_id, self.map_index)
        return results_of(self.airflow) / owner.directory

    def wait_until_deferred(self, *, attempt: int = 1) -> None:
        """Wait until an attempt has sent everything and its worker has left."""
        self.airflow.wait_for_task(self.run, self.label, "deferred", attempt=attempt)

    def log(self) -> str:
        """Return what all attempts have logged."""
        return self.airflow.task_log(self.run, self.task_id, map_index=self.map_index)

    def manifest(self) -> dict[str, Any]:
        """Return what the task pushed to XCom."""
        manifest: dict[str, Any] = self.airflow.xcom(self.run, self.task_id, map_index=self.map_index)
        return manifest

    def journal(self) -> State:
        """Return what is recorded at this moment."""
        return Journal(Directory(UPath(self.directory)), writer="test").read()

    def progress(self) -> dict[str, Any]:
        """Return what ``progress.json`` says; nothing while it is not there or being written."""
        path = self.directory / "progress.json"
        try:
            progress: dict[str, Any] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return progress

    def landed(self) -> dict[int, str]:
        """Return the job of each row whose answer is kept, by row."""
        return {head.row: head.ticket for head, _ in read_rows(Directory(UPath(self.directory)))}

    def results(self) -> list[dict[str, Any]]:
        """Return the rows that were landed."""
        lines = (self.directory / "results.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def job_ids(self) -> dict[str, int]:
        """Return the ids of all jobs that are billed for this task, with their place in the input."""
        mine = {
            "airflow_dag_id": self.run.dag_id,
            "airflow_run_id": self.run.run_id,
            "airflow_task_id": self.task_id,
            "airflow_map_index": str(self.map_index),
        }
        sent = ((job["id"], job["request"]["metadata"]) for job in self.emulator.jobs())
        return {
            job_id: int(metadata["airflow_index"])
            for job_id, metadata in sent
            if mine.items() <= {name: str(value) for name, value in metadata.items()}.items()
        }

    def paid(self) -> dict[int, int]:
        """Return how often each row was paid, by its place in the input."""
        return dict(Counter(self.job_ids().values()))

    def check_results(self) -> None:
        """Check that there is one row for each question, in order, and each holds its own answer."""
        rows, jobs = self.results(), self.job_ids()
        assert [row["index"] for row in rows] == list(self.questions)
        assert {row["status"] for row in rows} == {"succeeded"}
        for row in rows:
            assert self.questions[row["index"]] in row["output"]
            assert jobs[row["job_id"]] == row["index"]


def results_of(airflow: AirflowUnderTest) -> Path:
    """Return the directory below which all runs of an Airflow have theirs."""
    return airflow.home / "results"


def write_questions(airflow: AirflowUnderTest, name: str, questions: Sequence[str]) -> str:
    """Write a file of requests, and return its URI."""
    path = airflow.home / "questions" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, questions)))
    return path.as_uri()
