# SPDX-License-Identifier: Apache-2.0

"""How a run ends: every line of the table, and what people are told."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_distribute.bulk.formats import STATUSES
from airflow_provider_distribute.bulk.policy import Policy
from airflow_provider_distribute.bulk.verdict import verdict
from airflow_provider_distribute.exceptions import BudgetSpent, RunIncomplete
from airflow_provider_distribute.ledger.records import Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_distribute.exceptions import InferenceError

BUDGET = Stopped("budget", "Sending stopped at max_cost.")
DEADLINE = Stopped("deadline", "too late")
DENIED = Stopped("denied", "402: no credit.")
#: How a task may end: well, for good, or for Airflow to retry.
WELL, FOR_GOOD, RETRY = "well", "for good", "retry"


def decide(counts: dict[str, int], stopped: Stopped | None = None, **policy: Any) -> InferenceError | None:
    return verdict(counts, stopped, Policy(**policy), results="s3://there/results.jsonl")


def message(counts: dict[str, int], stopped: Stopped | None = None, **policy: Any) -> str:
    return str(decide(counts, stopped, **policy))


def ending(error: InferenceError | None) -> str:
    if error is None:
        return WELL
    return RETRY if error.transient else FOR_GOOD


def every_case() -> Iterator[tuple[dict[str, int], Stopped | None, dict[str, Any]]]:
    """Yield every mix of statuses, every reason to stop, and every policy."""
    for there in product((0, 1), repeat=len(STATUSES)):
        counts: dict[str, int] = dict(zip(STATUSES, there, strict=True))
        for stopped, tolerance, on_deadline, on_unknown in product(
            (None, BUDGET, DEADLINE, DENIED), (0.0, 0.5, 1.0), ("fail", "land"), ("resubmit", "fail", "leave")
        ):
            yield (
                counts,
                stopped,
                {"failure_tolerance": tolerance, "on_deadline": on_deadline, "on_unknown": on_unknown},
            )


def expected(counts: dict[str, int], stopped: Stopped | None, policy: dict[str, Any]) -> str:
    rows, bad = sum(counts.values()), sum(counts.values()) - counts["succeeded"]
    left_by_the_deadline = stopped == DEADLINE or counts["expired"] > 0
    table = [
        (bad == 0, WELL),
        (stopped == DENIED, FOR_GOOD),
        (stopped == BUDGET, FOR_GOOD),
        (counts["unknown"] > 0 and policy["on_unknown"] == "fail", FOR_GOOD),
        (
            bad <= policy["failure_tolerance"] * rows
            and (policy["on_deadline"] == "land" or not left_by_the_deadline),
            WELL,
        ),
        (counts["unknown"] == bad and policy["on_unknown"] == "leave", FOR_GOOD),
        (True, RETRY),
    ]
    return next(outcome for holds, outcome in table if holds)


def test_every_line_of_the_table() -> None:
    """Whatever happened, and whatever the author wants."""
    wrong = [case for case in every_case() if ending(decide(case[0], case[1], **case[2])) != expected(*case)]
    assert wrong == []


def test_bad_rows_are_never_a_success_that_nobody_asked_for() -> None:
    """Without any tolerance the task succeeds only with every row."""
    ended_well = [
        counts
        for counts, stopped, policy in every_case()
        if not policy["failure_tolerance"] and decide(counts, stopped, **policy) is None
    ]
    assert all(sum(counts.values()) == counts["succeeded"] for counts in ended_well)


def test_counts_and_place_are_told() -> None:
    """Whoever is on call knows how much is missing, and where the rest is."""
    said = message({"succeeded": 7, "failed": 2, "unknown": 1})
    assert said.startswith("3 of 10 rows did not succeed (2 failed, 1 unknown).")
    assert "landed at s3://there/results.jsonl" in said


@pytest.mark.parametrize("stopped", [BUDGET, DENIED], ids=["budget", "denied"])
def test_the_words_of_what_stopped_the_sending_are_told(stopped: Stopped) -> None:
    """They say what to put right."""
    assert message({"succeeded": 1, "failed": 1}, stopped).startswith(stopped.message)


def test_the_budget_is_an_error_of_its_own() -> None:
    """Also when the rows that it held back keep the status of an earlier attempt."""
    assert isinstance(decide({"failed": 3}, BUDGET, failure_tolerance=1.0), BudgetSpent)


def test_a_deadline_is_named_only_when_it_passed() -> None:
    """Not merely because there is one."""
    assert message({"expired": 1}).startswith("The deadline passed.")
    assert message({"not_submitted": 1}, DEADLINE).startswith("The deadline passed.")
    assert "deadline" not in message({"failed": 1})


def test_the_tolerance_is_named_only_when_it_is_exceeded() -> None:
    """A deadline may end the task within it, which another option allows."""
    assert "failure_tolerance=0.0 allows less" in message({"failed": 1})
    late = message({"expired": 1}, failure_tolerance=1.0)
    assert "allows less" not in late
    assert "failure_tolerance allows that, but on_deadline='fail' does not; on_deadline='land' does" in late


@pytest.mark.parametrize("bad", [29, 57, 58])
def test_a_share_is_not_lost_in_the_last_digit(bad: int) -> None:
    """So many of a hundred are tolerated where the author tolerates that share."""
    counts = {"succeeded": 100 - bad, "failed": bad}
    assert decide(counts, failure_tolerance=bad / 100) is None
    assert decide({**counts, "failed": bad + 1}, failure_tolerance=bad / 100) is not None


def test_the_reason_is_told() -> None:
    """Whoever reads the error knows what to look for."""
    error = verdict({"failed": 2}, None, Policy(), results="there", reason="no such model (rows: 2)")
    assert "(2 failed). Most often: no such model (rows: 2). Everything" in str(error)


@pytest.mark.parametrize(
    ("counts", "policy", "what"),
    [
        ({"failed": 1, "unknown": 1}, "resubmit", "A retry asks only those rows again."),
        (
            {"failed": 1, "unknown": 1},
            "leave",
            "A retry asks only those rows again, except the unknown ones.",
        ),
        ({"unknown": 1}, "leave", "A retry would send nothing"),
        ({"unknown": 1}, "fail", "Decide: on_unknown='resubmit'"),
    ],
)
def test_what_a_retry_does_is_told(counts: dict[str, int], policy: str, what: str) -> None:
    """And it is true."""
    error = decide(counts, on_unknown=policy)
    assert isinstance(error, RunIncomplete)
    assert what in str(error)
    assert error.retry_helps == what.startswith("A retry asks")
