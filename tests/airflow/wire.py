# SPDX-License-Identifier: Apache-2.0

"""The emulator behind ``httpx.MockTransport``: both services without a network, at a clock's time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx

from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.core import Emulator
from airflow_provider_distribute.emulator.exchange import Delivery, Incoming
from airflow_provider_distribute.emulator.faults import from_json
from airflow_provider_distribute.emulator.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_distribute.emulator.core import JobView
    from airflow_provider_distribute.emulator.exchange import Route
    from tests.airflow.clock import Clock

#: Long enough to be found in whatever a test leaves behind, and in nothing else.
KEY = "sk-planted-4c1d7e90ab"
MODELS = {"distribute": "Llama-3.1 8B", "inference_net": "meta-llama/llama-3.1-8b-instruct/fp-16"}
HOSTS = {"distribute": "api.distribute.ai", "inference_net": "api.inference.net"}
SERVICES = tuple(CONTRACTS)


class Killed(BaseException):
    """The process of a task is gone from one instruction to the next."""


class Wire:
    """
    What httpx sends to instead of the network.

    :ivar requests: All that was sent.
    :ivar opened: How many clients were opened on it.
    :ivar closed: How many of them were closed.
    :ivar unreachable: So many of the next requests find nobody listening.
    :ivar listener: Called with each request before it is answered.
    :ivar edited: Called with the body of each answer to a look, to change it.
    :ivar killed_after: The process dies before it sees the answer to this submission, counted from 1.
    """

    def __init__(self, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        self.emulator = Emulator(Settings(**{"key": KEY, **settings}))
        self.requests: list[httpx.Request] = []
        self.opened = 0
        self.closed = 0
        self.unreachable = 0
        self.listener: Callable[[httpx.Request], object] = lambda request: None
        self.edited: Callable[[dict[str, Any]], object] = lambda body: None
        self.killed_after: int | None = None

    def transport(self, *_: object) -> httpx.MockTransport:
        """Return the network for one more client."""
        self.opened += 1
        return _Transport(self)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Let the emulator answer a request."""
        if self.unreachable:
            self.unreachable -= 1
            raise httpx.ConnectError("nobody listens", request=request)
        self.requests.append(request)
        self.listener(request)
        service = next(name for name, host in HOSTS.items() if request.url.host == host)
        route, job_id = _route_of(service, request)
        reply = self.emulator.serve(
            Incoming(
                service,
                route,
                request.headers.get("authorization"),
                request.headers.get("content-type", ""),
                request.content,
                job_id,
            ),
            self.clock.now,
        )
        if _is_submission(request) and len(self.submissions) == self.killed_after:
            raise Killed
        if reply.delivery is Delivery.RESET:
            raise httpx.ReadError("reset", request=request)
        headers = {"Content-Type": reply.content_type, **reply.headers}
        content = reply.body
        if reply.status == 200 and not _is_submission(request):
            body = json.loads(content)
            self.edited(body)
            content = json.dumps(body).encode()
        return httpx.Response(reply.status, headers=headers, content=content)

    def fault(self, kind: str, **fields: Any) -> None:
        """Let something go wrong from now on; as :meth:`InferenceEmulator.fault`."""
        self.emulator.faults.add(from_json({"kind": kind, **fields}))

    def no_faults(self) -> None:
        """Let nothing go wrong any more."""
        self.emulator.faults.remove()

    def finish(self, job_id: str, *, error: str | None = None) -> None:
        """End a job now."""
        job = self.emulator.job(job_id)
        assert job is not None, job_id
        self.emulator.finish(job, self.clock.now, error=error)

    @property
    def jobs(self) -> list[JobView]:
        """All jobs, in the order of submission."""
        return [self.emulator.describe(job, self.clock.now) for job in self.emulator.jobs()]

    @property
    def job_ids(self) -> list[str]:
        """Their ids."""
        return [job.id for job in self.jobs]

    @property
    def paid(self) -> int:
        """How many jobs were created, and so are billed."""
        return sum(self.emulator.ledger.paid.values())

    @property
    def prompts(self) -> list[str]:
        """The last message of each job."""
        return [job.request["messages"][-1]["content"] for job in self.jobs]

    @property
    def looks(self) -> list[httpx.Request]:
        """All looks sent."""
        return [request for request in self.requests if not _is_submission(request)]

    @property
    def submissions(self) -> list[dict[str, Any]]:
        """The bodies of all submissions sent, accepted or not."""
        return [json.loads(request.content) for request in self.requests if _is_submission(request)]


class _Transport(httpx.MockTransport):
    def __init__(self, wire: Wire) -> None:
        super().__init__(wire.answer)
        self._wire = wire

    def close(self) -> None:
        self._wire.closed += 1

    async def aclose(self) -> None:
        self._wire.closed += 1


def _is_submission(request: httpx.Request) -> bool:
    return request.url.path.endswith(("/create", "/completions"))


def _route_of(service: str, request: httpx.Request) -> tuple[Route, str]:
    path = request.url.raw_path.decode()
    for route in CONTRACTS[service].routes:
        prefix, _, _ = route.path.partition("{id}")
        if route.method != request.method:
            continue
        if path == route.path:
            return route, ""
        if prefix != route.path and path.startswith(prefix):
            return route, unquote(path.removeprefix(prefix))
    raise AssertionError(f"{service} has no {request.method} {path}")


def connection(service: str, **fields: Any) -> str:
    """Return an Airflow connection as JSON; ``extra`` and other fields replace the usual ones."""
    return json.dumps(
        {"conn_type": service, "password": KEY, "extra": {"model": MODELS[service]}, **fields}, default=str
    )
