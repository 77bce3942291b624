# SPDX-License-Identifier: Apache-2.0

"""What each service says on the wire, as the tests of both clients and of the pool need it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from airflow_provider_distribute.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_distribute.models import Settings
    from airflow_provider_distribute.services import Service

#: Read at import: a simulated service answers inside an event loop, where files must not be read.
SAMPLES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[1] / "samples").glob("*.json"))
}
KEY = "sk-planted/9f8e+7d6c-5b4a"


def sample(name: str) -> dict[str, Any]:
    """Return a recorded body, such as ``distribute.succeeded``."""
    return copy.deepcopy(SAMPLES[name])


def answered(status: int, body: Any) -> httpx.Response:
    """Return the answer to a request that carried the key."""
    request = httpx.Request("POST", "https://host/path", headers={"Authorization": f"Bearer {KEY}"})
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(status, content=content, request=request)


@dataclass(frozen=True)
class Contract:
    """One service as the documentation pages describe it, apart from the code that reads it."""

    name: str
    base_url: str
    authorization: str
    submit_path: str
    look_method: str
    #: ``{}`` stands for the job id.
    look_path: str
    #: The word for a state, by ours.
    words: Mapping[str, str]
    word_field: str

    @property
    def service(self) -> Service:
        """The service's reading of it."""
        return SERVICES[self.name]

    def settings(self, **fields: Any) -> Settings:
        """Return a connection with a key and a model."""
        given = {"api_key": KEY, "model": "some-model", **fields}
        return self.service.settings.parse(f"{self.name}_default", given)

    def ticket(self, job_id: str) -> httpx.Response:
        """Return the answer to a submission."""
        return answered(200, {**sample(f"{self.name}.ticket"), "id": job_id})

    def look(self, state: str, /, **fields: Any) -> httpx.Response:
        """Return the answer to a look, for a state of ours or any word of theirs."""
        body = sample(f"{self.name}.{state}") if state in self.words else sample(f"{self.name}.pending")
        word = self.words.get(state, state)
        return answered(200, {**body, self.word_field: word, **fields})

    def not_found(self) -> httpx.Response:
        """Return the answer to a look at a job that is not there."""
        return answered(404, sample(f"{self.name}.not-found"))

    def asked_for(self, request: httpx.Request) -> str:
        """Return the job id that a look asks for."""
        if self.look_method == "GET":
            return request.url.path.removeprefix(self.look_path.format(""))
        job_id: str = json.loads(request.content)["id"]
        return job_id


DISTRIBUTE = Contract(
    name="distribute",
    base_url="https://api.distribute.ai",
    authorization=KEY,
    submit_path="/async/chat/create",
    look_method="POST",
    look_path="/async/chat/result",
    words={"pending": "ASSIGNED_CONNECTIONS", "succeeded": "COMPLETED", "failed": "ERROR"},
    word_field="status",
)
INFERENCE_NET = Contract(
    name="inference_net",
    base_url="https://api.inference.net",
    authorization=f"Bearer {KEY}",
    submit_path="/v1/slow/chat/completions",
    look_method="GET",
    look_path="/v1/generation/{}",
    words={"pending": "In Progress", "succeeded": "Success", "failed": "Failed"},
    word_field="state",
)
CONTRACTS = {contract.name: contract for contract in (DISTRIBUTE, INFERENCE_NET)}
