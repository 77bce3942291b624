# SPDX-License-Identifier: Apache-2.0

"""The emulator's core without a network: requests in, replies out, at a time the test sets."""

from __future__ import annotations

import json
from typing import Any

from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.core import Emulator
from airflow_provider_distribute.emulator.exchange import Incoming, Operation, Reply
from airflow_provider_distribute.emulator.settings import Settings

NOON = 1_750_000_000.0
KEY = "planted-key"
SERVICES = list(CONTRACTS)
HEADERS = {"distribute": KEY, "inference_net": f"Bearer {KEY}"}
TOKENS = {"distribute": "max_completion_tokens", "inference_net": "max_tokens"}


def chat(prompt: str = "Say hello.", /, **fields: Any) -> dict[str, Any]:
    """A request body both services accept."""
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}


class Wire:
    """One service of an emulator; ``now`` is the time."""

    def __init__(self, service: str, **settings: Any) -> None:
        self.service = service
        self.emulator = Emulator(Settings(**{"key": KEY, **settings}))
        self.now = NOON
        self.header: str | None = HEADERS[service]
        self.content_type = "application/json"

    def send(self, operation: Operation, body: bytes = b"", job_id: str = "") -> Reply:
        """Send a request to the first route of the service that has this operation."""
        route = next(route for route in CONTRACTS[self.service].routes if route.operation is operation)
        incoming = Incoming(self.service, route, self.header, self.content_type, body, job_id)
        return self.emulator.serve(incoming, self.now)

    def submit(self, prompt: str = "Say hello.", /, **fields: Any) -> Reply:
        """Submit a chat request."""
        return self.send(Operation.SUBMIT, json.dumps(chat(prompt, **fields)).encode())

    def job(self, prompt: str = "Say hello.", /, **fields: Any) -> str:
        """Submit a chat request that has to be accepted, and return the job's id."""
        reply = self.submit(prompt, **fields)
        assert reply.status == 200, reply
        return str(json.loads(reply.body)["id"])

    def look(self, job_id: str) -> Reply:
        """Ask for a job."""
        if self.service == "distribute":
            return self.send(Operation.LOOK, json.dumps({"id": job_id}).encode())
        return self.send(Operation.LOOK, job_id=job_id)

    def result(self, job_id: str) -> dict[str, Any]:
        """Ask for a job that has to be there."""
        reply = self.look(job_id)
        assert reply.status == 200, reply
        result: dict[str, Any] = json.loads(reply.body)
        return result

    def status(self, job_id: str) -> str:
        """The service's word for where a job stands."""
        return str(self.result(job_id)["status" if self.service == "distribute" else "state"])

    def completion(self, job_id: str) -> dict[str, Any]:
        """The part of a finished job's result that holds the choices."""
        result = self.result(job_id)
        completion: dict[str, Any] = result if self.service == "distribute" else result["response"]
        return completion

    def content(self, job_id: str) -> str:
        """The text of a finished job's first choice."""
        return str(self.completion(job_id)["choices"][0]["message"]["content"])
