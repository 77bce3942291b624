# SPDX-License-Identifier: Apache-2.0

"""What travels with each request so that people find where it comes from."""

from __future__ import annotations

from typing import Any

__all__ = ["labels_of"]


def labels_of(task: Any) -> dict[str, Any]:
    """Return where a request comes from, so that a duplicate can be recognised at the service."""
    return {
        "airflow_dag_id": task.dag_id,
        "airflow_run_id": task.run_id,
        "airflow_task_id": task.task_id,
        "airflow_map_index": task.map_index,
    }
