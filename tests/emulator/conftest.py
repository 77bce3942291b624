# SPDX-License-Identifier: Apache-2.0

"""Both services, without and with a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from airflow_provider_distribute.testing import InferenceEmulator
from tests.emulator.wire import SERVICES, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    """Each of the services in turn."""
    return str(request.param)


@pytest.fixture
def wire(service: str) -> Callable[..., Wire]:
    """Make an emulator without a network, with the given settings."""

    def make(**settings: Any) -> Wire:
        return Wire(service, **settings)

    return make


@pytest.fixture
def emulator() -> Iterator[InferenceEmulator]:
    """An emulator on a port, whose jobs are finished at once."""
    with InferenceEmulator() as emulator:
        yield emulator


@pytest.fixture
def client(emulator: InferenceEmulator) -> Iterator[httpx.Client]:
    """A client with the key of distribute, at the emulator's root."""
    with httpx.Client(base_url=emulator.url, headers={"Authorization": "emulator-key"}) as client:
        yield client
