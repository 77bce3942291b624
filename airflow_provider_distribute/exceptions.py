# SPDX-License-Identifier: Apache-2.0

"""
Every error this package raises below the Airflow layer.

::

    InferenceError
    ├── ConnectionInvalid        the Airflow connection lacks something or says something wrong
    ├── InvalidRequest           refused here; nothing was sent and nothing is billed
    ├── ServiceError             an exchange with a service went wrong
    │   ├── AccessDenied         401, 402 or 403: the key, the balance or the permission
    │   ├── RequestRefused       the service will not have this request; saying it again will not help
    │   ├── JobNotFound          a look at a job was answered 404
    │   ├── NotAccepted          the request surely was not taken: sending it again is safe
    │   ├── OutcomeUnknown       the request was sent and not answered: it may have been taken and billed
    │   └── Unavailable          a look got no usable answer: the job goes on, look again later
    ├── SubmissionIncomplete     the k-th of several requests failed; carries the job ids accepted before it
    ├── JobsFailed               jobs ended failed; carries them
    ├── DeadlinePassed           jobs were still pending at the deadline; carries their last status words
    ├── LedgerError              the record of a bulk run cannot be used; never read as "there is no record"
    │   ├── LedgerUnavailable    the storage did not answer
    │   ├── LedgerMissing        the storage answered, and the record is not there
    │   ├── LedgerForbidden      the storage does not allow what the record needs
    │   ├── LedgerCorrupt        a record in the middle is damaged or missing
    │   ├── LedgerNewer          a newer release of this package has written the record
    │   └── LedgerTaken          the run belongs to another task instance, or a later attempt writes it now
    ├── InvalidInput             lines of a bulk run's input are wrong; nothing was sent
    │   └── InputUnreadable      the input could not be read at all
    ├── InputChanged             a bulk run was recorded for another input
    ├── BudgetSpent              a bulk run stopped submitting at the author's cost limit
    ├── WorkerStopped            the worker was told to stop in the middle of its work
    └── RunIncomplete            more rows of a bulk run ended badly than the author tolerates

``transient`` says whether the same step can end better later without anybody changing anything. What is not
transient fails an Airflow task for good; the rest is left to its ``retries``.
Errors carry facts and never a key, a header or a prompt.
"""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_provider_distribute.models import Job

__all__ = [
    "AccessDenied",
    "BudgetSpent",
    "ConnectionInvalid",
    "DeadlinePassed",
    "InferenceError",
    "InputChanged",
    "InputUnreadable",
    "InvalidInput",
    "InvalidRequest",
    "JobNotFound",
    "JobsFailed",
    "LedgerCorrupt",
    "LedgerError",
    "LedgerForbidden",
    "LedgerMissing",
    "LedgerNewer",
    "LedgerTaken",
    "LedgerUnavailable",
    "NotAccepted",
    "OutcomeUnknown",
    "RequestRefused",
    "RunIncomplete",
    "ServiceError",
    "SubmissionIncomplete",
    "Unavailable",
    "WorkerStopped",
]


class InferenceError(Exception):
    """Root of the tree."""

    transient: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without calling ``__init__``, which takes facts instead of a message."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConnectionInvalid(InferenceError):
    """
    The Airflow connection cannot be used.

    :param conn_id: The connection.
    :param problems: One sentence for each missing or wrong field, all of them.
    """

    def __init__(self, conn_id: str, problems: Sequence[str]) -> None:
        self.conn_id = conn_id
        self.problems = tuple(problems)
        super().__init__(f"Connection {conn_id!r} cannot be used: {'; '.join(problems)}.")


class InvalidRequest(InferenceError):
    """
    The request is wrong in itself; nothing was sent.

    :param problems: One sentence for each reason.
    :param where: Which request, for people, such as ``request 3``.
    """

    def __init__(self, problems: Sequence[str], *, where: str = "The request") -> None:
        self.problems = tuple(problems)
        self.where = where
        super().__init__(f"{where} was not sent: {'; '.join(problems)}.")


class ServiceError(InferenceError):
    """
    An exchange with a service went wrong.

    :param message: What happened, what follows, what to do.
    :param service: Name of the service.
    :param status: HTTP status, ``None`` when there was no answer.
    :param retry_after: Seconds the service asked to be left alone, as far as it said so.
    :param throttled: Whether the service asked for fewer requests.
    """

    def __init__(
        self,
        message: str,
        *,
        service: str,
        status: int | None = None,
        retry_after: float | None = None,
        throttled: bool = False,
    ) -> None:
        self.service = service
        self.status = status
        self.retry_after = retry_after
        self.throttled = throttled
        super().__init__(message)


class AccessDenied(ServiceError):
    """The key, the balance or the permission does not allow it; a person has to act."""

    @property
    def key_rejected(self) -> bool:
        """Whether the key itself is wrong, and so whatever is asked with it is denied."""
        return self.status == 401


class RequestRefused(ServiceError):
    """The service will not have this request, whenever it is sent."""


class JobNotFound(ServiceError):
    """The service does not know the job, or not yet, or no longer."""

    transient = True


class NotAccepted(ServiceError):
    """The service surely did not take the request, so sending it again pays nothing twice."""

    transient = True


class OutcomeUnknown(ServiceError):
    """The request was sent and not answered; only the author's ``retries`` send it again."""

    transient = True


class Unavailable(ServiceError):
    """A look got no usable answer; the job itself is not touched by that."""

    transient = True


class SubmissionIncomplete(InferenceError):
    """
    Several requests were to be sent and one of them failed.

    :param cause: What happened to that one; an error of somebody else's counts as transient.
    :param index: Its place in the input, from 0.
    :param total: How many requests there were.
    :param accepted: Job ids by input index of those already accepted. They go on and are billed.
    """

    def __init__(
        self, cause: Exception, *, index: int, total: int, accepted: Mapping[int, str], follows: str = ""
    ) -> None:
        self.cause = cause
        self.index = index
        self.total = total
        self.accepted = dict(accepted)
        self.transient = getattr(cause, "transient", True)
        ids = f" Accepted, running and billed: {', '.join(self.accepted.values())}." if accepted else ""
        super().__init__(
            f"Request {index + 1} of {total} failed: {str(cause).rstrip('.')}."
            f" {len(self.accepted)} of {total} were accepted.{ids}{' ' + follows if follows else ''}"
        )


class JobsFailed(InferenceError):
    """
    Jobs ended failed.

    :param jobs: The failed jobs.
    :param total: How many were waited for.
    """

    transient = True

    def __init__(self, jobs: Sequence[Job], *, total: int) -> None:
        self.jobs = tuple(jobs)
        self.total = total
        reasons = "; ".join(f"{job.job_id} ({job.status}): {job.reason}" for job in jobs)
        super().__init__(f"{len(self.jobs)} of {total} jobs failed: {reasons}")


class DeadlinePassed(InferenceError):
    """
    Jobs were still pending when the author's deadline passed.

    :param pending: The last status word seen, by job id.
    :param total: How many were waited for.
    """

    transient = True

    def __init__(self, pending: Mapping[str, str], *, total: int) -> None:
        self.pending = dict(pending)
        self.total = total
        states = ", ".join(f"{job_id} ({word})" for job_id, word in self.pending.items())
        super().__init__(
            f"The deadline passed with {len(self.pending)} of {total} jobs still pending: {states}. "
            "They cannot be cancelled: they go on at the service and are billed."
        )


class LedgerError(InferenceError):
    """The record of a bulk run cannot be used. That is never the same as "there is no record"."""


class LedgerUnavailable(LedgerError):
    """
    The storage that holds a run's record did not answer.

    :param what: What was tried.
    :param where: The object or directory.
    :param remedy: What to do.
    :param transient: Whether the storage may answer later.
    """

    def __init__(
        self,
        what: str,
        where: str,
        *,
        remedy: str = "try again when the storage answers",
        transient: bool = True,
    ) -> None:
        self.where = where
        self.transient = transient
        super().__init__(_not_without_it(what, where, remedy))


class LedgerMissing(LedgerError):
    """
    The storage answered, and the record that should be there is not; a person has to act.

    :param what: What was tried.
    :param where: The directory.
    :param remedy: What to do.
    """

    def __init__(self, what: str, where: str, *, remedy: str) -> None:
        self.where = where
        super().__init__(_not_without_it(what, where, remedy))


def _not_without_it(what: str, where: str, remedy: str) -> str:
    return (
        f"Could not {what} {where!r}. The record of the run is needed to know what was paid already, so "
        f"nothing is sent without it; {remedy}."
    )


class LedgerForbidden(LedgerError):
    """
    The storage that holds a run's record does not allow what was tried; a person has to act.

    :param what: What was tried.
    :param where: The object or directory.
    """

    def __init__(self, what: str, where: str) -> None:
        self.where = where
        super().__init__(
            f"Not allowed to {what} {where!r}. The record of the run is needed to know what was paid "
            "already, so nothing is sent without it. Allow worker and triggerer to list, read, write and "
            "delete below result_path, then clear the task."
        )


class LedgerCorrupt(LedgerError):
    """
    A record that is not the last one is damaged or missing.

    :param where: The object.
    :param what: What is wrong with it.
    """

    def __init__(self, where: str, what: str) -> None:
        self.where = where
        super().__init__(
            f"The run's record {where!r} {what}. Jobs named there may be running and billed, so it is not "
            "skipped. Restore the object from a copy, or choose another result_path to start and pay anew."
        )


class LedgerNewer(LedgerError):
    """
    The run's record was written by a newer release than this one.

    :param where: The object.
    :param what: What cannot be read.
    """

    def __init__(self, where: str, what: str) -> None:
        self.where = where
        super().__init__(
            f"The run's record {where!r} {what}. A newer release of this provider has written it, and the "
            "jobs named there may be running and billed. Use that release, or a later one, on worker and "
            "triggerer, and clear the task: it goes on where it was."
        )


class LedgerTaken(LedgerError):
    """The run belongs to another task instance, or a later attempt of this one writes it now."""


class InvalidInput(InferenceError):
    """
    Lines of a bulk run's input are wrong; nothing was sent and nothing is billed.

    :param problems: One sentence for each wrong line, at most a hundred of them.
    :param source: The input, for people.
    :param more: Whether reading stopped before the end because there were too many.
    """

    def __init__(self, problems: Sequence[str], *, source: str, more: bool = False) -> None:
        self.problems = tuple(problems)
        self.source = source
        lines = "".join(f"\n  {problem}" for problem in problems)
        rest = "\n  (and possibly more: reading stopped here)" if more else ""
        super().__init__(f"{source} cannot be sent; nothing was sent and nothing is billed:{lines}{rest}")


class InputUnreadable(InvalidInput):
    """
    The input, or the rest of it, could not be read. A retry of a run that keeps a copy goes on with that.

    :param problems: One sentence: where, and why.
    :param source: The input, for people.
    :param transient: Whether the storage may give it later.
    """

    def __init__(self, problems: Sequence[str], *, source: str, transient: bool) -> None:
        super().__init__(problems, source=source)
        self.transient = transient


class InputChanged(InferenceError):
    """A bulk run was recorded for another input than the one it is given now."""


class BudgetSpent(InferenceError):
    """A bulk run stopped submitting because the next request might have passed the author's cost limit."""


class WorkerStopped(InferenceError):
    """The worker was told to stop in the middle of its work; the next attempt goes on with it."""

    transient = True


class RunIncomplete(InferenceError):
    """
    More rows of a bulk run ended badly than the author tolerates. Everything there is was landed.

    :param message: How many rows, why, and what to do.
    :param retry_helps: Whether another attempt can end better without anybody changing anything.
    """

    def __init__(self, message: str, *, retry_helps: bool) -> None:
        self.transient = self.retry_helps = retry_helps
        super().__init__(message)
