# SPDX-License-Identifier: Apache-2.0

"""
Classify a file of reviews, then count the classes.

One task sends every line, waits without a worker slot, and leaves one row for each line; the next task reads
them. Files go below ``result_path`` in section ``[distribute]`` of Airflow's configuration.
"""

from __future__ import annotations

import json
from collections import Counter
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
def example_bulk_classify() -> None:
    @task
    def reviews() -> str:
        """Stand in for a file that is there already."""
        path = ObjectStoragePath(conf.get("distribute", "result_path")) / "reviews.jsonl"
        texts = ["It broke on the first day.", "Works, but the manual is in Latin.", "I bought three more."]
        lines = [
            json.dumps({"custom_id": f"review-{number}", "prompt": text}) for number, text in enumerate(texts)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
        return str(path)

    classify = AsyncChatBulkOperator(
        task_id="classify",
        conn_id="distribute_default",
        requests=reviews(),
        system_prompt="You judge product reviews.",
        output_type=Review,
        repair_attempts=1,
        failure_tolerance=0.01,
        poke_interval=10,
        retries=2,
    )

    @task
    def count(manifest: dict[str, Any]) -> dict[str, int]:
        # DuckDB: duckdb.sql(f"SELECT output.sentiment, count(*) FROM '{manifest['results']}' GROUP BY 1")
        # pandas: pandas.read_json(manifest["results"], lines=True)
        lines = ObjectStoragePath(manifest["results"]).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return dict(Counter(row["output"]["sentiment"] for row in rows if row["status"] == "succeeded"))

    count(classify.output)  # type: ignore[arg-type]


example_bulk_classify()
