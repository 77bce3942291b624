# SPDX-License-Identifier: Apache-2.0

"""The example Dags run as they are, on this Airflow's own ``dag.test()``, against the emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_distribute.testing import InferenceEmulator

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "example_dags"
OTHER_SERVICE = json.dumps({"conn_id": "inference_net_default"})
#: Runs by file and conf, and how many questions each pays for.
RUNS = {
    "example_single_question.py": 1,
    "example_two_services.py": 3,
    f"example_two_services.py={OTHER_SERVICE}": 3,
    "example_fan_out.py": 4,
    "example_hook_in_task.py": 2,
}


@pytest.fixture(scope="module")
def emulator() -> Any:
    """Both services on the loopback interface."""
    with InferenceEmulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def report(emulator: InferenceEmulator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all examples in one process with a database of its own, and return what ``run_dags`` says."""
    environment = {
        **os.environ,
        **emulator.connections(),
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    run("-m", "airflow", "db", "migrate")
    said = run(str(HERE / "run_dags.py"), *(str(EXAMPLES / name) for name in RUNS))
    result: dict[str, Any] = json.loads(said.rpartition("RESULT ")[2])
    return result


def test_every_example_is_run() -> None:
    """An example that is not run here is a promise nobody keeps; bulk runs have their own tests."""
    files = {path.name for path in EXAMPLES.glob("*.py") if not path.name.startswith("example_bulk")}
    assert files == {name.partition("=")[0] for name in RUNS}


def test_examples_can_be_imported(report: dict[str, Any]) -> None:
    """The Dag processor finds no fault in them."""
    assert report["import_errors"] == {}


def test_parsing_connects_to_nothing(report: dict[str, Any]) -> None:
    """Dag files are parsed every few seconds: no database, no service, no connection look-up."""
    assert report["connected"] == []


@pytest.mark.parametrize("place", range(len(RUNS)), ids=list(RUNS))
def test_example_runs_to_its_end(report: dict[str, Any], place: int) -> None:
    """Every task of the run succeeds."""
    run = report["runs"][place]
    assert run["state"] == "success"
    assert set(run["tasks"].values()) == {"success"}


def test_fan_out_maps_over_the_prompts(report: dict[str, Any]) -> None:
    """One task that submits and one sensor for each prompt."""
    tasks = report["runs"][list(RUNS).index("example_fan_out.py")]["tasks"]
    assert {f"{task}[{index}]" for task in ("submit", "wait") for index in range(3)} <= tasks.keys()


def test_each_question_is_paid_once(report: dict[str, Any], emulator: InferenceEmulator) -> None:
    """No run submits anything twice; the second run of the same Dag went to the other service."""
    assert emulator.paid == sum(RUNS.values())
    paid = {
        name: sum(job.service == name for job in emulator.jobs) for name in ("distribute", "inference_net")
    }
    assert paid == {"distribute": 1 + 3 + 2, "inference_net": 3 + 4}
