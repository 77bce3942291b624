# SPDX-License-Identifier: Apache-2.0

"""
Classify a file of reviews with four mapped tasks, then count with DuckDB (``pip install duckdb``).

Each mapped task takes every fourth line, on whatever worker is free, and has its own run directory, retries
and manifest. Files go below ``result_path`` in section ``[distribute]`` of Airflow's configuration.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from airflow.providers.common.compat.sdk import ObjectStoragePath, conf
from airflow.sdk import dag, task
from pydantic import BaseModel

from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator


class Review(BaseModel):
    """What the model says about a review."""

    sentiment: Literal["good", "bad", "mixed"]
    topic: str


@dag(schedule=None, catchup=False, tags=["example", "llm"])
def example_bulk_sharded() -> None:
    @task
    def reviews() -> str:
        """Stand in for a file that is there already."""
        path = ObjectStoragePath(conf.get("distribute", "result_path")) / "many_reviews.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(f"I bought {number} more.") for number in range(12)))
        return str(path)

    classify = AsyncChatBulkOperator.sharded(
        split=4,
        task_id="classify",
        conn_id="inference_net_default",
        requests=reviews(),
        system_prompt="You judge product reviews.",
        output_type=Review,
        repair_attempts=1,
        poke_interval=10,
        retries=2,
    )

    @task
    def count(manifests: list[dict[str, Any]]) -> dict[str, int]:
        """Count the rows of each sentiment, of all shards together."""
        import duckdb

        paths = [ObjectStoragePath(manifest["results"]) for manifest in manifests]
        with duckdb.connect() as database:
            # DuckDB reads through Airflow, with the connection for that storage.
            database.register_filesystem(paths[0].fs)
            rows = database.execute(
                """
                SELECT output.sentiment, count(*)
                FROM read_json(?, columns = {status: 'VARCHAR', output: 'STRUCT(sentiment VARCHAR)'})
                WHERE status = 'succeeded'
                GROUP BY ALL
                """,
                [[f"{path.protocol}://{path.path}" for path in paths]],
            ).fetchall()
        return dict(rows)

    count(classify.output)


example_bulk_sharded()
