# SPDX-License-Identifier: Apache-2.0

"""Both services on a wire without a network, at a clock of the test's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_distribute import client as client_module
from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator
from tests.airflow.clock import Clock
from tests.airflow.supervisor import Life
from tests.airflow.wire import KEY, MODELS, SERVICES, Wire, connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent

#: Warnings that Airflow gives itself: message and why it is not ours to fail for.
AIRFLOWS_OWN = (
    # 3.0 and 3.1 look up connections by these themselves.
    "ignore:Using Connection\\.(get_connection_from_secrets|from_json|from_uri) from:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Airflow's own warnings pass in the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(HERE):
            for warning in AIRFLOWS_OWN:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Nobody waits in earnest."""
    with Clock(monkeypatch) as clock:
        yield clock


class Log:
    """What was logged: through ``logging``, or printed by structlog, which newer Airflows use."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
        caplog.set_level("INFO")
        self._caplog = caplog
        self._capsys = capsys
        self._printed = ""

    @property
    def text(self) -> str:
        """All of it."""
        self._printed += self._capsys.readouterr().out
        return self._caplog.text + self._printed


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Log:
    """The log so far."""
    return Log(caplog, capsys)


class Metrics:
    """
    Stands in for Airflow's ``Stats`` and adds up.

    :ivar counts: By name, and by name and status where there is one.
    :ivar tags: Every set of tags there was.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.tags: list[dict[str, str]] = []

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, str]) -> None:
        """Count, and remember which tags there were."""
        status = tags.get("status")
        self.counts[f"{stat}.{status}" if status else stat] += count
        if tags not in self.tags:
            self.tags.append(tags)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """What Airflow's metrics were told."""
    metrics = Metrics()
    for module in ("triggers.metrics", "operators.bulk_reports"):
        monkeypatch.setattr(f"airflow_provider_distribute.{module}.Stats", metrics)
    return metrics


@pytest.fixture
def wire(
    request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch, log: Log
) -> Iterator[Wire]:
    """The emulator instead of a network, with the options of an indirect parameter. No test may log a key."""
    wire = Wire(clock, **getattr(request, "param", {}))
    monkeypatch.setattr(client_module, "httpx_transport", wire.transport)
    monkeypatch.setattr(client_module, "aiohttp_transport", wire.transport)
    client_module.limit_of.cache_clear()
    yield wire
    assert KEY not in log.text


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    """Each of the services in turn."""
    return str(request.param)


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Define both default connections; call it to define one otherwise."""

    def define(name: str, given: str | None = None, **fields: Any) -> None:
        text = given or connection(name.removesuffix("_default"), **fields)
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", text)

    for name in SERVICES:
        define(f"{name}_default")
    return define


@pytest.fixture
def bulk(life: Callable[..., Life], service: str, tmp_path: Path) -> Callable[..., Life]:
    """Make a task instance that asks some questions."""

    def made(
        requests: Any = ("What is 1?", "What is 2?", "What is 3?"), *, map_index: int = -1, **fields: Any
    ) -> Life:
        given = {
            "task_id": "questions",
            "conn_id": f"{service}_default",
            "model": MODELS[service],
            "requests": list(requests) if isinstance(requests, tuple) else requests,
            "result_path": tmp_path.as_uri(),
            **fields,
        }
        return life(lambda: AsyncChatBulkOperator(**given), map_index=map_index)

    return made


@pytest.fixture
def life(clock: Clock, wire: Wire) -> Callable[..., Life]:
    """Make a task instance of an operator; see :class:`Life`."""

    def live(build: Callable[[], Any], **options: Any) -> Life:
        return Life(clock, build, **options)

    return live
