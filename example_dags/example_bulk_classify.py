# SPDX-License-Identifier: Apache-2.0

"""
Classify a file of reviews, then count the classes with DuckDB (``pip install duckdb``).

One task sends every line, waits without a worker slot, and leaves one row for each line; the next task reads
them where they are. Files go below ``result_path`` in section ``[distribute]`` of Airflow's configuration.
"""

from __future__ import annotations

import json
from typing import Literal

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
    def count(results: str) -> dict[str, int]:
        """Count the rows of each sentiment. With pandas: ``pandas.read_json(results, lines=True)``."""
        import duckdb

        path = ObjectStoragePath(results)
        with duckdb.connect() as database:
            # DuckDB reads through Airflow, with the connection for that storage.
            database.register_filesystem(path.fs)
            rows = database.execute(
                """
                SELECT output.sentiment, count(*)
                FROM read_json(?, columns = {status: 'VARCHAR', output: 'STRUCT(sentiment VARCHAR)'})
                WHERE status = 'succeeded'
                GROUP BY ALL
                """,
                [f"{path.protocol}://{path.path}"],
            ).fetchall()
        return dict(rows)

    count(classify.output["results"])  # type: ignore[index]


example_bulk_classify()
