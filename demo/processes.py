# SPDX-License-Identifier: Apache-2.0

"""Child processes that end when they are told to, with everything they have started."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

POLL_SECONDS = 0.5


class ProcessDied(RuntimeError):
    """A process ended that should be running; the message carries the end of its log."""


class Unmet(TimeoutError):
    """A condition did not come true before its deadline."""


def wait_until(predicate: Callable[[], T], *, timeout: float, what: str) -> T:
    """
    Poll until ``predicate()`` is true and return what it returned.

    :param timeout: seconds.
    :param what: the condition in words; it is what the reader of a failure sees.
    :raises Unmet: after ``timeout``, with the last value seen.
    """
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise Unmet(f"not within {timeout:g} s: {what} (last seen: {value!r})")
        time.sleep(POLL_SECONDS)
    return value


def free_port(preferred: int = 0) -> int:
    """
    Return a TCP port of the loopback interface that nobody listens on, ``preferred`` if that is one.

    It lies below those that systems hand out by themselves, so nobody gets it before it is used.
    """
    candidates = random.SystemRandom().sample(range(10_000, 32_000), 100)
    for port in [preferred, *candidates] if preferred else candidates:
        with socket.socket() as probe, suppress(OSError):
            # Without this a port whose last connections are still in TIME_WAIT looks taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free TCP port from 10000 to 31999 was found on the loopback interface")


class Process:
    """
    A command in a session of its own.

    The session is how the descendants are known: it survives their parent's death and a change of process
    group, so all of them can be ended, and nobody else's process is ever touched.

    :param name: what messages call it.
    :param command: program and arguments.
    :param env: its whole environment.
    :param log: file that gets its output; a restart appends.
    :param user: run as this user (only root can).
    :param stop_signal: what asks it to end in an orderly way.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.env = env
        self.user = user
        self.stop_signal = stop_signal
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns at once."""
        if self._child is not None:
            raise RuntimeError(f"{self.name} was started already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [*_end_with_parent(), *self.command],
                env=self.env,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is its session's id too."""
        if self._child is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process itself (not only a descendant) is there."""
        return self._child is not None and self._child.poll() is None

    def check(self) -> None:
        """:raises ProcessDied: if it ended by itself."""
        if self._child is not None and (status := self._child.poll()) is not None:
            raise ProcessDied(
                f"{self.name} ended with status {status}; the end of {self.log}:\n{self.tail()}"
            )

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of its log."""
        if not self.log.exists():
            return "(no output)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, *, timeout: float = 10) -> None:
        """End it and all its descendants: politely, and after ``timeout`` seconds by SIGKILL."""
        if self._child is None:
            return
        if self._child.poll() is None:
            self._child.send_signal(self.stop_signal)
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and all its descendants, as the loss of its machine would."""
        if self._child is None:
            return
        session = self._child.pid
        # A member may fork between the listing and its death, hence until none is left.
        while members := _session_members(session):
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._child.poll()
            time.sleep(0.01)
        self._child.wait()
        self._child = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _session_members(session: int) -> list[int]:
    members = []
    for pid in psutil.pids():
        try:
            # A zombie has ended already; its parent, or init, takes it away.
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(pid)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return members


def _end_with_parent() -> list[str]:
    """Return the prefix that has the kernel end a child whose parent was killed before it could clean up."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
