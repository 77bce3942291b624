# SPDX-License-Identifier: Apache-2.0

"""
Two clients that carry described calls over HTTP: one synchronous, one asynchronous.

They are twins on purpose, the only ones here, and a test holds them to the same text. What is asked and what
an answer means is the service's business; when to ask again is a decision in ``pacing``.

The asynchronous one runs httpx on aiohttp's connection pool, because httpx's own pool costs several times the
CPU once dozens of connections are open; the figures are in ``benchmarks/README.md``.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from airflow_provider_distribute.exceptions import (
    ConnectionInvalid,
    NotAccepted,
    OutcomeUnknown,
    Unavailable,
)
from airflow_provider_distribute.pacing import RETRY_AFTER_CAP, Backoff, RateLimit, rising
from airflow_provider_distribute.services import SERVICES

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from airflow_provider_distribute.models import ChatRequest, Job, Settings
    from airflow_provider_distribute.services import Call, Service

__all__ = ["MAX_ANSWER_BYTES", "RESEND_WINDOW", "AsyncClient", "Client", "limit_of"]

log = logging.getLogger(__name__)

#: A larger answer is not read. The largest documented payload is 10 MB.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
#: Bytes from which on an answer is read in a thread, beside the event loop.
_LARGE = 64 * 1024
#: Seconds for which a request that was not accepted is sent again, unless the caller gives a deadline.
RESEND_WINDOW = 3600.0
#: Idle connections stay open this long, in seconds: longer than the usual pause between two looks.
_KEEPALIVE = 75.0
_USER_AGENT = "airflow-provider-distribute"

#: What a transport raises when there is no usable answer.
_NO_ANSWER = (httpx.TransportError, httpx.DecodingError, aiohttp.ClientError, OSError, TimeoutError)
_NEVER_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
#: aiohttp's own words: httpx-aiohttp calls a connection dropped *after* sending a connect timeout as well.
_AIOHTTP_NEVER_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
)


class Unread(httpx.ReadError):
    """An answer is larger, or comes more slowly, than we read; says which."""


def never_connected(error: BaseException) -> bool:
    """Return whether nothing can have reached the service, which makes sending again safe."""
    if isinstance(error.__cause__, aiohttp.ClientError):
        return isinstance(error.__cause__, _AIOHTTP_NEVER_CONNECTED)
    return isinstance(error, _NEVER_CONNECTED)


def _kind(error: BaseException) -> str:
    """Say what failed without the error's own text, which may quote a URL with credentials of a proxy."""
    if isinstance(error, Unread):
        return str(error)
    name = type(error).__name__
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
        if isinstance(error, OSError) and (
            reason := getattr(error, "verify_message", None) or error.strerror
        ):
            return str(reason)
    return name if name == type(error).__name__ else f"{name} ({type(error).__name__})"


class _Wire:
    """What both clients know: the settings, the service, and how to build and read."""

    def __init__(self, settings: Settings, service: Service, limit: RateLimit) -> None:
        self.settings = settings
        self.service = service
        self.limit = limit
        self._backoff = Backoff()
        self._rng = random.Random()  # noqa: S311  jitter needs no secrecy
        self._headers = httpx.Headers(
            {
                "Authorization": service.authorization(settings),
                "Accept": "application/json",
                "Accept-Encoding": "gzip, deflate",
                "User-Agent": _USER_AGENT,
            }
        )
        timeouts = httpx.Timeout(settings.timeout, connect=settings.connect_timeout, pool=None)
        self._extensions = {"timeout": timeouts.as_dict()}

    def request_for(self, call: Call) -> httpx.Request:
        """
        Return a described call as the transport takes it.

        There is no ``httpx.Client`` around the transport: that logs a line for each request and reads cookies
        that we do not want, for a quarter of the CPU.
        """
        request = httpx.Request(
            call.method,
            f"{self.settings.base_url}{call.path}",
            headers=self._headers,
            content=call.written,
            json=call.body if call.written is None else None,
            extensions=self._extensions,
        )
        if call.written is not None:
            request.headers["Content-Type"] = "application/json"
        return request

    def check(self, size: int, give_up: float) -> None:
        """
        Check an answer while it comes.

        :param size: Bytes so far.
        :param give_up: When it has to be there, by the monotonic clock.
        :raises Unread: it is too large or too slow.
        """
        if size > MAX_ANSWER_BYTES:
            raise Unread(f"the answer has more than {MAX_ANSWER_BYTES >> 20} MiB")
        if time.monotonic() > give_up:
            raise Unread(f"the answer was not complete after the {self.settings.timeout:g} s of timeout")

    def failed_submit(self, error: BaseException) -> NotAccepted | OutcomeUnknown:
        """Say what a transport's failure means for a submission."""
        if never_connected(error):
            return self.service.unreached(f"{self.settings.base_url}: {_kind(error)}")
        return self.service.unanswered(f"did not answer: {_kind(error)}")

    def resend_in(self, error: NotAccepted, *, failures: int, now: float, deadline: float) -> float:
        """
        Decide when to send a request again that was not accepted.

        :returns: Seconds to wait.
        :raises NotAccepted: when the deadline would pass before.
        """
        asked = min(error.retry_after or 0.0, RETRY_AFTER_CAP)
        wait = max(asked, self._backoff.delay(failures, self._rng))
        if now + wait > deadline:
            raise NotAccepted(
                f"{error}. It is not sent again (attempt {failures}): that would be in {wait:.0f} s, past "
                "the deadline for it, which resend_for sets",
                service=error.service,
                status=error.status,
                retry_after=error.retry_after,
                throttled=error.throttled,
            )
        level = logging.WARNING if rising(failures) else logging.DEBUG
        log.log(level, "%s. Sending it again in %.0f s (failure %d in a row).", error, wait, failures)
        return wait


class Client(_Wire):
    """
    Submits requests and looks at jobs, synchronously. Usable as a context manager.

    :param settings: The connection.
    :param limit: A rate limit shared with others; default its own.
    :param transport: Stands in for the network in tests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        limit: RateLimit | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        service = SERVICES[settings.service]
        super().__init__(settings, service, limit or RateLimit(settings.requests_per_second))
        self._transport = transport or httpx_transport(settings, certificates())

    def submit(
        self,
        request: ChatRequest,
        *,
        deadline: float | None = None,
        before_sending: Callable[[], object] | None = None,
    ) -> str:
        """
        Submit a request.

        A request that was surely not accepted (no connection, 429, 503 with ``Retry-After``) is sent again
        after a wait; one that was sent and not answered never is.

        :param deadline: Epoch seconds after which it is not sent again; default an hour from now.
        :param before_sending: Called each time before it is sent, without blocking; what it raises ends this.
        :returns: The job id.
        :raises InvalidRequest: nothing was sent.
        :raises AccessDenied: 401, 402, 403.
        :raises RequestRefused: 400, 404, 422 and the like.
        :raises NotAccepted: still not accepted at the deadline.
        :raises OutcomeUnknown: sent and not answered.
        """
        call = self.service.describe_submit(request, self.settings)
        deadline = time.time() + RESEND_WINDOW if deadline is None else deadline
        failures = 0
        while True:
            while wait := self.limit.take(time.monotonic()):
                time.sleep(wait)
            if before_sending:
                before_sending()
            try:
                job_id = self.submit_once(call)
            except NotAccepted as error:
                failures += 1
                time.sleep(self.resend_in(error, failures=failures, now=time.time(), deadline=deadline))
            else:
                return job_id

    def submit_once(self, call: Call) -> str:
        """
        Send a described submission once, at once.

        :raises ServiceError: as :meth:`submit`.
        """
        try:
            answer = self._exchange(call)
        except _NO_ANSWER as error:
            raise self.failed_submit(error) from None
        try:
            job_id = self.service.read_ticket(answer)
        except NotAccepted as error:
            self.limit.throttled(time.monotonic(), error.retry_after)
            raise
        self.limit.succeeded()
        return job_id

    def look(self, job_id: str) -> Job:
        """
        Look at a job once, at once.

        :raises JobNotFound: the service does not know it (yet).
        :raises Unavailable: no usable answer; look again later.
        :raises AccessDenied: 401, 402, 403.
        :raises RequestRefused: the service will not show it.
        """
        return self._read(job_id, self._asked(job_id))

    def _read(self, job_id: str, answer: httpx.Response) -> Job:
        return self.service.read_job(job_id, answer)

    def _asked(self, job_id: str) -> httpx.Response:
        try:
            return self._exchange(self.service.describe_look(job_id, self.settings))
        except _NO_ANSWER as error:
            raise self.service.unavailable(f"did not answer: {_kind(error)}") from None

    def look_in_turn(self, job_id: str) -> Job:
        """
        Look at a job once, as soon as the rate limit allows; a 429 slows whoever shares the limit.

        :raises ServiceError: as :meth:`look`.
        """
        while wait := self.limit.take(time.monotonic()):
            time.sleep(wait)
        try:
            job = self.look(job_id)
        except Unavailable as error:
            if error.throttled:
                self.limit.throttled(time.monotonic(), error.retry_after)
            raise
        self.limit.succeeded()
        return job

    def probe(self) -> None:
        """
        Ask for a job that cannot exist, to see whether the service answers and accepts the key.

        :raises ServiceError: anything but "no such job".
        """
        self.service.read_probe(self._asked(_NO_SUCH_JOB))

    def _exchange(self, call: Call) -> httpx.Response:
        give_up = time.monotonic() + self.settings.connect_timeout + self.settings.timeout
        request = self.request_for(call)
        answer = self._transport.handle_request(request)
        try:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                self.check(len(body), give_up)
        finally:
            answer.close()
        return _whole(answer, bytes(body), request)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        """Return the client itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connections."""
        self.close()


class AsyncClient(_Wire):
    """
    Submits requests and looks at jobs, asynchronously. Usable as a context manager.

    Make it with :meth:`open` on an event loop that others share: loading the certificates takes tens of
    milliseconds.

    :param settings: The connection.
    :param limit: A rate limit shared with others; default its own.
    :param transport: Stands in for the network in tests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        limit: RateLimit | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        service = SERVICES[settings.service]
        super().__init__(settings, service, limit or RateLimit(settings.requests_per_second))
        self._transport = transport or aiohttp_transport(settings, certificates())

    @classmethod
    async def open(cls, settings: Settings, *, limit: RateLimit | None = None) -> AsyncClient:
        """
        Make a client without blocking the event loop.

        :param limit: A rate limit shared with others; default the one of this process and connection.
        """
        transport = aiohttp_transport(settings, await asyncio.to_thread(certificates))
        return cls(settings, limit=limit or limit_of(settings), transport=transport)

    async def submit(
        self,
        request: ChatRequest,
        *,
        deadline: float | None = None,
        before_sending: Callable[[], object] | None = None,
    ) -> str:
        """
        Submit a request.

        A request that was surely not accepted (no connection, 429, 503 with ``Retry-After``) is sent again
        after a wait; one that was sent and not answered never is.

        :param deadline: Epoch seconds after which it is not sent again; default an hour from now.
        :param before_sending: Called each time before it is sent, without blocking; what it raises ends this.
        :returns: The job id.
        :raises InvalidRequest: nothing was sent.
        :raises AccessDenied: 401, 402, 403.
        :raises RequestRefused: 400, 404, 422 and the like.
        :raises NotAccepted: still not accepted at the deadline.
        :raises OutcomeUnknown: sent and not answered.
        """
        call = self.service.describe_submit(request, self.settings)
        deadline = time.time() + RESEND_WINDOW if deadline is None else deadline
        failures = 0
        while True:
            while wait := self.limit.take(time.monotonic()):  # noqa: ASYNC110  time, not an event, opens it
                await asyncio.sleep(wait)
            if before_sending:
                before_sending()
            try:
                job_id = await self.submit_once(call)
            except NotAccepted as error:
                failures += 1
                await asyncio.sleep(
                    self.resend_in(error, failures=failures, now=time.time(), deadline=deadline)
                )
            else:
                return job_id

    async def submit_once(self, call: Call) -> str:
        """
        Send a described submission once, at once.

        :raises ServiceError: as :meth:`submit`.
        """
        try:
            answer = await self._exchange(call)
        except _NO_ANSWER as error:
            raise self.failed_submit(error) from None
        try:
            job_id = self.service.read_ticket(answer)
        except NotAccepted as error:
            self.limit.throttled(time.monotonic(), error.retry_after)
            raise
        self.limit.succeeded()
        return job_id

    async def look(self, job_id: str) -> Job:
        """
        Look at a job once, at once.

        :raises JobNotFound: the service does not know it (yet).
        :raises Unavailable: no usable answer; look again later.
        :raises AccessDenied: 401, 402, 403.
        :raises RequestRefused: the service will not show it.
        """
        return await self._read(job_id, await self._asked(job_id))

    async def _read(self, job_id: str, answer: httpx.Response) -> Job:
        # Reading an answer with log probabilities takes up to half a second.
        if len(answer.content) > _LARGE:
            return await asyncio.to_thread(self.service.read_job, job_id, answer)
        return self.service.read_job(job_id, answer)

    async def _asked(self, job_id: str) -> httpx.Response:
        try:
            return await self._exchange(self.service.describe_look(job_id, self.settings))
        except _NO_ANSWER as error:
            raise self.service.unavailable(f"did not answer: {_kind(error)}") from None

    async def look_in_turn(self, job_id: str) -> Job:
        """
        Look at a job once, as soon as the rate limit allows; a 429 slows whoever shares the limit.

        :raises ServiceError: as :meth:`look`.
        """
        while wait := self.limit.take(time.monotonic()):  # noqa: ASYNC110  time, not an event, opens it
            await asyncio.sleep(wait)
        try:
            job = await self.look(job_id)
        except Unavailable as error:
            if error.throttled:
                self.limit.throttled(time.monotonic(), error.retry_after)
            raise
        self.limit.succeeded()
        return job

    async def probe(self) -> None:
        """
        Ask for a job that cannot exist, to see whether the service answers and accepts the key.

        :raises ServiceError: anything but "no such job".
        """
        self.service.read_probe(await self._asked(_NO_SUCH_JOB))

    async def _exchange(self, call: Call) -> httpx.Response:
        give_up = time.monotonic() + self.settings.connect_timeout + self.settings.timeout
        request = self.request_for(call)
        answer = await self._transport.handle_async_request(request)
        try:
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                self.check(len(body), give_up)
        finally:
            await answer.aclose()
        return _whole(answer, bytes(body), request)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        """Return the client itself."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        await self.close()


#: A version 4 UUID, as distribute's schema wants it, that no service hands out.
_NO_SUCH_JOB = "00000000-0000-4000-8000-000000000000"


_ENCODINGS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


def _whole(answer: httpx.Response, body: bytes, request: httpx.Request) -> httpx.Response:
    """
    Return the answer with its body read; it is decoded already, so the encoding headers go.

    The others stay the bytes they are: nothing says that they are text.
    """
    headers = [(name, value) for name, value in answer.headers.raw if name.lower() not in _ENCODINGS]
    return httpx.Response(answer.status_code, headers=headers, content=body, request=request)


@functools.cache
def limit_of(settings: Settings) -> RateLimit:
    """Return the rate limit that whatever one process sends through a connection keeps."""
    return RateLimit(settings.requests_per_second)


@functools.cache
def certificates() -> ssl.SSLContext:
    """Return the certificates to trust; they are loaded once a process, for tens of milliseconds."""
    return httpx.create_ssl_context()


def proxy_for(settings: Settings) -> str | None:
    """
    Return the proxy that the environment (``HTTPS_PROXY``, ``NO_PROXY`` and the like) names for a connection.

    :raises ConnectionInvalid: when it is not an HTTP proxy.
    """
    target = urlsplit(settings.base_url)
    proxies = getproxies()
    named = proxies.get(target.scheme) or proxies.get("all")
    if not named or proxy_bypass(target.netloc):
        return None
    url = named if "://" in named else f"http://{named}"
    if not url.lower().startswith(("http://", "https://")):
        kind = url.partition("://")[0]
        raise ConnectionInvalid(
            settings.conn_id, [f"the environment names a {kind} proxy for it; only HTTP proxies can be used"]
        )
    return url


def httpx_transport(settings: Settings, trusted: ssl.SSLContext) -> httpx.BaseTransport:
    """Return httpx's own transport."""
    limits = httpx.Limits(
        max_connections=settings.max_connections,
        max_keepalive_connections=settings.max_connections,
        keepalive_expiry=_KEEPALIVE,
    )
    return httpx.HTTPTransport(verify=trusted, limits=limits, proxy=proxy_for(settings))


def aiohttp_transport(settings: Settings, trusted: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    """
    Return an httpx transport on aiohttp's connection pool.

    aiohttp itself must not trust the environment: it would read ``~/.netrc`` and the proxies anew, in a
    thread, for every request.
    """
    proxy = proxy_for(settings)

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=settings.max_connections, keepalive_timeout=_KEEPALIVE, ssl=trusted
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), proxy=proxy)

    return AiohttpTransport(verify=trusted, client=session)
