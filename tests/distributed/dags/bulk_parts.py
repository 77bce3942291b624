# SPDX-License-Identifier: Apache-2.0

"""One file split over mapped tasks, and one mapped task for each of several files."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator

SPLIT = 4

with DAG(
    "bulk_parts",
    schedule=None,
    params={"conn_id": "", "requests": "", "files": [], "result_path": ""},
    default_args={
        "conn_id": "{{ params.conn_id }}",
        "result_path": "{{ params.result_path }}",
        "poke_interval": 5,
        "retries": 2,
        "retry_delay": 0.1,
    },
):

    @task
    def files(params: dict[str, Any]) -> list[str]:
        found: list[str] = params["files"]
        return found

    AsyncChatBulkOperator.sharded(split=SPLIT, task_id="shard", requests="{{ params.requests }}")
    AsyncChatBulkOperator.partial(task_id="file").expand(requests=files())  # type: ignore[call-arg, misc]
