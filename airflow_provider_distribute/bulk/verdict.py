# SPDX-License-Identifier: Apache-2.0

"""How a run ends, once everything there is was landed: a pure decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_distribute.exceptions import BudgetSpent, RunIncomplete

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_distribute.bulk.policy import Policy
    from airflow_provider_distribute.exceptions import InferenceError
    from airflow_provider_distribute.ledger.records import Stopped

__all__ = ["verdict"]


def verdict(
    counts: Mapping[str, int], stopped: Stopped | None, policy: Policy, *, results: str, reason: str = ""
) -> InferenceError | None:
    """
    Return the error that ends the task; ``None``: it succeeds. The first line that holds decides.

    =====================================================  =============================================
    what happened                                          how the task ends
    =====================================================  =============================================
    every row succeeded                                    well
    the service denied the sending                         :class:`RunIncomplete`, a retry is no use
    sending stopped at ``max_cost``                        :class:`BudgetSpent`, a retry is no use
    rows are unknown, and ``on_unknown="fail"``            :class:`RunIncomplete`, a retry is no use
    ``failure_tolerance`` covers the bad rows, and the     well
    deadline left none of them or ``on_deadline="land"``
    all bad rows are unknown, and ``on_unknown="leave"``   :class:`RunIncomplete`, a retry is no use
    anything else                                          :class:`RunIncomplete`, a retry asks them again
    =====================================================  =============================================

    The deadline leaves rows when it cuts the sending, or passes with jobs pending.

    :param counts: Rows by status.
    :param stopped: Why sending stopped before the last row; ``None``: it did not.
    :param policy: What the author wants.
    :param results: Where the results are, for people.
    :param reason: Why most of the bad rows are bad, for people.
    """
    rows = sum(counts.values())
    bad = {status: count for status, count in counts.items() if count and status != "succeeded"}
    if not bad:
        return None
    some, unknown = sum(bad.values()), bad.get("unknown", 0)
    told = (
        f"{some} of {rows} rows did not succeed ({', '.join(f'{bad[status]} {status}' for status in bad)})."
        f"{f' Most often: {reason}.' if reason else ''} Everything there is was landed at {results}."
    )
    if stopped and stopped.reason == "denied":
        return RunIncomplete(
            f"{stopped.message.rstrip('.')}. {told} Put that right and clear the task: it sends only the "
            "missing rows.",
            retry_helps=False,
        )
    if stopped and stopped.reason == "budget":
        return BudgetSpent(
            f"{stopped.message} {told} To go on, raise max_cost and clear the task: it sends only the "
            "missing rows."
        )
    if unknown and policy.on_unknown == "fail":
        return RunIncomplete(
            f"{told} Nobody knows what became of the requests of {unknown} rows. Decide: "
            "on_unknown='resubmit' sends them again and may pay twice, 'leave' accepts the gap; then clear "
            "the task.",
            retry_helps=False,
        )
    late = stopped is not None or "expired" in bad
    tolerated = some / rows <= policy.failure_tolerance
    if tolerated and not (late and policy.on_deadline == "fail"):
        return None
    why = (
        " failure_tolerance allows that, but on_deadline='fail' does not; on_deadline='land' does."
        if tolerated
        else f" failure_tolerance={policy.failure_tolerance} allows less."
    )
    if unknown == some and policy.on_unknown == "leave":
        return RunIncomplete(
            f"{told}{why} A retry would send nothing, because on_unknown='leave' leaves them unknown. Raise "
            "failure_tolerance, or set on_unknown='resubmit', which may pay for them twice; then clear the "
            "task.",
            retry_helps=False,
        )
    left = ", except the unknown ones" if unknown and policy.on_unknown == "leave" else ""
    return RunIncomplete(
        f"{'The deadline passed. ' if late else ''}{told}{why} A retry asks only those rows again{left}.",
        retry_helps=True,
    )
