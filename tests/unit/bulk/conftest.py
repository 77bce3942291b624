# SPDX-License-Identifier: Apache-2.0

"""A fresh world for each test, in which nobody sleeps long, or time passes by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_distribute.bulk import attempt, collection, patience, submission
from airflow_provider_distribute.pacing import Backoff
from airflow_provider_distribute.waiting import results
from tests.unit.bulk.world import World
from tests.unit.storage import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.clock import Clock


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "run")


@pytest.fixture
def timeless(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world on a store in memory, in which days pass in milliseconds."""
    for module in (submission, collection, patience, attempt, results):
        monkeypatch.setattr(module, "time", clock)
    return World(tmp_path, store=Store(), clock=clock)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait milliseconds where the submission would wait seconds."""
    monkeypatch.setattr(submission, "BACKOFF", Backoff(base=0.001, cap=0.06))
    monkeypatch.setattr(patience, "BACKOFF", Backoff(base=0.0005, cap=0.03))
    monkeypatch.setattr(submission, "_PATIENCE", 0.02)
