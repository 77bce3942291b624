# SPDX-License-Identifier: Apache-2.0

"""The small summary of a run: the last object written, and the only thing that goes to XCom."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.bulk.costs import Costs
from airflow_provider_distribute.bulk.inputs import Shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_provider_distribute.bulk.landing import Landing
    from airflow_provider_distribute.bulk.run import Run, Staged
    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.replay import State

__all__ = [
    "MOST_NAMED",
    "SCHEMA_VERSION",
    "dry_run_manifest",
    "manifest_of",
    "manifest_of_stopped",
    "read_manifest",
    "write_manifest",
]

#: Version of the manifest's fields.
SCHEMA_VERSION = 1
#: Ids of jobs that go on, and of rows that are unknown, that a summary names.
MOST_NAMED = 100
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
        **_identity(run.directory, state),
        "results": run.directory.below(results),
        "models": sorted(landing.models),
        "output_type": "text" if plan.output_type.schema is None else plan.output_type.name,
        "fingerprint": state.opened.fingerprint if state.opened else None,
        "counts": dict(landing.counts),
        "tokens": {"prompt": landing.tokens.prompt, "completion": landing.tokens.completion},
        "cost": None if landing.cost is None else round(landing.cost, 6),
        "cost_source": f"estimate: counted tokens, {Costs(plan.settings).source}",
        "jobs_without_price": landing.unpriced,
        "duplicates_possible": state.duplicates,
        "unknown": {"rows": landing.counts["unknown"], "custom_ids": landing.unknown[:MOST_NAMED]},
        "going_on": _jobs(landing.going_on),
        "submitted_at": _iso(min(submitted)) if submitted else None,
        "finished_at": _iso(now),
        "stopped": None,
    }


def manifest_of_stopped(
    directory: Directory,
    state: State,
    before: Mapping[str, Any],
    *,
    pending: Iterable[str] | None = None,
    why: str,
    now: float,
) -> dict[str, Any]:
    """
    Sum up an attempt that ended before it could land: what it leaves is in the field ``stopped``.

    Only the journal is read for that, so it is quick. Everything else is of the landing before, if there was
    one; the results, too, are as they were.

    :param directory: The run's directory.
    :param state: What the journal says.
    :param before: The manifest of that landing, or nothing.
    :param pending: The jobs that were not seen ended; ``None``: all that were accepted since that landing.
    :param why: For people.
    :param now: Epoch seconds.
    """
    if pending is None:
        finished = before.get("finished_at")
        landed_at = datetime.fromisoformat(finished).timestamp() if finished else 0.0
        pending = (ticket for row, ticket in state.tickets.items() if state.accepted_at[row] > landed_at)
    unknown = sorted(state.unknown)
    shard = Shard(state.opened.shard, state.opened.split) if state.opened else Shard()
    return {
        **before,
        **_identity(directory, state),
        "stopped": {
            "why": why,
            "at": _iso(now),
            "accepted": _jobs(list(dict.fromkeys(pending))),
            "unknown": {
                "rows": len(unknown),
                "indexes": [shard.index(row) for row in unknown[:MOST_NAMED]],
            },
            "not_sent": len(state.open),
        },
    }


def _identity(directory: Directory, state: State) -> dict[str, Any]:
    opened = state.opened
    return {
        "schema_version": SCHEMA_VERSION,
        "run": directory.uri,
        "manifest": directory.below(_NAME),
        "conn_id": opened.conn_id if opened else None,
        "service": opened.service if opened else None,
        "attempt": opened.attempt if opened else 0,
        "rows": state.count,
    }


def _jobs(ids: Sequence[str]) -> dict[str, Any]:
    return {"jobs": len(ids), "job_ids": list(ids[:MOST_NAMED])}


def write_manifest(directory: Directory, manifest: Mapping[str, Any]) -> None:
    """Write the manifest; a reader who finds ``results`` in it finds these complete."""
    directory.overwrite(_NAME, json.dumps(manifest, indent=1).encode())


def read_manifest(directory: Directory) -> dict[str, Any]:
    """
    Return the manifest as it was written last; empty when there is none that this version can read.

    :raises LedgerError: the storage did not answer.
    """
    try:
        manifest = json.loads(directory.read(_NAME) or b"{}")
    except ValueError:
        return {}
    readable = isinstance(manifest, dict) and manifest.get("schema_version") == SCHEMA_VERSION
    return manifest if readable else {}


def dry_run_manifest(staged: Staged, costs: Costs) -> dict[str, Any]:
    """Say what a run would take; nothing was sent or written."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dry_run": True,
        "rows": staged.count,
        "requests": staged.count - len(staged.copies),
        "tokens": {"prompt": staged.tokens.prompt, "completion": staged.tokens.completion},
        "cost": None if staged.cost is None else round(staged.cost, 6),
        "cost_source": f"estimate: length of texts and token limits, {costs.source}",
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
