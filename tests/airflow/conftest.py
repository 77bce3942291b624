# SPDX-License-Identifier: Apache-2.0

"""Both services on a wire without a network, at a clock of the test's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_distribute import client as client_module
from tests.airflow.clock import Clock
from tests.airflow.supervisor import Life
from tests.airflow.wire import KEY, SERVICES, Wire, connection

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
    """Stands in for Airflow's ``Stats`` and adds up."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.tags: list[dict[str, str]] = []

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, str]) -> None:
        """Count, and remember which tags there were."""
        self.counts[stat] += count
        if tags not in self.tags:
            self.tags.append(tags)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """What Airflow's metrics were told by triggers."""
    metrics = Metrics()
    monkeypatch.setattr("airflow_provider_distribute.triggers.metrics.Stats", metrics)
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
def life(clock: Clock, wire: Wire) -> Callable[..., Life]:
    """Make a task instance of an operator; see :class:`Life`."""

    def live(build: Callable[[], Any], **options: Any) -> Life:
        return Life(clock, build, **options)

    return live
