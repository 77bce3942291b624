# SPDX-License-Identifier: Apache-2.0

"""What a bulk run tells on its way: people through the task's log, monitoring through Airflow's metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_distribute.bulk.attempt import Reports
from airflow_provider_distribute.bulk.leaving import some

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_distribute.bulk.landing import Landing
    from airflow_provider_distribute.bulk.run import Run
    from airflow_provider_distribute.bulk.submission import Submitted
    from airflow_provider_distribute.waiting.pool import Logger

__all__ = ["BulkReports"]


class BulkReports(Reports):
    """
    Tells how an attempt goes.

    :param log: The task's log.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log

    def begun(self, run: Run, cost: float | None) -> None:
        """Tell what an attempt finds, and what it is going to send."""
        state = run.state
        self._log.info(
            "Run %s, attempt %d: %d rows, %d to send, %d accepted before. Estimate for all rows: %s.",
            run.directory.uri,
            state.opened.attempt if state.opened else 0,
            state.count,
            len(state.open),
            len(state.tickets),
            "no price known" if cost is None else f"about ${cost:.4f}",
        )
        if state.doubt:
            self._log.warning(
                "%d requests were sent by an earlier attempt and not recorded; whether they run and are "
                "billed is unknown. on_unknown=%r.",
                len(state.doubt),
                run.plan.policy.on_unknown,
            )

    def sent(self, run: Run, submitted: Submitted) -> None:
        """Tell, and count, how the sending went."""
        self._log.info(
            "%d requests accepted, %d refused, %d times no answer; %d rows not sent.",
            submitted.accepted,
            submitted.refused,
            submitted.unknown,
            len(run.state.open),
        )
        if submitted.stopped is not None:
            self._log.warning("%s", submitted.stopped)
        for name in ("accepted", "refused", "unknown", "throttled"):
            _count(run, name, getattr(submitted, name))

    def landed(
        self, run: Run, landing: Landing, manifest: Mapping[str, Any], before: Mapping[str, Any]
    ) -> None:
        """
        Tell how the rows ended; count what has changed since they were landed before.

        :param before: The manifest of that landing, or nothing.
        """
        counts = {status: count for status, count in landing.counts.items() if count}
        self._log.info("Landed at %s: %s.", manifest["results"], _list(counts))
        if landing.reason:
            self._log.warning("The most frequent reason: %s.", landing.reason)
        if landing.going_on:
            self._log.warning(
                "%d jobs were not seen ended; they cannot be cancelled, go on and are billed: %s.",
                len(landing.going_on),
                some(manifest["going_on"]["job_ids"], len(landing.going_on)),
            )
        if landing.unknown:
            self._log.warning(
                "%d rows are unknown: nobody knows what became of their requests, which may have run and "
                "been billed: %s.",
                len(landing.unknown),
                some(manifest["unknown"]["custom_ids"], len(landing.unknown)),
            )
        same_input = before.get("fingerprint") == manifest["fingerprint"]
        for status, count in counts.items():
            was = before["counts"].get(status, 0) if same_input else 0
            _count(run, "landed", count - was, status=status)
        for kind, count in manifest["tokens"].items():
            _count(run, f"{kind}_tokens", count - before.get("tokens", {}).get(kind, 0))
        _count(run, "cost_microdollars", round(1e6 * ((manifest["cost"] or 0) - (before.get("cost") or 0))))


def _count(run: Run, name: str, count: int, **tags: str) -> None:
    if count > 0:
        Stats.incr(f"distribute.bulk.{name}", count, tags={"service": run.plan.settings.service, **tags})


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items())
