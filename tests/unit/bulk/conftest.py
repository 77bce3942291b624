# SPDX-License-Identifier: Apache-2.0

"""A fresh world for each test, in which nobody sleeps long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_distribute.bulk import submission
from airflow_provider_distribute.pacing import Backoff
from tests.unit.bulk.world import World

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "run")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait milliseconds where the submission would wait seconds."""
    monkeypatch.setattr(
        submission, "Backoff", lambda base=1.0, cap=60.0: Backoff(base=base / 1000, cap=cap / 1000)
    )
    monkeypatch.setattr(submission, "_PATIENCE", 0.02)
