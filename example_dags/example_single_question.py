# SPDX-License-Identifier: Apache-2.0

"""
One question, asked and waited for in one task.

Needs the connection ``distribute_default`` with a ``model`` in its extra. The task occupies no worker while
it waits; on Airflow 3.3 and later a retry re-attaches to the job instead of paying again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_distribute.operators.chat import AsyncChatOperator


@dag(schedule=None, catchup=False, tags=["example", "distribute"])
def example_single_question() -> None:
    answer = AsyncChatOperator(
        task_id="ask",
        conn_id="distribute_default",
        prompt="Explain in one sentence why the sky is blue.",
        system_prompt="You are brief.",
        request_params={"temperature": 0.2},
        timeout=timedelta(hours=72),
        retries=2,
        retry_delay=timedelta(minutes=5),
    )

    @task
    def report(result: dict[str, Any]) -> None:
        print(f"{result['model']} says: {result['content']}")

    report(answer.output)


example_single_question()
