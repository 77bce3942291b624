# SPDX-License-Identifier: Apache-2.0

"""Real processes, really killed, against the emulator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from upath import UPath

from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.landing import land
from airflow_provider_distribute.bulk.run import Run
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.testing import InferenceEmulator
from tests.unit.bulk.worker import WINDOW, plan_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
ROWS = 300
PATIENCE = 60.0
#: Seconds a worker waits at first for a service that does not answer.
BACKOFF = 0.02


class Processes:
    """Workers and triggerers on one run directory."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self._url = url
        self._running: subprocess.Popen[bytes] | None = None

    def start(self, mode: str) -> subprocess.Popen[bytes]:
        """Start a process; the test's end kills it."""
        arguments = [mode, str(self.path), self._url, str(ROWS), str(BACKOFF)]
        command = [sys.executable, "-m", "tests.unit.bulk.worker", *arguments]
        self._running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        return self._running

    def kill_when(self, mode: str, reached: Callable[[], bool]) -> bool:
        """Start a process and kill it as soon as something is reached; say whether it still lived."""
        process = self.start(mode)
        give_up = time.monotonic() + PATIENCE
        while process.poll() is None and not reached():
            assert time.monotonic() < give_up, f"{mode} never got there"
            time.sleep(0.001)
        lived = process.poll() is None
        self.close()
        return lived

    def finish(self, mode: str) -> None:
        """Run a process to its end."""
        _, errors = self.start(mode).communicate(timeout=PATIENCE)
        assert self._running is not None
        assert self._running.returncode == 0, errors.decode()

    def close(self) -> None:
        """Kill what runs."""
        if self._running is not None and self._running.poll() is None:
            os.kill(self._running.pid, signal.SIGKILL)
        if self._running is not None:
            self._running.wait()
            assert self._running.stderr is not None
            self._running.stderr.close()


@pytest.fixture
def emulator() -> Iterator[InferenceEmulator]:
    with InferenceEmulator() as emulator:
        yield emulator


@pytest.fixture
def processes(tmp_path: Path, emulator: InferenceEmulator) -> Iterator[Processes]:
    processes = Processes(tmp_path / "run", emulator.base_url("distribute"))
    yield processes
    processes.close()


def count(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0


def test_killed_again_and_again(emulator: InferenceEmulator, processes: Processes) -> None:
    """Workers while they send, a triggerer while it waits: every row is right, duplicates are counted."""
    journal, kills = processes.path / "journal", 0
    for more in (1, 3, 7, 12):
        there = count(journal)
        kills += processes.kill_when("send", lambda there=there, more=more: count(journal) >= there + more)  # type: ignore[misc]
    recorded = Journal(Directory(UPath(processes.path)), writer="test").read()
    before = set(recorded.tickets.values())
    processes.finish("send")
    after = Journal(Directory(UPath(processes.path)), writer="test").read()
    assert before <= set(after.tickets.values())

    looked = emulator.looks
    processes.kill_when("collect", lambda: emulator.looks > looked + 50)
    processes.finish("collect")

    run = Run(Directory(UPath(processes.path)), plan_for(emulator.base_url("distribute")))
    landing = land(run, format_from("jsonl"))
    rows = [json.loads(line) for line in (processes.path / "results.jsonl").read_text().splitlines()]
    assert landing.counts["succeeded"] == ROWS
    assert [row["index"] for row in rows] == list(range(ROWS))
    assert kills >= 3
    assert emulator.paid - ROWS <= run.state.duplicates <= kills * WINDOW


def test_an_outage_while_sending_fails_nothing(emulator: InferenceEmulator, processes: Processes) -> None:
    """The service refuses everything for many backoffs; then the run goes on by itself."""
    with emulator.outage("503"):
        process = processes.start("send")
        give_up = time.monotonic() + PATIENCE
        while len(emulator.requests()) < 8 and time.monotonic() < give_up:
            time.sleep(0.01)
        assert process.poll() is None
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors.decode()
    state = Journal(Directory(UPath(processes.path)), writer="test").read()
    assert len(state.tickets) + len(state.unknown) == ROWS
    assert emulator.paid == len(state.tickets)
    # A 503 may have been a request that was taken, so what was answered so a few times is left unknown.
    assert len(state.unknown) <= WINDOW
