# SPDX-License-Identifier: Apache-2.0

"""The emulator as a process of its own, scripted and counted over its control requests."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Self

import httpx

from airflow_provider_distribute.client import Client
from airflow_provider_distribute.models import ChatRequest
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.testing.emulator import MODELS
from demo.processes import Process, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.integration.harness import AirflowUnderTest

#: Every connection of these tests has this key. It must turn up nowhere.
PLANTED_KEY = "planted-api-key-4b1d0c7e9f"
#: Jobs end when a test says so; none waits for this many seconds.
NEVER_BY_ITSELF = 3600


class EmulatorProcess:
    """
    Both services on a free port, for as long as the ``with`` block lasts.

    :param log: file for what it prints.
    :param arguments: more of its command line.
    """

    def __init__(self, log: Path, *arguments: str) -> None:
        self._process = Process(
            "emulator",
            [
                sys.executable, "-m", "airflow_provider_distribute.emulator", "--port", "0",
                "--key", PLANTED_KEY, "--latency", str(NEVER_BY_ITSELF), *arguments,
            ],
            log=log,
        )  # fmt: skip
        # One connection for good: it is counted with those of the tasks.
        self._control = httpx.Client(
            timeout=10, trust_env=False, limits=httpx.Limits(max_connections=1, keepalive_expiry=None)
        )

    def __enter__(self) -> Self:
        self._process.start()

        def ready() -> str:
            self._process.check()
            return next((line for line in self._process.tail().splitlines() if line.startswith("ready ")), "")

        line = wait_until(ready, timeout=30, what="the emulator listens")
        self._places = dict(place.split("=", 1) for place in line.split()[1:])
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.stop()

    @property
    def port(self) -> int | None:
        """The port it listens on."""
        return httpx.URL(self._places["control"]).port

    def connect(self, airflow: AirflowUnderTest, service: str = "distribute", **extra: Any) -> str:
        """
        Store a connection to a service in Airflow.

        :param extra: fields of its extra.
        :return: its id, which no other emulator's connection has.
        """
        conn_id = f"{service}_{self.port}"
        self.connect_as(conn_id, airflow, service, **extra)
        return conn_id

    def connect_as(
        self, conn_id: str, airflow: AirflowUnderTest, service: str = "distribute", **extra: Any
    ) -> None:
        """Store a connection to a service under a certain id."""
        airflow.add_connection(
            conn_id,
            conn_type=service,
            host=self._places[service],
            password=PLANTED_KEY,
            extra=json.dumps({"model": MODELS[service], **extra}),
        )

    def submit(self, service: str, prompt: str = "Say hello.") -> str:
        """Submit a request from here, and return its job id."""
        settings = SERVICES[service].settings.parse(
            "direct", {"base_url": self._places[service], "api_key": PLANTED_KEY, "model": MODELS[service]}
        )
        with Client(settings) as client:
            return client.submit(ChatRequest.parse(prompt))

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._control.request(method, f"{self._places['control']}{path}", **arguments)
        response.raise_for_status()
        return response.json()

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of requests, jobs, looks, faults and connections."""
        stats: dict[str, Any] = self._ask("GET", "/stats")
        return stats

    @property
    def paid(self) -> int:
        """How many jobs were created, and so are billed."""
        return sum(self.stats["paid"].values())

    @property
    def looks(self) -> int:
        """How many requests asked how a job is doing, whatever they were answered."""
        return sum(sum(operations.get("look", {}).values()) for operations in self.stats["requests"].values())

    def _pages(self, path: str, key: str, **wanted: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: int | None = wanted.pop("after", 0)
        while after is not None:
            page = self._ask("GET", path, params={**wanted, "after": after})
            found += page[key]
            after = page["next"]
        return found

    def entries(self, **wanted: Any) -> list[dict[str, Any]]:
        """
        Return the requests it got, oldest first.

        :param wanted: the ledger's columns, e.g. ``operation="submit"``; ``after``, a sequence number.
        """
        return self._pages("/ledger", "entries", **wanted)

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs, those of one service after those of the other."""
        return self._pages("/jobs", "jobs")

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs."""
        return [job["id"] for job in self.jobs()]

    def fault(self, kind: str, **fields: Any) -> None:
        """Let something go wrong from now on; see :mod:`airflow_provider_distribute.emulator.faults`."""
        self._ask("POST", "/faults", json={"kind": kind, **fields})

    def forget_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._ask("DELETE", "/faults")

    def outage(self, mode: str, *, seconds: float) -> None:
        """
        Let no request through for a time.

        :param mode: a status, ``reset`` or ``refuse``.
        """
        self._ask("POST", "/outage", json={"mode": mode, "seconds": seconds})

    def end_outage(self) -> None:
        """Let requests through again; an outage of mode ``refuse`` only ends by itself."""
        self._ask("DELETE", "/outage")

    def finish(self, *job_ids: str, error: str | None = None) -> None:
        """
        End jobs now, all pending ones if none is named.

        :param error: end them as failed, for this reason.
        """
        body = {} if error is None else {"error": error}
        for job_id in job_ids:
            self._ask("POST", f"/jobs/{job_id}/finish", json=body)
        if not job_ids:
            self._ask("POST", "/jobs/finish", json=body)


def prompts(count: int) -> Sequence[str]:
    """Return different questions."""
    return [f"What is {number} times {number}?" for number in range(1, count + 1)]
