# SPDX-License-Identifier: Apache-2.0

"""One error tree: as drawn, complete, and able to travel."""

from __future__ import annotations

import copy
import pickle
import re
from typing import TYPE_CHECKING

import pytest

from airflow_provider_distribute import exceptions
from airflow_provider_distribute.exceptions import (
    AccessDenied,
    DeadlinePassed,
    InferenceError,
    InvalidRequest,
    JobsFailed,
    NotAccepted,
    OutcomeUnknown,
    RequestRefused,
    ServiceError,
    SubmissionIncomplete,
)
from tests.unit.contracts import DISTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Iterator


def descendants(kind: type[InferenceError]) -> Iterator[type[InferenceError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


TREE: list[type[InferenceError]] = [InferenceError, *descendants(InferenceError)]

UNKNOWN = OutcomeUnknown("The service hung up", service="distribute")
FACTS: dict[str, InferenceError] = {
    "ConnectionInvalid": exceptions.ConnectionInvalid("c", ["password: missing", "model: wrong"]),
    "InvalidRequest": InvalidRequest(["a: wrong"], where="Request 2"),
    "NotAccepted": NotAccepted("Slow down", service="s", status=429, retry_after=3.0, throttled=True),
    "SubmissionIncomplete": SubmissionIncomplete(UNKNOWN, index=2, total=5, accepted={0: "j0", 1: "j1"}),
    "JobsFailed": JobsFailed([DISTRIBUTE.service.lost("j1")], total=3),
    "LedgerUnavailable": exceptions.LedgerUnavailable("list", "odd://run", transient=False),
    "LedgerMissing": exceptions.LedgerMissing("find the run in", "s3://bucket/run", remedy="restore it"),
    "LedgerForbidden": exceptions.LedgerForbidden("write", "s3://bucket/run"),
    "InputUnreadable": exceptions.InputUnreadable(["it is gone"], source="The input", transient=True),
    "RunIncomplete": exceptions.RunIncomplete("3 of 4 rows did not succeed.", retry_helps=True),
    "DeadlinePassed": DeadlinePassed({"j1": "QUEUED", "j2": "not seen yet"}, total=3),
}


def drawn() -> dict[str, str]:
    """Return each class drawn in the docstring with its parent."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in exceptions.__doc__.splitlines() if exceptions.__doc__ else []:
        match = re.match(r"^ {4}((?:[│ ] {3}|[├└]── )*)([A-Z]\w+)\b", line)
        if match and (match[1] or match[2] == "InferenceError"):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            if depth:
                parents[match[2]] = above[depth - 1]
    return parents


def test_the_tree_is_the_one_drawn() -> None:
    """Whoever reads the docstring knows what to catch: every class and its parent are there, and no other."""
    assert drawn() == {kind.__name__: kind.__mro__[1].__name__ for kind in TREE[1:]}


def test_everything_drawn_is_exported() -> None:
    """``__all__`` is sorted and names each class of the tree once."""
    assert exceptions.__all__ == sorted(exceptions.__all__)
    assert set(exceptions.__all__) == {kind.__name__ for kind in TREE}


def test_every_class_says_whether_it_is_transient() -> None:
    """Nobody above has to know a list of classes to decide whether trying again can help."""
    table = {kind.__name__ for kind in TREE if kind.transient is True and issubclass(kind, ServiceError)}
    assert table == {"JobNotFound", "NotAccepted", "OutcomeUnknown", "Unavailable"}
    assert not InferenceError.transient
    assert not InvalidRequest.transient
    assert not AccessDenied.transient
    assert DeadlinePassed.transient


@pytest.mark.parametrize("cause", [NotAccepted("busy", service="s"), RequestRefused("no", service="s")])
def test_an_incomplete_submission_is_as_transient_as_its_cause(cause: ServiceError) -> None:
    """A busy service may take the rest later, a refused request stays refused."""
    assert SubmissionIncomplete(cause, index=0, total=1, accepted={}).transient is cause.transient


@pytest.mark.parametrize("error", FACTS.values(), ids=FACTS.keys())
def test_errors_travel_with_their_facts(error: InferenceError) -> None:
    """An error that crosses a process, or is copied, keeps message, type and facts."""
    for there in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(there) is type(error)
        assert str(there) == str(error)
        assert {name: str(fact) for name, fact in vars(there).items()} == {
            name: str(fact) for name, fact in vars(error).items()
        }
        assert there.transient == error.transient


def test_a_connection_names_all_its_problems() -> None:
    """The connection by id, then one sentence each."""
    assert str(FACTS["ConnectionInvalid"]) == (
        "Connection 'c' cannot be used: password: missing; model: wrong."
    )


def test_an_invalid_request_says_which() -> None:
    """In a list of requests, the one at fault."""
    assert str(FACTS["InvalidRequest"]) == "Request 2 was not sent: a: wrong."


def test_an_incomplete_submission_lists_what_is_paid() -> None:
    """The ids accepted before the failure are in the text: the log may be all that is left of them."""
    assert str(FACTS["SubmissionIncomplete"]) == (
        "Request 3 of 5 failed: The service hung up. 2 of 5 were accepted. "
        "Accepted, running and billed: j0, j1."
    )


def test_an_incomplete_submission_says_what_follows() -> None:
    """With nothing accepted no ids are promised; what the caller knows about retries comes last."""
    error = SubmissionIncomplete(
        InvalidRequest(["a: wrong"]), index=0, total=2, accepted={}, follows="A retry starts over."
    )
    assert str(error) == (
        "Request 1 of 2 failed: The request was not sent: a: wrong. 0 of 2 were accepted. "
        "A retry starts over."
    )


def test_failed_jobs_are_named_with_their_reasons() -> None:
    """Each failed id with the service's words."""
    error = FACTS["JobsFailed"]
    assert isinstance(error, JobsFailed)
    assert str(error).startswith("1 of 3 jobs failed: j1 (not found): Distribute.AI does not know this job")
    assert [job.job_id for job in error.jobs] == ["j1"]


def test_a_passed_deadline_says_what_goes_on() -> None:
    """Which jobs, in which state, and that they still cost money."""
    assert str(FACTS["DeadlinePassed"]) == (
        "The deadline passed with 2 of 3 jobs still pending: j1 (QUEUED), j2 (not seen yet). "
        "They cannot be cancelled: they go on at the service and are billed."
    )


def test_a_service_error_carries_its_facts() -> None:
    """Deciders read attributes, never the text."""
    error = FACTS["NotAccepted"]
    assert isinstance(error, NotAccepted)
    assert (error.service, error.status, error.retry_after, error.throttled) == ("s", 429, 3.0, True)
    bare = ServiceError("x", service="s")
    assert (bare.status, bare.retry_after, bare.throttled) == (None, None, False)
