# SPDX-License-Identifier: Apache-2.0

"""A service that counts what it took, a storage that can be killed at any write, and runs between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from upath import UPath

from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.landing import land
from airflow_provider_distribute.bulk.manifest import manifest_of, write_manifest
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.bulk.submission import Submission, Submitted
from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.waiting.pool import Pool
from tests.unit.contracts import DISTRIBUTE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from airflow_provider_distribute.models import Settings

#: Read here, outside of any event loop.
BODIES = {state: DISTRIBUTE.look(state).json() for state in ("pending", "succeeded", "failed")}
OWNER = Owner("dag", "run", "task")
FAR = 1e12
Handler = Any


class Killed(BaseException):
    """The process was killed here: no ``except Exception`` sees it."""


@dataclass
class Service:
    """
    Distribute's two endpoints. Jobs end at once.

    ``submit`` may answer instead, given the prompt and how often it was sent; ``answer`` says what comes
    back.
    """

    submit: Callable[[str, int], httpx.Response | Exception | None] = lambda prompt, time: None
    answer: Callable[[str], str | None] = lambda prompt: f"Answer to {prompt}"
    taken: dict[str, list[str]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        await asyncio.sleep(0)
        body = json.loads(request.content)
        if request.url.path == DISTRIBUTE.submit_path:
            return self._create(body)
        self.looks += 1
        return self._result(body["id"])

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        prompt = body["messages"][-1]["content"]
        self.bodies.append(body)
        tickets = self.taken.setdefault(prompt, [])
        said = self.submit(prompt, sum(1 for b in self.bodies if b["messages"][-1]["content"] == prompt))
        if isinstance(said, Exception):
            if isinstance(said, httpx.ReadError):
                tickets.append(f"{prompt}#{len(tickets)}")
            raise said
        if said is not None:
            return said
        tickets.append(f"{prompt}#{len(tickets)}")
        return httpx.Response(200, json={"id": tickets[-1]})

    def _result(self, job_id: str) -> httpx.Response:
        content = self.answer(job_id.rpartition("#")[0])
        if content is None:
            return httpx.Response(200, json=BODIES["pending"])
        if content == "ERROR":
            return httpx.Response(200, json=BODIES["failed"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
        ended = {**BODIES["succeeded"], "choices": [choice], "usage": usage, "model": "Llama-3.1 8B"}
        return httpx.Response(200, json=ended)

    @property
    def paid(self) -> int:
        """How many requests were taken."""
        return sum(map(len, self.taken.values()))


class Mortal(Directory):
    """
    A directory whose user is killed at one of its journal's writes.

    ``left`` says how much of that object is there afterwards: from nothing (0.0) to all of it (1.0).
    """

    def __init__(self, path: Any, *, at: int, left: float) -> None:
        super().__init__(path)
        self._at = at
        self._left = left
        self.writes = 0

    def create(self, name: str, data: bytes) -> None:
        """Write an object, or die."""
        if name.startswith("journal/"):
            self.writes += 1
            if self.writes > self._at:
                raise Killed
            if self.writes == self._at:
                if self._left > 0:
                    super().create(name, data[: int(len(data) * self._left)])
                raise Killed
        super().create(name, data)


@dataclass
class World:
    """One run directory, one service, and as many attempts as a test wants."""

    path: Path
    service: Service = field(default_factory=Service)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The connection."""
        return DISTRIBUTE.settings(**{"model": "Llama-3.1 8B", "airflow_metadata": False, **self.fields})

    def client(self) -> AsyncClient:
        """Return a client whose network is the service."""
        return AsyncClient(self.settings, transport=httpx.MockTransport(self.service))

    def directory(self) -> Directory:
        """Return the run's directory."""
        return Directory(UPath(self.path))

    def take_up(self, requests: Any, *, directory: Directory | None = None, **plan: Any) -> tuple[Run, Any]:
        """Begin an attempt."""
        run = Run(directory or self.directory(), Plan(self.settings, OWNER, **plan))
        staged = run.take_up(source_of(requests, open_path=UPath), now=time.time())
        return run, staged

    async def submit(self, run: Run, staged: Any, *, deadline: float = FAR, **more: Any) -> Submitted:
        """Send what is missing."""
        async with self.client() as client:
            budget = await asyncio.to_thread(run.budget, staged.costs)
            return await Submission.of(run, client, budget, deadline=deadline, **more).run()

    async def collect(self, *, deadline: float = FAR, poke_interval: float = 0.1) -> Collection:
        """Wait for what is running."""
        collection = Collection(self.directory(), self.settings)
        await asyncio.to_thread(collection.read)
        pool = Pool(self.settings, open_client=self._open)
        await collection.run(pool, deadline=deadline, poke_interval=poke_interval)
        return collection

    @contextlib.asynccontextmanager
    async def _open(self, settings: Settings) -> AsyncIterator[AsyncClient]:
        async with self.client() as client:
            yield client

    def land(self, run: Run, *, format_: str = "jsonl", **more: Any) -> dict[str, Any]:
        """Land what has come back."""
        run.state = run.journal.read()
        chosen = format_from(format_)
        landing = land(run, chosen, **more)
        manifest = manifest_of(run, landing, results=chosen.file, now=time.time())
        write_manifest(run, manifest)
        run.settle(landing.again, landing.unknown_rows)
        return manifest

    def attempt(self, requests: Any, *, deadline: float = FAR, **plan: Any) -> dict[str, Any]:
        """Do all of it: submit, collect, land."""

        async def both() -> None:
            await self.submit(run, staged)
            await self.collect(deadline=deadline)

        run, staged = self.take_up(requests, **plan)
        asyncio.run(both())
        return self.land(run)

    def results(self) -> list[dict[str, Any]]:
        """Return the rows."""
        return [json.loads(line) for line in (self.path / "results.jsonl").read_text().splitlines()]


def prompts(count: int) -> list[str]:
    return [f"Question {number}" for number in range(count)]


def statuses(rows: list[dict[str, Any]]) -> Iterator[str]:
    return (row["status"] for row in rows)
