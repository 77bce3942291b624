# SPDX-License-Identifier: Apache-2.0

"""
One question: submit it, wait on the triggerer, use the answer.

Needs the connection ``distribute_default`` (type ``distribute``, the API key as its password, a ``model`` in
its extra). While ``wait_for_answer`` is deferred it holds no worker slot.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from airflow_provider_distribute.operators.chat import SubmitAsyncChatOperator
from airflow_provider_distribute.sensors.chat import AsyncChatSensor


@dag(schedule=None, catchup=False, tags=["example", "llm"])
def example_single_question() -> None:
    job_id = SubmitAsyncChatOperator(
        task_id="submit_question",
        prompt="In one sentence: why is the sky blue?",
        request_params={"temperature": 0.2},
    ).output

    answer = AsyncChatSensor(task_id="wait_for_answer", job_id=job_id, poke_interval=5).output

    @task
    def use(answer: dict[str, Any]) -> str:
        print(f"{answer['model']} says: {answer['content']}")
        return str(answer["content"])

    use(answer)


example_single_question()
