# SPDX-License-Identifier: Apache-2.0

"""A service that counts what it took, a storage that can be killed at any write, and runs between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from upath import UPath

from airflow_provider_distribute.bulk.attempt import Attempt
from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.inputs import Source, source_of
from airflow_provider_distribute.bulk.policy import Policy
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.bulk.submission import Submission, Submitted
from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.waiting.pool import Pool
from tests.unit.contracts import DISTRIBUTE
from tests.unit.storage import READING, directory_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from airflow_provider_distribute.bulk.attempt import Ended
    from airflow_provider_distribute.bulk.costs import Budget
    from airflow_provider_distribute.models import Settings
    from tests.unit.clock import Clock
    from tests.unit.storage import Store

#: Read here, outside of any event loop.
BODIES = {state: DISTRIBUTE.look(state).json() for state in ("pending", "succeeded", "failed")}
OWNER = Owner("dag", "run", "task")
FAR = 1e12

T = TypeVar("T")


class Killed(BaseException):
    """The process was killed here: no ``except Exception`` sees it."""


class Life:
    """
    The life of a process, which ends at one of the instants at which it changes something, or never.

    :param at: Counts the instants, from 1.
    :param share: How much of what it does then still happens, from nothing (0.0) to all of it (1.0).
    """

    def __init__(self, at: float = math.inf, share: float = 0.0) -> None:
        self._at = at
        self._share = share
        self.instants = 0
        self.over = False

    def begins(self, act: str = "", path: str = "") -> float:
        """Return how much of an act happens."""
        if self.over:
            raise Killed
        if act in READING:
            return 1.0
        self.instants += 1
        self.over = self.instants >= self._at
        return self._share if self.over else 1.0

    def ends(self) -> None:
        """Go on after an act, or die."""
        if self.over:
            raise Killed


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
    sent: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    life: Life = field(default_factory=Life)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        await asyncio.sleep(0)
        heard = self.life.begins()
        answer = self._answer(request) if heard else None
        self.life.ends()
        assert answer is not None
        return answer

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == DISTRIBUTE.submit_path:
            return self._create(body)
        self.looks += 1
        return self._result(body["id"])

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        prompt = question_in(body)
        self.bodies.append(body)
        self.sent[prompt] += 1
        tickets = self.taken.setdefault(prompt, [])
        said = self.submit(prompt, self.sent[prompt])
        if isinstance(said, Exception):
            if isinstance(said, httpx.ReadError):
                tickets.append(f"{prompt}#{len(tickets)}")
            raise said
        if said is not None:
            return said
        tickets.append(f"{prompt}#{len(tickets)}")
        return httpx.Response(200, json={"id": tickets[-1]})

    def content_of(self, job_id: str) -> str | None:
        """Return what a job answers; ``None``: it has not ended."""
        return self.answer(job_id.rpartition("#")[0])

    def _result(self, job_id: str) -> httpx.Response:
        content = self.content_of(job_id)
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


@dataclass
class World:
    """
    One run directory, one service, and as many attempts as a test wants.

    The directory is on the disk, unless there is a store. Time passes as it does, unless there is a clock.
    """

    path: Path
    service: Service = field(default_factory=Service)
    fields: dict[str, Any] = field(default_factory=dict)
    store: Store | None = None
    clock: Clock | None = None

    @property
    def settings(self) -> Settings:
        """The connection."""
        return DISTRIBUTE.settings(**{"model": "Llama-3.1 8B", "airflow_metadata": False, **self.fields})

    def client(self) -> AsyncClient:
        """Return a client whose network is the service."""
        return AsyncClient(self.settings, transport=httpx.MockTransport(self.service))

    def directory(self) -> Directory:
        """Return the run's directory."""
        return Directory(UPath(self.path)) if self.store is None else directory_on(self.store)

    def now(self) -> float:
        """Return the epoch second."""
        return (self.clock or time).time()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.clock.run(main) if self.clock else asyncio.run(main)

    def lead(self, life: Life) -> None:
        """Let whoever uses the store and the service live this life."""
        assert self.store is not None
        self.store.before, self.store.after = life.begins, life.ends
        self.service.life = life

    def take_up(self, requests: Any, **plan: Any) -> tuple[Run, Any]:
        """Begin an attempt."""
        run = Run(self.directory(), planned(self.settings, **plan))
        source = requests if isinstance(requests, Source) else source_of(requests, open_path=UPath)
        staged = run.take_up(source, now=self.now())
        return run, staged

    async def submit(self, run: Run, staged: Any, *, deadline: float = FAR, **more: Any) -> Submitted:
        """Send what is missing."""
        budget = await asyncio.to_thread(run.budget, staged.costs)
        return await self._submit(run, budget, deadline=deadline, **more)

    async def _submit(self, run: Run, budget: Budget, **more: Any) -> Submitted:
        async with self.client() as client:
            return await Submission(run, client, budget, **more).run()

    async def collect(self, *, deadline: float = FAR, poke_interval: float = 0.1) -> Collection:
        """Wait for what is running."""
        collection = Collection(self.directory(), self.settings)
        await asyncio.to_thread(collection.read)
        await self._wait(collection, deadline, poke_interval)
        return collection

    async def _wait(self, collection: Collection, deadline: float, poke_interval: float) -> None:
        pool = Pool(self.settings, open_client=self._open)
        await collection.wait_and_look(pool, deadline=deadline, poke_interval=poke_interval)

    @contextlib.asynccontextmanager
    async def _open(self, settings: Settings) -> AsyncIterator[AsyncClient]:
        async with self.client() as client:
            yield client

    def attempt_at(
        self,
        run: Run,
        *,
        deadline: float = FAR,
        poke_interval: float = 0.1,
        **otherwise: Any,
    ) -> Attempt:
        """Return an attempt at a run that was taken up; it sends and waits here, unless told otherwise."""

        def submit(budget: Budget, folder: str | None) -> Submitted:
            return self.run(self._submit(run, budget, deadline=deadline, folder=folder))

        def wait(collection: Collection) -> None:
            self.run(self._wait(collection, deadline, poke_interval))

        here: dict[str, Any] = {"submit": submit, "wait": wait}
        return Attempt(run, deadline=deadline, **here | otherwise)

    def attempt(
        self, requests: Any, *, deadline: float = FAR, poke_interval: float = 0.1, **plan: Any
    ) -> dict[str, Any]:
        """Do all of it: take up, send, wait, land, repair; return the manifest."""
        run, staged = self.take_up(requests, **plan)
        attempt = self.attempt_at(run, deadline=deadline, poke_interval=poke_interval)
        return attempt.begin(staged).manifest

    def resume(self, run: Run, *, deadline: float = FAR) -> Ended:
        """Go on with an attempt in another process, which knows what was recorded."""
        return self.attempt_at(Run(self.directory(), run.plan), deadline=deadline).resume()

    def results(self) -> list[dict[str, Any]]:
        """Return the rows."""
        written = self.directory().read("results.jsonl")
        assert written is not None
        return [json.loads(line) for line in written.splitlines()]


def planned(settings: Settings, **fields: Any) -> Plan:
    """Return a plan, with what its policy chooses among its fields."""
    choices = {name: fields.pop(name) for name in Policy.model_fields if name in fields}
    return Plan(settings, OWNER, policy=Policy(**choices), **fields)


def question_in(body: dict[str, Any]) -> str:
    """Return what the user asked first."""
    question: str = next(message["content"] for message in body["messages"] if message["role"] == "user")
    return question


def prompts(count: int) -> list[str]:
    return [f"Question {number}" for number in range(count)]


def statuses(rows: list[dict[str, Any]]) -> Iterator[str]:
    return (row["status"] for row in rows)
