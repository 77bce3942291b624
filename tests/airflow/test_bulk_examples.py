# SPDX-License-Identifier: Apache-2.0

"""The bulk examples run as they are against the emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_distribute.testing import InferenceEmulator

ROOT = Path(__file__).parents[2]
NAMES = ("example_bulk_classify", "example_bulk_sharded", "example_bulk_nightly")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all of them in one process, as ``dag.test()`` does."""
    home = tmp_path_factory.mktemp("airflow")
    with InferenceEmulator() as emulator:
        emulator.fault("text", value='{"sentiment": "good", "topic": "price"}')
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__DISTRIBUTE__RESULT_PATH": (home / "results").as_uri(),
            "AIRFLOW_CONN_DISTRIBUTE_DEFAULT": emulator.connection("distribute"),
            "AIRFLOW_CONN_INFERENCE_NET_DEFAULT": emulator.connection("inference_net"),
        }
        binary = Path(sys.executable).parent / "airflow"
        subprocess.run(
            [binary, "db", "migrate"], env=environment, check=True, capture_output=True, timeout=120
        )
        files = [str(ROOT / "example_dags" / f"{name}.py") for name in NAMES]
        run = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "airflow" / "run_dags.py"), *files],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        last = run.stdout.strip().splitlines()[-1]
        said: dict[str, Any] = json.loads(last.removeprefix("RESULT "))
        return {**said, "paid": emulator.paid}


def test_they_parse_without_a_connection(outcome: dict[str, Any]) -> None:
    """A scheduler parses them every few seconds."""
    assert (outcome["import_errors"], outcome["connected"]) == ({}, [])


def test_they_run(outcome: dict[str, Any]) -> None:
    """Every task of every one of them succeeds, and every question is paid for once."""
    assert [run["state"] for run in outcome["runs"]] == ["success"] * len(NAMES)
    assert outcome["paid"] == 3 + 12 + 3


def test_the_results_are_counted(outcome: dict[str, Any]) -> None:
    """By DuckDB, where they are."""
    counted = [run["returned"].get("count") for run in outcome["runs"][:2]]
    assert counted == ["{'good': 3}", "{'good': 12}"]
