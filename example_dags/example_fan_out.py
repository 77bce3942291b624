# SPDX-License-Identifier: Apache-2.0

"""
One mapped task a document: each submits, waits and retries by itself.

However many of them wait, they share one connection pool, one rate limit and one schedule on the triggerer.
Needs the connection ``inference_net_default`` with a ``model`` in its extra.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag, task

from airflow_provider_distribute.operators.chat import AsyncChatOperator


@dag(schedule=None, catchup=False, tags=["example", "inference_net"])
def example_fan_out() -> None:
    @task
    def prompts() -> list[str]:
        documents = [
            "The cat sat on the mat.",
            "Rain is expected in the north.",
            "Shares fell by two per cent.",
        ]
        return [f"Give this text a title of at most five words: {document}" for document in documents]

    titles = AsyncChatOperator.partial(
        task_id="title",
        conn_id="inference_net_default",
        request_params={"max_tokens": 32},
    ).expand(prompt=prompts())

    @task
    def collect(results: list[dict[str, Any]]) -> list[str]:
        return [result["content"] for result in results]

    collect(titles.output)


example_fan_out()
