# SPDX-License-Identifier: Apache-2.0

"""The Dags of the chat tests; the connection and the questions come with each run."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG

from airflow_provider_distribute.operators.chat import AsyncChatOperator, SubmitAsyncChatOperator
from airflow_provider_distribute.sensors.chat import AsyncChatSensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

CONN_ID = "{{ params.conn_id }}"
PROMPTS = "{{ params.prompts }}"
HELD_SECONDS = 120


class HeldChatOperator(AsyncChatOperator):
    """Stops where its first attempt would defer: everything is submitted, nothing is waited for yet."""

    def _defer_until_ended(self, job_ids: Sequence[str], deadline: float) -> NoReturn:
        """Say that the place is reached, and stay there."""
        reached = Path(__file__).with_name(f"{self.task_id}.reached")
        if not reached.exists():
            reached.write_text("")
            Event().wait(HELD_SECONDS)
        super()._defer_until_ended(job_ids, deadline)


def dag(dag_id: str) -> DAG:
    """Return an empty Dag whose runs say what to ask, and whom."""
    return DAG(
        dag_id,
        schedule=None,
        params={"conn_id": "", "prompts": [], "job_ids": []},
        render_template_as_native_obj=True,
        default_args={"retries": 0, "retry_delay": 0.1},
    )


def sensor(task_id: str = "wait", **arguments: Any) -> AsyncChatSensor:
    """Return a sensor for the jobs that come with the run."""
    return AsyncChatSensor(
        task_id=task_id, conn_id=CONN_ID, job_id="{{ params.job_ids }}", poke_interval=2, **arguments
    )


with dag("chat_spine"):
    submit = SubmitAsyncChatOperator(task_id="submit", conn_id=CONN_ID, requests=PROMPTS)
    AsyncChatSensor(task_id="wait", conn_id=CONN_ID, job_id=submit.output, poke_interval=2)
    AsyncChatOperator(task_id="ask", conn_id=CONN_ID, prompt="{{ params.prompts[0] }}", poke_interval=2)

with dag("chat_one_slot"):
    for number in range(3):
        sensor(f"wait_{number}", pool="one_slot")

with dag("chat_fan_out"):
    submit = SubmitAsyncChatOperator(task_id="submit", conn_id=CONN_ID, requests=PROMPTS)
    AsyncChatSensor.partial(task_id="wait", conn_id=CONN_ID, poke_interval=10).expand(job_id=submit.output)

with dag("chat_ask"):
    AsyncChatOperator(task_id="ask", conn_id=CONN_ID, requests=PROMPTS, poke_interval=2, retries=1)

with dag("chat_held"):
    HeldChatOperator(task_id="ask", conn_id=CONN_ID, requests=PROMPTS, poke_interval=2, retries=1)

with dag("chat_wait"):
    sensor(retries=2)

with dag("chat_deadline"):
    sensor(retries=2, timeout=8)
