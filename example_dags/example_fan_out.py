# SPDX-License-Identifier: Apache-2.0

"""
Fan out over a list that is known only at run time, and in again.

Each topic gets a mapped task that submits and a mapped sensor that waits. All sensors of one triggerer share
one connection pool and one rate limit, so a hundred of them poll like one. A last question is made of all
answers.

For more than about a thousand requests, map over lists (``expand(requests=...)``) instead of single prompts.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from airflow_provider_distribute.operators.chat import AsyncChatOperator, SubmitAsyncChatOperator
from airflow_provider_distribute.sensors.chat import AsyncChatSensor


@dag(schedule=None, catchup=False, tags=["example", "llm"])
def example_fan_out() -> None:
    @task
    def prompts() -> list[str]:
        return [f"Give one fact about {topic}." for topic in ("rivers", "lakes", "oceans")]

    submit = SubmitAsyncChatOperator.partial(
        task_id="submit", conn_id="inference_net_default", request_params={"max_tokens": 200}
    ).expand(prompt=prompts())

    wait = AsyncChatSensor.partial(task_id="wait", conn_id="inference_net_default", poke_interval=5).expand(
        job_id=submit.output
    )

    @task
    def question_about(facts: list[dict[str, Any]]) -> str:
        return "Say this in one sentence:\n" + "\n".join(str(fact["content"]) for fact in facts)

    AsyncChatOperator(
        task_id="summarise",
        conn_id="inference_net_default",
        prompt=question_about(wait.output),
        poke_interval=5,
    )


example_fan_out()
