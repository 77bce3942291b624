# SPDX-License-Identifier: Apache-2.0

"""What stops the sending of a bulk run, what is paid then, and how the task ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from tests.airflow.wire import Killed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Attempt, Life
    from tests.airflow.wire import Wire

SLOW = {"requests_per_second": 0.01}


class Word(pydantic.BaseModel):
    """What answers must be."""

    word: str


@pytest.fixture
def cost(bulk: Callable[..., Life]) -> Callable[..., float]:
    """Return what a run is estimated to cost."""

    def estimated(**fields: Any) -> float:
        estimate = bulk(dry_run=True, **fields)
        estimate.attempt()
        return float(estimate.result["cost"])

    return estimated


def landed(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the manifest and the rows of the only run."""
    (run,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    return json.loads((run / "manifest.json").read_text()), rows


def rows_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    with open(manifest["results"].removeprefix("file://"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def for_good(attempt: Attempt) -> bool:
    return isinstance(attempt.error, AirflowFailException)


def for_a_retry(attempt: Attempt) -> bool:
    return isinstance(attempt.error, AirflowException) and not for_good(attempt)


class TestLimit:
    """``max_cost``."""

    def test_it_lands_what_was_paid(
        self, bulk: Callable[..., Life], wire: Wire, cost: Callable[..., float], tmp_path: Path
    ) -> None:
        """Then the task fails for good and says how to go on."""
        attempt = bulk(max_cost=cost() * 0.7).attempt()
        manifest, rows = landed(tmp_path)
        assert for_good(attempt)
        assert "1 not_submitted" in attempt.message
        assert "raise max_cost and clear the task" in attempt.message
        assert [row["status"] for row in rows] == ["succeeded", "succeeded", "not_submitted"]
        assert (wire.paid, manifest["counts"]["succeeded"]) == (2, 2)

    def test_a_retry_does_not_start_over(
        self, bulk: Callable[..., Life], wire: Wire, cost: Callable[..., float], tmp_path: Path
    ) -> None:
        """What earlier attempts sent counts; rows that stay bad for want of money end the task for good."""
        wire.fault("error")
        life = bulk(max_cost=cost() * 1.05)
        assert for_a_retry(life.attempt())
        retry = life.attempt()
        _, rows = landed(tmp_path)
        assert for_good(retry)
        assert "Sending stopped at max_cost" in retry.message
        assert {row["status"] for row in rows} == {"failed"}
        assert wire.paid == 3

    def test_a_clear_with_a_higher_limit_goes_on(
        self, bulk: Callable[..., Life], wire: Wire, cost: Callable[..., float]
    ) -> None:
        """It pays for what is missing."""
        whole = cost()
        assert for_good(bulk(max_cost=whole * 0.7).attempt())
        cleared = bulk(max_cost=whole * 1.05)
        assert cleared.attempt().state == "success"
        assert wire.paid == 3

    @pytest.mark.parametrize("deferrable", [True, False])
    def test_repairs_are_within_it(
        self,
        bulk: Callable[..., Life],
        wire: Wire,
        cost: Callable[..., float],
        tmp_path: Path,
        deferrable: bool,
    ) -> None:
        """However many rounds there may be; a repair that is not sent for want of money is no success."""
        wire.fault("text", value="no JSON")
        limit = cost(output_type=Word) * 3
        attempt = bulk(
            output_type=Word,
            repair_attempts=30,
            max_cost=limit,
            failure_tolerance=1.0,
            deferrable=deferrable,
        ).attempt()
        manifest, _ = landed(tmp_path)
        assert for_good(attempt)
        assert "Sending stopped at max_cost" in attempt.message
        assert 3 < wire.paid <= 9
        assert manifest["cost"] <= limit
        assert manifest["tokens"]["prompt"] > 0

    def test_what_repairs_cost_is_in_the_manifest(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """Beside what the answers cost that did not fit."""
        wire.fault("text", value="no JSON", count=1)
        wire.fault("text", value='{"word": "yes"}')
        life = bulk(("What is 1?",), output_type=Word, repair_attempts=1)
        life.attempt()
        first, repair = wire.submissions
        (row,) = rows_of(life.result)
        assert len(repair["messages"]) == len(first["messages"]) + 2
        assert life.result["tokens"]["prompt"] > row["usage"]["prompt_tokens"]
        assert life.result["cost"] > row["cost"]

    def test_it_is_not_blamed_for_the_deadline(
        self, bulk: Callable[..., Life], connections: Any, service: str
    ) -> None:
        """Whatever ends the sending is what the message names."""
        connections(f"{service}_default", extra=SLOW)
        attempt = bulk(deadline=50, max_cost=1000.0).attempt()
        assert attempt.message.startswith(
            "The deadline passed. 2 of 3 rows did not succeed (2 not_submitted)"
        )
        assert for_a_retry(attempt)


class TestDeadline:
    """A deadline that cuts the sending."""

    @pytest.mark.parametrize(("on_deadline", "state"), [("fail", "up_for_retry"), ("land", "success")])
    def test_the_author_decides(
        self, bulk: Callable[..., Life], connections: Any, service: str, on_deadline: str, state: str
    ) -> None:
        """Also when as many bad rows would be tolerated."""
        connections(f"{service}_default", extra=SLOW)
        attempt = bulk(deadline=50, on_deadline=on_deadline, failure_tolerance=1.0).attempt()
        assert attempt.state == state

    def test_a_retry_sends_the_rest(
        self, bulk: Callable[..., Life], wire: Wire, connections: Any, service: str
    ) -> None:
        """And only that."""
        connections(f"{service}_default", extra=SLOW)
        life = bulk(deadline=50)
        life.attempt()
        connections(f"{service}_default")
        assert life.attempt().state == "success"
        assert wire.paid == 3


class TestDenial:
    """A key, a balance or a permission that ends in the middle."""

    def test_what_was_accepted_is_waited_for_and_landed(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """Then the task fails for good, with the service's words; a clear sends the rest."""
        wire.fault("402", operation="submit", after=20)
        life = bulk(tuple(f"What is {number}?" for number in range(60)))
        attempt = life.attempt()
        manifest, rows = landed(tmp_path)
        assert for_good(attempt)
        assert "402" in attempt.message
        assert "40 of 60 rows did not succeed (40 not_submitted)" in attempt.message
        assert (manifest["counts"]["succeeded"], len(rows), len(attempt.triggers)) == (20, 60, 1)
        wire.no_faults()
        assert life.attempt().state == "success"
        assert wire.paid == 60

    def test_a_denial_of_everything_leaves_results_too(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """A reader finds one row for each input, always."""
        wire.fault("401", operation="submit")
        attempt = bulk().attempt()
        _, rows = landed(tmp_path)
        assert for_good(attempt)
        assert "401" in attempt.message
        assert [row["status"] for row in rows] == ["not_submitted"] * 3
        assert attempt.triggers == []

    def test_a_denied_look_leaves_the_jobs_to_a_clear(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """Nothing counts as expired, and nothing is paid again."""
        wire.fault("401", operation="look")
        life = bulk()
        attempt = life.attempt()
        assert for_good(attempt)
        assert "waits for it instead of paying again" in attempt.message
        wire.no_faults()
        assert life.attempt().state == "success"
        assert wire.paid == 3


class TestUnknown:
    """Requests of which nobody knows whether they were taken."""

    @pytest.mark.parametrize("policy", ["fail", "leave", "resubmit"])
    def test_an_unanswered_request(self, bulk: Callable[..., Life], wire: Wire, policy: str) -> None:
        """The author decides about it; what may be paid twice is counted."""
        wire.fault("500", operation="submit", count=1)
        life = bulk(on_unknown=policy, failure_tolerance=0.5)
        attempt = life.attempt()
        if policy == "fail":
            assert for_good(attempt)
            assert "on_unknown='resubmit'" in attempt.message
        else:
            assert attempt.state == "success"
            assert life.result["counts"]["unknown"] == (1 if policy == "leave" else 0)
            assert life.result["duplicates_possible"] == (0 if policy == "leave" else 1)

    def test_rows_left_unknown_are_not_retried(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """A retry would send nothing, so there is none."""
        wire.fault("500", operation="submit", count=1)
        attempt = bulk(on_unknown="leave").attempt()
        assert for_good(attempt)
        assert "A retry would send nothing" in attempt.message

    @pytest.mark.parametrize(
        ("policy", "outcome"),
        [("resubmit", "success"), ("leave", "A retry would send nothing"), ("fail", "Decide")],
    )
    def test_after_a_crash(
        self, bulk: Callable[..., Life], wire: Wire, log: Log, policy: str, outcome: str
    ) -> None:
        """The next attempt says what was in flight, and does as it is told."""
        life = bulk(on_unknown=policy)
        wire.killed_after = 2
        with pytest.raises(Killed):
            life.attempt()
        before = wire.paid
        wire.killed_after = None
        attempt = life.attempt()
        assert "3 requests were sent by an earlier attempt and not recorded" in log.text
        if policy == "resubmit":
            assert attempt.state == outcome
            assert 0 < wire.paid - 3 <= life.result["duplicates_possible"] == 3
        else:
            assert for_good(attempt)
            assert outcome in attempt.message
            assert wire.paid == before
