# SPDX-License-Identifier: Apache-2.0

"""Rules for every test: only the loopback network, nothing blocks an event loop, a private Airflow home."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# Airflow reads these when it is first imported, and writes its configuration file into its home.
AIRFLOW_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ.update(
    AIRFLOW_HOME=AIRFLOW_HOME.name,
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
)


class NetworkUsed(BaseException):
    """A test tried to reach another machine; no ``except Exception`` can take it for a failed request."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        connecting, address = arguments
        if connecting.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise NetworkUsed(f"a test tried to connect to {address[0]!r}")
    elif event == "socket.getaddrinfo":
        host = arguments[0]
        if host is not None and not _is_loopback(host if isinstance(host, str) else host.decode()):
            raise NetworkUsed(f"a test tried to resolve {host!r}")


sys.addaudithook(_refuse_network)

# On a busy machine every example may be the slow one.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def blocking_calls_in_event_loop_fail() -> Iterator[None]:
    """Raise when the package makes a blocking call inside an event loop: a triggerer would stall."""
    with blockbuster_ctx("airflow_provider_distribute") as guard:
        # Coverage takes it for a moment, whenever a thread comes into a file that is new to it.
        guard.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})
        yield
