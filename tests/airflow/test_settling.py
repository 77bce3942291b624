# SPDX-License-Identifier: Apache-2.0

"""When a trigger may fire."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_distribute.triggers.chat import AsyncChatTrigger
from airflow_provider_distribute.triggers.settling import until_settled

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


@pytest.fixture
def naps(mocker: MockerFixture) -> Any:
    """Seconds that were slept."""
    return mocker.patch("airflow_provider_distribute.triggers.settling.asyncio.sleep").await_args_list


async def test_what_is_known_at_once_waits_for_the_scheduler(
    naps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker notices the end of the deferring process within its heartbeat, the scheduler 3 s later."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "20")
    trigger: Any = SimpleNamespace(task_instance=object())

    await until_settled(trigger, time.monotonic())

    (nap,) = naps
    assert nap.args[0] == pytest.approx(23, abs=1)


async def test_without_a_scheduler_nothing_is_held_back(naps: Any) -> None:
    """``dag.test()`` gives a trigger no task instance."""
    await until_settled(AsyncChatTrigger(), time.monotonic())

    assert naps == []
