# SPDX-License-Identifier: Apache-2.0

"""
A nightly run with a budget: sending stops before the estimate passes it, and what was paid is landed.

The function returns the requests; what it returns is not a template. It must return the same on a retry, so
it takes nothing from the clock. Files go below ``result_path`` in section ``[distribute]``
of Airflow's configuration.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task


@dag(schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False, tags=["example", "llm"])
def example_bulk_nightly() -> None:
    @task.async_chat_bulk(
        conn_id="distribute_default",
        max_cost=5.0,
        dedupe=True,
        deadline=timedelta(hours=20),
        on_deadline="land",
        failure_tolerance=0.05,
        poke_interval=10,
        retries=1,
    )
    def questions(run: str) -> list[dict[str, str]]:
        return [
            {"custom_id": f"{run}-{topic}", "prompt": f"Name one open question in {topic}. Answer briefly."}
            for topic in ("energy", "health", "transport")
        ]

    @task
    def report(manifest: dict[str, Any]) -> str:
        return (
            f"{manifest['counts']['succeeded']} answers for about ${manifest['cost']}: {manifest['results']}"
        )

    report(questions("{{ run_id }}"))  # type: ignore[arg-type]


example_bulk_nightly()
