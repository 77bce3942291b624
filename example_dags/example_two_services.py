# SPDX-License-Identifier: Apache-2.0

"""
The same questions to both services: only ``conn_id`` changes.

Needs the connections ``distribute_default`` and ``inference_net_default``, each with a ``model`` in its
extra.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from airflow_provider_distribute.operators.chat import SubmitAsyncChatOperator
from airflow_provider_distribute.sensors.chat import AsyncChatSensor

QUESTIONS = ["Name a river in Asia.", "Name a lake in Africa.", "Name a mountain in Europe."]


@dag(schedule=None, catchup=False, tags=["example", "distribute"])
def example_two_services() -> None:
    @task
    def compare(**answers: list[dict[str, Any]]) -> list[str]:
        texts = ([result["content"] for result in results] for results in answers.values())
        return [" | ".join(row) for row in zip(QUESTIONS, *texts, strict=True)]

    answers = {}
    for conn_id in ("distribute_default", "inference_net_default"):
        submit = SubmitAsyncChatOperator(task_id=f"submit_{conn_id}", conn_id=conn_id, requests=QUESTIONS)
        wait = AsyncChatSensor(task_id=f"wait_{conn_id}", conn_id=conn_id, job_id=submit.output)
        answers[conn_id] = wait.output
    compare(**answers)


example_two_services()
