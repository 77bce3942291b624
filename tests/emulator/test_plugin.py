# SPDX-License-Identifier: Apache-2.0

"""The pytest plugin, used here as a DAG author's tests use it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_distribute.testing import InferenceEmulator
from tests.emulator.wire import chat

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["airflow_provider_distribute.testing"]


def ask(connection: dict[str, Any], prompt: str = "Say hello.") -> httpx.Response:
    """Submit to distribute with what an Airflow connection holds."""
    headers = {"Authorization": connection["password"]}
    return httpx.post(f"{connection['host']}/async/chat/create", json=chat(prompt), headers=headers)


def test_connections_point_to_the_emulator(inference_connections: InferenceEmulator) -> None:
    """Both defaults, as Airflow reads them from the environment."""
    connection = json.loads(os.environ["AIRFLOW_CONN_DISTRIBUTE_DEFAULT"])
    assert connection["conn_type"] == "distribute"
    assert ask(connection).status_code == 200
    assert inference_connections.paid == 1
    other = json.loads(os.environ["AIRFLOW_CONN_INFERENCE_NET_DEFAULT"])
    assert (other["conn_type"], other["host"]) == (
        "inference_net",
        inference_connections.base_url("inference_net"),
    )


def test_connections_are_gone_afterwards() -> None:
    """The next test has its own environment."""
    assert "AIRFLOW_CONN_DISTRIBUTE_DEFAULT" not in os.environ


def test_a_connection_has_a_model_and_further_extras(inference_emulator: InferenceEmulator) -> None:
    """The model is one of the service's unless given."""
    extra = json.loads(inference_emulator.connection("distribute", timeout=5))["extra"]
    assert extra == {"model": "Llama-3.1 8B", "timeout": 5}
    assert json.loads(inference_emulator.connection("distribute", model="m"))["extra"]["model"] == "m"


@pytest.fixture
def slow_jobs(request: pytest.FixtureRequest) -> None:
    """Mark the test; as a decorator the marker would be used before this module's plugin is loaded."""
    request.applymarker(pytest.mark.inference_emulator(latency="1000", key=None))


@pytest.mark.usefixtures("slow_jobs")
def test_a_marker_sets_options(inference_emulator: InferenceEmulator) -> None:
    """Of this test's emulator; jobs are then finished by hand."""
    connection = json.loads(inference_emulator.connection("distribute"))
    first, second, third = (ask(connection).json()["id"] for _ in range(3))
    assert not any(job.done for job in inference_emulator.jobs)
    inference_emulator.finish(first)
    inference_emulator.finish(second, error="boom")
    assert [(job.done, job.failed) for job in inference_emulator.jobs] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert inference_emulator.finish_all(error="boom") == 1
    assert inference_emulator.job(third).failed


def test_a_job_that_is_not_there_is_a_key_error(inference_emulator: InferenceEmulator) -> None:
    """To finish it or to see it."""
    attempts: list[Callable[[str], object]] = [inference_emulator.finish, inference_emulator.job]
    for attempt in attempts:
        with pytest.raises(KeyError):
            attempt("nothing")


def test_one_emulator_may_serve_all_tests(inference_emulator_session: InferenceEmulator) -> None:
    """Reset between them."""
    connection = json.loads(inference_emulator_session.connection("distribute"))
    ask(connection)
    inference_emulator_session.fault("500")
    inference_emulator_session.reset()
    assert inference_emulator_session.paid == 0
    assert ask(connection).status_code == 200


def test_faults_looks_and_requests(inference_emulator: InferenceEmulator) -> None:
    """What tests of retries need."""
    connection = json.loads(inference_emulator.connection("distribute"))
    inference_emulator.fault("429", operation="submit", retry_after=1, count=1)
    assert [ask(connection).status_code for _ in range(2)] == [429, 200]
    (job,) = inference_emulator.jobs
    headers = {"Authorization": connection["password"]}
    httpx.post(f"{connection['host']}/async/chat/result", json={"id": job.id}, headers=headers)
    assert inference_emulator.looks == 1
    assert inference_emulator.job(job.id).looks == 1
    assert [entry.status for entry in inference_emulator.requests(operation="submit")] == [429, 200]
    assert inference_emulator.stats["faults"] == {"429": 1}
    inference_emulator.fault("500")
    inference_emulator.no_faults()
    assert ask(connection).status_code == 200


def test_a_wrong_fault_is_a_value_error(inference_emulator: InferenceEmulator) -> None:
    """At the line that gives it."""
    with pytest.raises(ValueError, match="no such fault"):
        inference_emulator.fault("explode")


def test_nothing_is_left_behind() -> None:
    """No thread, no port."""
    before = set(threading.enumerate())
    with InferenceEmulator() as emulator:
        port = int(emulator.url.rpartition(":")[2])
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_failure_to_start_is_raised() -> None:
    """In the thread that wants to use it: this address is not one of this machine."""
    with (
        pytest.raises(OSError, match=r"assign requested address|could not bind"),
        InferenceEmulator(host="192.0.2.1"),
    ):
        pass


CONFTEST = """
import pytest

pytest_plugins = ["airflow_provider_distribute.testing"]


@pytest.fixture(scope="session")
def inference_emulator_settings():
    return {"seed": 5, "latency": "1"}
"""

TESTS = """
import pytest


@pytest.mark.inference_emulator(latency="2")
def test_the_marker_goes_before_the_suites_settings(inference_connections):
    settings = inference_connections.settings
    assert (settings.seed, settings.latency) == (5, "2")


def test_the_suites_settings_hold_for_the_session_too(inference_emulator_session):
    assert inference_emulator_session.settings.latency == "1"
"""


def test_the_documented_way_works(tmp_path: Path) -> None:
    """In a project of its own: named in its conftest, with strict markers and warnings as errors."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_dags.py").write_text(TESTS)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "2 passed" in run.stdout, run.stdout + run.stderr


def test_wrong_options_are_refused_at_once() -> None:
    """As the settings refuse them."""
    with pytest.raises(ValueError, match="no such latency"):
        InferenceEmulator(latency="gamma:k=1")
