# SPDX-License-Identifier: Apache-2.0

"""The small summary of a run: the last object written, and the only thing that goes to XCom."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.bulk.costs import Costs

if TYPE_CHECKING:
    from airflow_provider_distribute.bulk.landing import Landing
    from airflow_provider_distribute.bulk.run import Run, Staged

__all__ = ["SCHEMA_VERSION", "dry_run_manifest", "manifest_of", "write_manifest"]

#: Version of the manifest's fields.
SCHEMA_VERSION = 1
_NAME = "manifest.json"


def manifest_of(run: Run, landing: Landing, *, results: str, now: float) -> dict[str, Any]:
    """
    Sum a landed run up.

    :param results: Name of the results in the run's directory.
    :param now: Epoch seconds.
    """
    state, plan = run.state, run.plan
    submitted = [at for at in state.accepted_at if at]
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.directory.uri,
        "results": run.directory.below(results),
        "manifest": run.directory.below(_NAME),
        "conn_id": plan.settings.conn_id,
        "service": plan.settings.service,
        "attempt": state.opened.attempt if state.opened else 0,
        "rows": state.count,
        "counts": dict(landing.counts),
        "tokens": {"prompt": landing.tokens.prompt, "completion": landing.tokens.completion},
        "cost": None if landing.cost is None else round(landing.cost, 6),
        "cost_source": f"estimate: counted tokens, {Costs(plan.settings).source}",
        "duplicates_possible": state.duplicates,
        "unknown": {"rows": landing.counts["unknown"], "custom_ids": landing.unknown},
        "going_on": {"jobs": landing.counts["expired"], "job_ids": landing.going_on},
        "submitted_at": _iso(min(submitted)) if submitted else None,
        "finished_at": _iso(now),
    }


def write_manifest(run: Run, manifest: dict[str, Any]) -> None:
    """Write the manifest; a reader who finds it finds the results complete."""
    run.directory.overwrite(_NAME, json.dumps(manifest, indent=1).encode())


def dry_run_manifest(staged: Staged, costs: Costs) -> dict[str, Any]:
    """Say what a run would take; nothing was sent or written."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dry_run": True,
        "rows": staged.count,
        "requests": staged.count - len(staged.copies),
        "tokens": {"prompt": staged.tokens.prompt, "completion": staged.tokens.completion},
        "cost": None if staged.cost is None else round(staged.cost, 6),
        "cost_source": f"estimate: characters and token limits, {costs.source}",
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
