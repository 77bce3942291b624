# SPDX-License-Identifier: Apache-2.0

"""A scripted wire for both clients, and both clients behind one blocking face."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import httpx

from airflow_provider_distribute.client import AsyncClient, Client

if TYPE_CHECKING:
    from airflow_provider_distribute.models import ChatRequest, Job, Settings
    from airflow_provider_distribute.pacing import RateLimit
    from airflow_provider_distribute.services import Call

Colour = Literal["sync", "async"]
#: A response, an error to raise, or a function that makes a response whose body is still to be decoded.
Answer: TypeAlias = httpx.Response | BaseException | Callable[[], httpx.Response]


class Wire:
    """Gives the scripted answers in turn, the last one for ever, and remembers what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        if not isinstance(answer, httpx.Response):
            return answer()
        # A response is spent once it was read: give out a fresh one.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Caller:
    """Either client, called as if it were synchronous."""

    def __init__(self, client: Client | AsyncClient, runner: asyncio.Runner | None) -> None:
        self.client = client
        self._runner = runner

    @classmethod
    def over(
        cls, colour: Colour, settings: Settings, handler: Callable[[httpx.Request], httpx.Response], loop: Any
    ) -> Caller:
        """Return a client whose network is a function."""
        transport = httpx.MockTransport(handler)
        if colour == "sync":
            return cls(Client(settings, transport=transport), None)
        return cls(AsyncClient(settings, transport=transport), asyncio.Runner(loop_factory=loop))

    @classmethod
    def real(cls, colour: Colour, settings: Settings) -> Caller:
        """Return a client with its own transport, for a server on the loopback interface."""
        if colour == "sync":
            return cls(Client(settings), None)
        runner = asyncio.Runner()
        return cls(runner.run(AsyncClient.open(settings)), runner)

    @property
    def limit(self) -> RateLimit:
        """The client's rate limit."""
        return self.client.limit

    def submit(self, request: ChatRequest, **options: Any) -> str:
        """As the client's."""
        job_id: str = self._settle(self.client.submit(request, **options))
        return job_id

    def submit_once(self, call: Call) -> str:
        """As the client's."""
        job_id: str = self._settle(self.client.submit_once(call))
        return job_id

    def look(self, job_id: str) -> Job:
        """As the client's."""
        job: Job = self._settle(self.client.look(job_id))
        return job

    def look_in_turn(self, job_id: str) -> Job:
        """As the client's."""
        job: Job = self._settle(self.client.look_in_turn(job_id))
        return job

    def probe(self) -> None:
        """As the client's."""
        self._settle(self.client.probe())

    def close(self) -> None:
        """Close the client and its event loop."""
        self._settle(self.client.close())
        if self._runner is not None:
            self._runner.close()

    def _settle(self, result: Any) -> Any:
        return result if self._runner is None else self._runner.run(result)
