# SPDX-License-Identifier: Apache-2.0

"""
One file, split over four mapped tasks: each takes every fourth line, on whatever worker is free.

Each mapped task has its own run directory, its own retries and its own manifest. Files go below
``result_path`` in section ``[distribute]`` of Airflow's configuration.
"""

from __future__ import annotations

import json
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath, conf
from airflow.sdk import dag, task

from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator


@dag(schedule=None, catchup=False, tags=["example", "llm"])
def example_bulk_sharded() -> None:
    @task
    def questions() -> str:
        """Stand in for a file that is there already."""
        path = ObjectStoragePath(conf.get("distribute", "result_path")) / "questions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(f"What is {number} squared?") for number in range(12)))
        return str(path)

    answer = AsyncChatBulkOperator.sharded(
        split=4,
        task_id="answer",
        conn_id="inference_net_default",
        requests=questions(),
        poke_interval=10,
        retries=2,
    )

    @task
    def total(manifests: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "results": [manifest["results"] for manifest in manifests],
            "succeeded": sum(manifest["counts"]["succeeded"] for manifest in manifests),
            "cost": sum(manifest["cost"] or 0.0 for manifest in manifests),
        }

    total(answer.output)


example_bulk_sharded()
