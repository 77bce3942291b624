# SPDX-License-Identifier: Apache-2.0

"""A real server on the loopback interface that misbehaves on the level of bytes."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Seen:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


class Server:
    """
    Reads whole requests and answers with the scripted behaviours in turn, the last one for ever.

    A behaviour gets the connection once a whole request was read, and says whether the connection is kept.

    A context manager: it listens inside, and every thread and socket of it is gone afterwards.
    """

    def __init__(self, *script: Callable[[Server, socket.socket], bool], listening: bool = True) -> None:
        self._script = list(script)
        self.seen: list[Seen] = []
        self.connections = 0
        self.stopped = threading.Event()
        self._turn = threading.Condition()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        if listening:
            self.listen()

    @property
    def url(self) -> str:
        """The server's base URL."""
        return f"http://127.0.0.1:{self.port}"

    def requests(self, at_least: int) -> list[Seen]:
        """Return what came, once so many have: a client may have given up before they are read."""
        with self._turn:
            self._turn.wait_for(lambda: len(self.seen) >= at_least, 30)
            return list(self.seen)

    def listen(self) -> None:
        """Begin to accept; until then a connection is refused."""
        self._socket.listen(16)
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._turn:
            opened = list(self._open)
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with self._turn:
                    self._open.append(connection)
                    self.connections += 1
                    number = self.connections
                self._start(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            while (seen := _read(connection, number)) is not None:
                with self._turn:
                    self.seen.append(seen)
                    self._turn.notify_all()
                    behave = self._script.pop(0) if len(self._script) > 1 else self._script[0]
                if not behave(self, connection):
                    return


def _read(connection: socket.socket, number: int) -> Seen | None:
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    method, target, _ = first.split(" ")
    return Seen(method, target, headers, body, number)


def answers(
    body: bytes = b"{}", *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Callable[[Server, socket.socket], bool]:
    """Answer completely and keep the connection."""
    given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    raw = f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode("latin-1") + body

    def behave(server: Server, connection: socket.socket) -> bool:
        connection.sendall(raw)
        return True

    return behave


def closes(server: Server, connection: socket.socket) -> bool:
    """Close without a word."""
    return False


def resets(server: Server, connection: socket.socket) -> bool:
    """Reset the connection (ECONNRESET)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def hangs(server: Server, connection: socket.socket) -> bool:
    """Say nothing until the server stops."""
    server.stopped.wait(30)
    return False


def hangs_in_headers(server: Server, connection: socket.socket) -> bool:
    """Begin an answer and stop."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")
    return hangs(server, connection)


def truncates(server: Server, connection: socket.socket) -> bool:
    """Announce more than is sent."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
    return False


def breaks_chunks(server: Server, connection: socket.socket) -> bool:
    """End a chunked body in the middle of a chunk."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{")
    return False


def drips(server: Server, connection: socket.socket) -> bool:
    """Send a body byte by byte, each well within a timeout, for ever."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n")
    while not server.stopped.wait(0.02):
        connection.sendall(b" ")
    return False


def talks_nonsense(server: Server, connection: socket.socket) -> bool:
    """Answer with something that is not HTTP."""
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    return False
