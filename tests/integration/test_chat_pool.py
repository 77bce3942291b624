# SPDX-License-Identifier: Apache-2.0

"""All that wait on one connection, on one triggerer, are one client to the service, in good times and bad."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.integration.emulator import prompts

if TYPE_CHECKING:
    from tests.integration.emulator import EmulatorProcess
    from tests.integration.harness import AirflowUnderTest

pytestmark = pytest.mark.usefixtures("chat_dags")

SENSORS = 200
RESUMED = 5
CONNECTIONS = 4
POKE_INTERVAL = 10.0
"""Seconds, as the Dag has it."""
PATIENCE = 600
"""Seconds; two cores start about four tasks in one of them."""


@pytest.mark.timeout(3 * PATIENCE)
def test_two_hundred_sensors_poll_like_one(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """They share the connections the author allows, and look no more often than a fixed schedule would."""
    conn_id = emulator.connect(airflow, max_connections=CONNECTIONS)
    run = airflow.trigger("chat_fan_out", {"conn_id": conn_id, "prompts": prompts(SENSORS)})
    airflow.wait_for_task(run, "submit", "success")
    opened = emulator.stats["connections"]["opened"]
    deferred = {"submit": "success"} | {f"wait[{index}]": "deferred" for index in range(SENSORS)}
    airflow.wait_until(
        lambda: airflow.task_states(run) == deferred, timeout=PATIENCE, what="all sensors are deferred"
    )
    airflow.wait_until(
        lambda: {look["job_id"] for look in emulator.entries(operation="look")} == set(emulator.job_ids()),
        what="every job was looked at",
    )
    first = emulator.entries(operation="look")[-1]

    def looks_of_one_interval() -> list[float]:
        later = [look["time"] for look in emulator.entries(operation="look", after=first["sequence"])]
        end = first["time"] + POKE_INTERVAL
        return [time for time in later if time <= end] if later and later[-1] > end else []

    looks = airflow.wait_until(looks_of_one_interval, what="an interval has passed")
    assert len(looks) <= 1.1 * SENSORS
    assert emulator.stats["connections"]["opened"] - opened <= CONNECTIONS

    # Two hundred resumed tasks would prove no more than these.
    resumed = {f"wait[{index}]": "success" for index in range(RESUMED)}
    emulator.finish(*airflow.xcom(run, "submit")[:RESUMED])
    airflow.wait_until(
        lambda: resumed.items() <= airflow.task_states(run).items(), what="the sensors of what ended succeed"
    )
    airflow.mark_run(run, "failed")
    assert emulator.paid == SENSORS


def test_ten_minutes_of_outage_fail_nothing(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """
    The service answers 503, then resets connections, then refuses them: the task waits on.

    Its log tells of the trouble at rising numbers of failures, and once of the end.
    """
    run = airflow.trigger("chat_ask", {"conn_id": emulator.connect(airflow), "prompts": prompts(5)})
    airflow.wait_for_task(run, "ask", "deferred")
    airflow.wait_until(lambda: emulator.looks, what="the triggerer looks at the jobs")

    def failed(mode: int | str) -> int:
        return len(emulator.entries(operation="look", status=mode))

    def reachable() -> bool:
        try:
            return failed("reset") > 10
        except httpx.TransportError:
            return False

    emulator.outage("503", seconds=300)
    airflow.wait_until(lambda: failed(503) >= 10, what="ten looks were answered 503")
    emulator.outage("reset", seconds=300)
    airflow.wait_until(lambda: failed("reset") >= 10, what="ten looks were reset")
    emulator.outage("refuse", seconds=4)
    airflow.wait_until(reachable, what="connections are taken, and reset, again")
    looks = emulator.looks
    emulator.end_outage()
    airflow.wait_until(lambda: emulator.looks > looks, what="the triggerer looks at the jobs again")
    assert airflow.task_states(run) == {"ask": "deferred"}
    emulator.finish()
    assert airflow.wait_for_run(run).state == "success"

    log = airflow.task_log(run, "ask")
    told = [int(count) for count in re.findall(r"\((\d+) looks in a row without an answer\)", log)]
    assert told == [count for count in (4, 8, 16, 32) if count <= max(told)]
    at_jobs = re.findall(r"\((\d+) looks in a row at job '(\S+)' without an answer\)", log)
    assert len(at_jobs) == len(set(at_jobs))
    assert {int(count) for count, _ in at_jobs} <= {1, 2, 4, 8}
    assert len(re.findall("answers again, after", log)) == 1
