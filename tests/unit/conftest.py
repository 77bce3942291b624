# SPDX-License-Identifier: Apache-2.0

"""Every test that asks for ``contract`` runs for each service, for ``colour`` with each client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from airflow_provider_distribute import client as client_module
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.waiting import pool as pool_module
from tests.unit.clock import Clock
from tests.unit.contracts import CONTRACTS
from tests.unit.wire import Caller, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from airflow_provider_distribute.services import Service
    from tests.unit.contracts import Contract
    from tests.unit.wire import Answer, Colour


class Drive(Protocol):
    """Makes a client over a wire; closes it after the test."""

    def __call__(self, *answers: Answer, **fields: Any) -> tuple[Caller, Wire]:
        """Return the client and the wire, for a connection with these fields."""
        ...


class DriveReal(Protocol):
    """Makes a client for a server on the loopback interface; closes it after the test."""

    def __call__(self, url: str, **fields: Any) -> Caller:
        """Return the client for a connection with these fields."""
        ...


@pytest.fixture(params=sorted(SERVICES))
def contract(request: pytest.FixtureRequest) -> Contract:
    return CONTRACTS[request.param]


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Colour:
    colour: Colour = request.param
    return colour


@pytest.fixture
def service(contract: Contract) -> Service:
    return contract.service


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Nobody sleeps in earnest: the client and the pool live by this clock."""
    clock = Clock()
    monkeypatch.setattr(client_module, "time", clock)
    monkeypatch.setattr(pool_module, "time", clock)
    return clock


@pytest.fixture
def drive(contract: Contract, colour: Colour, clock: Clock) -> Iterator[Drive]:
    opened: list[Caller] = []

    def open_over(*answers: Answer, **fields: Any) -> tuple[Caller, Wire]:
        wire = Wire(*answers)
        opened.append(Caller.over(colour, contract.settings(**fields), wire, clock.loop))
        return opened[-1], wire

    yield open_over
    for caller in opened:
        caller.close()


@pytest.fixture
def drive_handler(contract: Contract, colour: Colour, clock: Clock) -> Iterator[Callable[..., Caller]]:
    opened: list[Caller] = []

    def open_over(handler: Callable[[httpx.Request], httpx.Response], **fields: Any) -> Caller:
        opened.append(Caller.over(colour, contract.settings(**fields), handler, clock.loop))
        return opened[-1]

    yield open_over
    for caller in opened:
        caller.close()


@pytest.fixture
def drive_real(contract: Contract, colour: Colour) -> Iterator[DriveReal]:
    opened: list[Caller] = []

    def open_real(url: str, **fields: Any) -> Caller:
        opened.append(Caller.real(colour, contract.settings(base_url=url, **fields)))
        return opened[-1]

    yield open_real
    for caller in opened:
        caller.close()
