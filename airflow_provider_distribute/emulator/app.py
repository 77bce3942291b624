# SPDX-License-Identifier: Apache-2.0

"""
The web application: reads requests, asks the :class:`~.core.Emulator`, carries its replies. It decides
nothing.

Both services are at the root, where their paths do not clash, and each under its name (``/distribute/...``,
``/inference_net/...``), so that two base URLs can be told apart. The control requests are under
``/_emulator/``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_distribute.emulator import faults
from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.exchange import Delivery, Incoming, Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware

    from airflow_provider_distribute.emulator.core import Emulator
    from airflow_provider_distribute.emulator.exchange import Route
    from airflow_provider_distribute.emulator.faults import Rule
    from airflow_provider_distribute.emulator.jobs import Job

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
PADDING = b" " * 65536
CONTROL = "_emulator"
LARGEST_READ = 256 << 20
LONGEST_OUTAGE = 3600.0
PAGE = 1000


class Clock:
    """Seconds since the epoch that never go back: job ends must not move when the machine's clock is set."""

    def __init__(self) -> None:
        self._epoch = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Return the time."""
        return self._epoch + time.monotonic()


def application(emulator: Emulator, clock: Callable[[], float], line: Line) -> web.Application:
    """Put the services' routes and the control routes together."""
    app = web.Application(middlewares=[_unserved(emulator, clock)], client_max_size=LARGEST_READ)
    for contract in CONTRACTS.values():
        for route in contract.routes:
            handler = _service_handler(emulator, clock, contract.name, route)
            for prefix in ("", f"/{contract.name}"):
                _add(app, route.method, prefix + route.path, handler)
    control = Control(emulator, clock, line)
    for method, path, handler in control.routes():
        _add(app, method, f"/{CONTROL}{path}", handler)
    return app


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    # add_get would answer HEAD as well, which no contract knows.
    app.router.add_route(method, path, handler)


def _unserved(emulator: Emulator, clock: Callable[[], float]) -> Middleware:
    """Answer what reaches no service in JSON, and write it down as the operation ``other``."""

    def answer(request: web.Request, error: web.HTTPException) -> web.Response:
        service = request.path.split("/")[1]
        if service != CONTROL:
            emulator.ledger.record(
                clock(),
                service if service in CONTRACTS else "",
                "other",
                status=error.status,
                authorized="Authorization" in request.headers,
            )
        body = {"message": error.reason, "error": {"message": error.reason}}
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response(body, status=error.status, headers=headers)

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            return answer(request, error)
        except ConnectionError:  # nobody is there to be answered
            raise
        except Exception:
            log.exception("The emulator failed at %s %r", request.method, request.path)
            return answer(request, web.HTTPInternalServerError())

    return handle


def _service_handler(emulator: Emulator, clock: Callable[[], float], service: str, route: Route) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        incoming = Incoming(
            service=service,
            route=route,
            authorization=request.headers.get("Authorization"),
            content_type=request.content_type,
            body=await request.read(),
            job_id=request.match_info.get("id", ""),
        )
        return await deliver(request, emulator.serve(incoming, clock()))

    return handle


async def deliver(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Carry a reply: late, padded, in half or not at all, as it says."""
    if reply.delay:
        await asyncio.sleep(reply.delay)
    if reply.delivery is Delivery.RESET:
        reset(request.transport)
        return web.Response()
    if reply.delivery is Delivery.WHOLE and not reply.padding:
        return web.Response(
            status=reply.status, body=reply.body, content_type=reply.content_type, headers=reply.headers
        )
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_type = reply.content_type
    response.content_length = len(reply.body) + reply.padding
    await response.prepare(request)
    if reply.delivery is Delivery.CUT:
        await response.write(reply.body[: len(reply.body) // 2])
        # Not a reset, which would throw away what is still in the socket's buffer.
        response.force_close()
        return response
    await response.write(reply.body)
    for start in range(0, reply.padding, len(PADDING)):
        await response.write(PADDING[: reply.padding - start])
    await response.write_eof()
    return response


def reset(transport: asyncio.Transport | None) -> None:
    """Close a connection with RST, as a crashed server or a broken balancer does."""
    if transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        transport.abort()


class Line(Protocol):
    """The listening side of the server, as far as control requests reach it."""

    def stats(self) -> dict[str, int]:
        """Connections opened so far, open now, and most at a time."""
        ...

    def begin_outage(self, mode: str, seconds: float, spared: asyncio.BaseTransport | None = None) -> None:
        """
        Let no request through for ``seconds``.

        :param mode: a status that is answered, ``reset``, or ``refuse``.
        :param spared: the one connection that is not closed when connections are refused.
        """
        ...

    async def end_outage(self) -> None:
        """End an outage early."""
        ...


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OutageRequest(_Body):
    """Body of ``POST /_emulator/outage``; see :meth:`Control.outage`."""

    mode: str = Field(default="503", pattern="^(reset|refuse|[45][0-9][0-9])$", coerce_numbers_to_str=True)
    seconds: float = Field(default=60.0, gt=0, le=LONGEST_OUTAGE)


class FinishRequest(_Body):
    """Body of the requests that finish jobs: with an ``error`` they end as failed."""

    error: str | None = None
    service: str | None = None


class Control:
    """The requests under ``/_emulator/``. They take no key and are not in the ledger."""

    def __init__(self, emulator: Emulator, clock: Callable[[], float], line: Line) -> None:
        self.emulator = emulator
        self.clock = clock
        self.line = line

    def routes(self) -> list[tuple[str, str, Handler]]:
        """All control requests: method, path below ``/_emulator``, handler."""
        return [
            ("GET", "/stats", self.stats),
            ("GET", "/ledger", self.ledger),
            ("GET", "/jobs", self.jobs),
            ("POST", "/jobs/finish", self.finish_all),
            ("GET", "/jobs/{id}", self.job),
            ("POST", "/jobs/{id}/finish", self.finish),
            ("GET", "/faults", self.faults),
            ("POST", "/faults", self.add_faults),
            ("DELETE", "/faults", self.remove_faults),
            ("DELETE", "/faults/{rule}", self.remove_faults),
            ("POST", "/outage", self.outage),
            ("DELETE", "/outage", self.end_outage),
            ("POST", "/reset", self.reset),
        ]

    async def stats(self, request: web.Request) -> web.Response:
        """``GET /_emulator/stats``: counts of requests, jobs, looks, faults and connections."""
        return web.json_response({**self.emulator.stats(self.clock()), "connections": self.line.stats()})

    async def ledger(self, request: web.Request) -> web.Response:
        """
        ``GET /_emulator/ledger``: requests one by one.

        Query: ``service``, ``operation``, ``job_id``, ``status`` (a number, or ``reset``), ``fault`` and
        ``authorized`` (``true``, ``false``) select; ``paid=true`` gives those that made a job; ``after`` and
        ``limit`` turn pages: pass ``next`` of one page as ``after`` of the next, until it is null.
        """
        query = dict(request.query)
        after, limit = _paging(query)
        wanted = {name: _column(name, text) for name, text in query.items()}
        entries, follow = self.emulator.ledger.page(after, limit, **wanted)
        return web.json_response(
            {
                "entries": [
                    {**entry._asdict(), "metadata": json.loads(entry.metadata) if entry.metadata else None}
                    for entry in entries
                ],
                "next": follow,
            }
        )

    async def jobs(self, request: web.Request) -> web.Response:
        """
        ``GET /_emulator/jobs``: jobs in the order of submission.

        Query: ``service``; ``after`` and ``limit`` as for the ledger, counting jobs.
        """
        query = dict(request.query)
        after, limit = _paging(query)
        service = query.get("service")
        jobs = [job for job in self.emulator.jobs() if service in (None, job.service)]
        now = self.clock()
        page = [asdict(self.emulator.describe(job, now)) for job in jobs[after : after + limit]]
        return web.json_response({"jobs": page, "next": after + limit if after + limit < len(jobs) else None})

    async def job(self, request: web.Request) -> web.Response:
        """``GET /_emulator/jobs/{id}``: one job."""
        return web.json_response(asdict(self.emulator.describe(self._job(request), self.clock())))

    async def finish(self, request: web.Request) -> web.Response:
        """``POST /_emulator/jobs/{id}/finish``: end a job now, as failed if the body has an ``error``."""
        job = self._job(request)
        self.emulator.finish(job, self.clock(), error=(await _body(request, FinishRequest)).error)
        return web.json_response(asdict(self.emulator.describe(job, self.clock())))

    async def finish_all(self, request: web.Request) -> web.Response:
        """``POST /_emulator/jobs/finish``: end all jobs, or those of one ``service``."""
        wanted = await _body(request, FinishRequest)
        count = self.emulator.finish_all(self.clock(), service=wanted.service, error=wanted.error)
        return web.json_response({"finished": count})

    async def faults(self, request: web.Request) -> web.Response:
        """``GET /_emulator/faults``: the rules, and how often each was hit."""
        return web.json_response({"faults": [_rule(rule) for rule in self.emulator.faults.rules]})

    async def add_faults(self, request: web.Request) -> web.Response:
        """``POST /_emulator/faults``: add a rule, or a list of rules, each an object or a spec."""
        try:
            given = json.loads(await request.read())
            rules = [faults.from_json(item) for item in (given if isinstance(given, list) else [given])]
        except (ValueError, TypeError) as error:
            raise web.HTTPBadRequest(reason=_one_line(error)) from None
        added = [self.emulator.faults.add(rule) for rule in rules]
        return web.json_response({"faults": [_rule(rule) for rule in added]})

    async def remove_faults(self, request: web.Request) -> web.Response:
        """``DELETE /_emulator/faults`` and ``/_emulator/faults/{id}``: remove all rules, or one."""
        rule = request.match_info.get("rule")
        self.emulator.faults.remove(None if rule is None else _number("rule", rule))
        return await self.faults(request)

    async def outage(self, request: web.Request) -> web.Response:
        """
        ``POST /_emulator/outage``: no service answers for ``seconds``.

        ``mode``: a status such as ``503``; ``reset`` (connections are accepted and reset); ``refuse``
        (they are not accepted: this cannot be called off, because the control requests are not reachable
        either).
        """
        wanted = await _body(request, OutageRequest)
        self.line.begin_outage(wanted.mode, wanted.seconds, request.transport)
        response = web.json_response(wanted.model_dump())
        response.force_close()
        return response

    async def end_outage(self, request: web.Request) -> web.Response:
        """``DELETE /_emulator/outage``: end an outage early."""
        await self.line.end_outage()
        return web.json_response({})

    async def reset(self, request: web.Request) -> web.Response:
        """``POST /_emulator/reset``: see :meth:`~.core.Emulator.reset`."""
        self.emulator.reset()
        return web.json_response({})

    def _job(self, request: web.Request) -> Job:
        job = self.emulator.job(request.match_info["id"])
        if job is None:
            raise web.HTTPNotFound(reason="No such job")
        return job


Body = TypeVar("Body", bound=_Body)


async def _body(request: web.Request, cls: type[Body]) -> Body:
    try:
        return cls.model_validate_json(await request.read() or b"{}")
    except ValidationError as error:
        raise web.HTTPBadRequest(reason=_one_line(error)) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "seen": rule.seen,
        "hits": rule.hits,
        **rule.fault.model_dump(mode="json", exclude_defaults=True),
    }


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise web.HTTPBadRequest(reason=f"{name} must be an integer") from None


def _paging(query: dict[str, str]) -> tuple[int, int]:
    after = _number("after", query.pop("after", "0"))
    limit = _number("limit", query.pop("limit", str(PAGE)))
    return max(after, 0), min(max(limit, 1), PAGE)


COLUMNS: dict[str, Callable[[str], Any]] = {
    "service": str,
    "operation": str,
    "job_id": str,
    "fault": str,
    "status": lambda text: None if text == "reset" else _number("status", text),
    "paid": lambda text: 1 if text == "true" else _number("paid", text),
    "authorized": lambda text: text == "true",
}


def _column(name: str, text: str) -> Any:
    if name not in COLUMNS:
        raise web.HTTPBadRequest(reason=f"no column {name!r}; there are {', '.join(COLUMNS)}")
    return COLUMNS[name](text)
