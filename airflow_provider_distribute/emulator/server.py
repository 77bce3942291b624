# SPDX-License-Identifier: Apache-2.0

"""The emulator on a port."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from aiohttp import web

from airflow_provider_distribute.emulator.app import Clock, Line, application, reset
from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.core import Emulator, Outage

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

    from aiohttp.web_protocol import RequestHandler

    from airflow_provider_distribute.emulator.settings import Settings

KEEP_ALIVE_SECONDS = 300.0
SHUTDOWN_SECONDS = 0.5
BACKLOG = 1024


class Server(Line):
    """
    Serves an :class:`~.core.Emulator` until it is stopped.

    .. code-block:: python

        async with Server(Settings(latency="2")) as server:
            print(server.base_url("distribute"))

    :param settings: the emulator's options.
    :param port: 0 for one the system picks; then :attr:`port` is the one it picked.
    :param tls: serve https with this context.
    :param clock: seconds since the epoch; for tests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.emulator = Emulator(settings)
        self.clock = clock or Clock()
        self.host = host
        self.port = port
        self._tls = tls
        self._opened = 0
        self._peak = 0
        self._listener: asyncio.Server | None = None
        self._refusing: asyncio.Task[None] | None = None
        self._kept: socket.socket | None = None

    @property
    def url(self) -> str:
        """The root, where both services and the control requests are."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def base_url(self, service: str) -> str:
        """
        The base URL of one service.

        :param service: ``distribute`` or ``inference_net``.
        """
        return f"{self.url}/{CONTRACTS[service].name}"

    async def __aenter__(self) -> Server:
        """Begin to serve."""
        self._runner = web.AppRunner(
            application(self.emulator, self.clock, self),
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            # A hanging request ends when its client gives up, not when the fault does.
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await self._runner.setup()
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving: requests under way have half a second, then their connections are closed."""
        if self._refusing is not None:
            self._refusing.cancel()
        self._stop_listening()
        self._give_back_port()
        await self._runner.cleanup()

    async def _listen(self) -> None:
        self._give_back_port()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._connected, self.host, self.port, ssl=self._tls, backlog=BACKLOG, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _keep_port(self) -> None:
        """Let nobody else have the port while nobody listens on it."""
        if self._kept is None:
            self._kept = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._kept.bind((self.host, self.port))

    def _give_back_port(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _connected(self) -> RequestHandler:
        self._opened += 1
        self._peak = max(self._peak, len(self._server.connections) + 1)
        return self._server()

    @property
    def _server(self) -> web.Server:
        server = self._runner.server
        assert server is not None  # noqa: S101 - the runner has one between setup() and cleanup()
        return server

    def _transports(self) -> list[asyncio.Transport]:
        return [c.transport for c in self._server.connections if isinstance(c.transport, asyncio.Transport)]

    def stats(self) -> dict[str, int]:
        """See :meth:`Line.stats`."""
        return {"opened": self._opened, "open": len(self._server.connections), "peak": self._peak}

    def begin_outage(self, mode: str, seconds: float, spared: asyncio.BaseTransport | None = None) -> None:
        """See :meth:`Line.begin_outage`."""
        if mode == "refuse":
            self._refuse(seconds, spared)
        else:
            status = None if mode == "reset" else int(mode)
            self.emulator.outage = Outage(self.clock() + seconds, status)

    async def end_outage(self) -> None:
        """See :meth:`Line.end_outage`."""
        self.emulator.outage = None
        if self._refusing is not None:
            self._refusing.cancel()
            await self._restore(0)

    def _refuse(self, seconds: float, spared: asyncio.BaseTransport | None) -> None:
        self._stop_listening()
        self._keep_port()
        for transport in self._transports():
            if transport is not spared:
                reset(transport)
        if self._refusing is not None:
            self._refusing.cancel()
        self._refusing = asyncio.get_running_loop().create_task(self._restore(seconds))

    async def _restore(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._refusing = None
        await self._listen()
