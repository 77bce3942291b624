# SPDX-License-Identifier: Apache-2.0

"""
The same Dag on two services: which one follows from the type of the connection that ``conn_id`` names.

Trigger it with ``{"conn_id": "inference_net_default"}`` to ask inference.net instead of Distribute.AI. Needs
both default connections, each with a ``model`` in its extra, because models have different names on the two.

:class:`~airflow_provider_distribute.operators.chat.AsyncChatOperator` submits and waits in one task; a failed
job does not fail it here, so that the other answers are used.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_distribute.operators.chat import AsyncChatOperator

QUESTIONS = [
    "Name three uses of a teaspoon.",
    {"prompt": "Name three uses of a brick.", "params": {"temperature": 1}},
    [
        {"role": "system", "content": "Answer like a pirate."},
        {"role": "user", "content": "Name three uses of a rope."},
    ],
]


@dag(
    schedule=None,
    catchup=False,
    tags=["example", "llm"],
    params={"conn_id": Param("distribute_default", type="string", title="Connection of either service")},
)
def example_two_services() -> None:
    answers = AsyncChatOperator(
        task_id="ask",
        conn_id="{{ params.conn_id }}",
        requests=QUESTIONS,
        fail_on_error=False,
        poke_interval=5,
    ).output

    @task
    def count(answers: list[dict[str, Any]]) -> dict[str, int]:
        """Count the answers by service and status."""
        counts: dict[str, int] = {}
        for answer in answers:
            kind = f"{answer['service']}: {answer['status']}"
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    count(answers)


example_two_services()
