# SPDX-License-Identifier: Apache-2.0

"""The real parts of integration tests: PostgreSQL and Airflow once per session, an emulator per test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.emulator import EmulatorProcess
from tests.integration.harness import AirflowUnderTest
from tests.integration.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SETTINGS = {
    # New files are found all the same; parsing the others again would cost the tests half of the machine.
    "dag_processor.min_file_process_interval": "600",
    "core.parallelism": "6",
    # Seconds within which a worker notices the end of a task's process.
    "workers.min_heartbeat_interval": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder ``integration``, unless it is ``distributed``."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("distributed") is None:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """Return the SQLAlchemy URL of a PostgreSQL that lives as long as the session."""
    with postgres() as url:
        yield url


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[AirflowUnderTest]:
    """Return a running Airflow on PostgreSQL with the LocalExecutor."""
    home = tmp_path_factory.mktemp("airflow")
    shutil.copytree(HERE / "config", home / "config")
    with AirflowUnderTest(home, database_url=database_url, settings=SETTINGS) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def chat_dags(airflow: AirflowUnderTest) -> None:
    """Put the Dags of the chat tests into Airflow."""
    airflow.add_dag("chat_spine", HERE / "dags" / "chat.py")


@pytest.fixture(scope="session")
def bulk_dag(airflow: AirflowUnderTest) -> None:
    """Put the Dag of the bulk tests into Airflow."""
    airflow.add_dag("bulk", HERE / "dags" / "bulk.py")


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[EmulatorProcess]:
    """Return an emulator of both services that has seen nothing yet."""
    with EmulatorProcess(tmp_path / "emulator.log") as running:
        yield running


@pytest.fixture(autouse=True)
def blocking_calls_in_event_loop_fail() -> None:
    """Leave the event loops here alone: those under test are in other processes."""
