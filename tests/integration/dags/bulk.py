# SPDX-License-Identifier: Apache-2.0

"""The Dag of the bulk tests; the connection, the file of questions and the place come with each run."""

from __future__ import annotations

from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator

with DAG(
    "bulk",
    schedule=None,
    params={"conn_id": "", "requests": "", "result_path": ""},
    default_args={"retries": 1, "retry_delay": 0.1},
):
    ask = AsyncChatBulkOperator(
        task_id="ask",
        conn_id="{{ params.conn_id }}",
        requests="{{ params.requests }}",
        result_path="{{ params.result_path }}",
        failure_tolerance=0.05,
        poke_interval=2,
    )

    @task
    def count(results: str) -> int:
        return len(ObjectStoragePath(results).read_text().splitlines())

    count(ask.output["results"])  # type: ignore[index]
