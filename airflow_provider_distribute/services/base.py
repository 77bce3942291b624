# SPDX-License-Identifier: Apache-2.0

"""
What every service has in common: a call is described, an answer is read, and a failure is classified.

Nothing here does I/O. The tables say what a status means; they are the same for both services because
neither documents more than a handful of statuses.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from airflow_provider_distribute.exceptions import (
    AccessDenied,
    InvalidRequest,
    JobNotFound,
    NotAccepted,
    OutcomeUnknown,
    RequestRefused,
    ServiceError,
    Unavailable,
)
from airflow_provider_distribute.models import (
    OWN_FIELDS,
    ChatRequest,
    Job,
    JobError,
    JobState,
    Price,
    Settings,
    problems_in,
)
from airflow_provider_distribute.services.reading import (
    Unreadable,
    clipped,
    is_object,
    is_page,
    parse_object,
    quoted,
    reset_of,
    retry_after_of,
    usable_job_id,
    without_key,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx


@dataclass(frozen=True, slots=True)
class Call:
    """
    One exchange, described.

    :param method: HTTP method.
    :param path: Path below the base URL, ids in it already quoted.
    :param body: JSON body. It holds prompts, so it is not shown.
    :param written: The body as it is sent, where it was written to see that it can be.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    written: bytes | None = field(default=None, repr=False, compare=False)


def _no_double(value: float | None) -> float | None:
    if value is not None and abs(value) > sys.float_info.max:
        raise ValueError("is too large for a number in JSON")
    return value


#: Numbers without a bound. Python's integers have none, but readers of JSON take numbers for doubles.
Finite = AfterValidator(_no_double)

#: Objects inside a body. They are sent as they were written: what is listed has to have its documented type
#: to begin with, and what is not may be there.
Open = ConfigDict(extra="allow")


class Params(BaseModel):
    """
    Documented body fields of a chat request; a service's subclass lists them.

    The fields themselves are converted, because templates give text for everything: ``"0.5"`` is a number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Service(ABC):
    """
    One vendor API. Instances hold no state; :data:`airflow_provider_distribute.services.SERVICES` lists them.

    :cvar name: The connection type.
    :cvar title: The name people use.
    :cvar settings: What a connection of this type may say.
    :cvar params: Body fields a request may have, with their bounds.
    :cvar takes_response_format: Whether ``response_format`` is one of them.
    :cvar defaults: Body fields that are sent where a request does not say otherwise.
    :cvar token_limits: Body fields that limit the tokens of one answer.
    :cvar states: The service's words for states; any other word means pending.
    :cvar prices: Published prices by model; they may have changed since.
    :cvar prices_as_of: When they were read.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    settings: ClassVar[type[Settings]]
    params: ClassVar[type[Params]]
    takes_response_format: ClassVar[bool]
    defaults: ClassVar[Mapping[str, Any]] = {}
    token_limits: ClassVar[tuple[str, ...]]
    states: ClassVar[Mapping[str, JobState]]
    prices: ClassVar[Mapping[str, Price]]
    prices_as_of: ClassVar[str]

    # What goes out ---------------------------------------------------------------------------------

    @abstractmethod
    def authorization(self, settings: Any) -> str:
        """Return the value of the ``Authorization`` header."""

    @abstractmethod
    def describe_submit(self, request: ChatRequest, settings: Any) -> Call:
        """
        Describe the call that submits a request.

        :raises InvalidRequest: when the service's documentation forbids the request.
        """

    @abstractmethod
    def describe_look(self, job_id: str, settings: Any) -> Call:
        """Describe the call that reads a job's state and result."""

    @abstractmethod
    def not_found_grace(self, settings: Any) -> float:
        """Return the seconds for which a 404 on a look means *not yet*; after them the job is lost."""

    def checked(self, request: ChatRequest, settings: Settings) -> ChatRequest:
        """
        Return a request as it may be sent: with its model, and the types that the service documents.

        It holds what the author asks, and nothing of :attr:`defaults`, so that it can be kept.

        :raises InvalidRequest: when the service's documentation forbids the request, or JSON does.
        """
        return self._look_over(request, settings)[0]

    def submission(self, path: str, request: ChatRequest, settings: Settings) -> Call:
        """
        Describe the POST that submits a request.

        :raises InvalidRequest: as :meth:`checked` says.
        """
        _, body, written = self._look_over(request, settings)
        return Call("POST", path, body, written)

    def _look_over(
        self, request: ChatRequest, settings: Settings
    ) -> tuple[ChatRequest, Mapping[str, Any], bytes]:
        problems: list[str] = []
        model = request.model or settings.model
        if not model:
            problems.append("model: neither the request nor the connection names one")
        own = sorted(OWN_FIELDS & request.params.keys())
        problems += [f"params.{name}: has its own argument" for name in own]
        params = {name: value for name, value in request.params.items() if name not in own}
        if not settings.allow_undocumented_params:
            in_messages, in_params = self.problems_in_messages(request.messages), []
            in_messages += self.problems_in_metadata(request.metadata)
            try:
                params = self._converted(params) if params else {}
            except ValidationError as error:
                in_params = [f"params.{problem}" for problem in problems_in(error)]
            problems += self._undocumented(in_messages, in_params)
        if problems:
            raise InvalidRequest(problems)
        checked = ChatRequest.model_construct(
            messages=request.messages, model=model, params=params, metadata=self.metadata_of(request)
        )
        body = self.body_of(checked)
        try:
            written = _to_json(body).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest([f"it cannot be written as JSON: {error}"]) from None
        if not settings.allow_undocumented_params:
            problems = self._undocumented(self.problems_in_size(checked, len(written)), [])
        if problems:
            raise InvalidRequest(problems)
        return checked, body, written

    def _converted(self, params: Mapping[str, Any]) -> dict[str, Any]:
        read = self.params(**params)
        # A dump would take null out of a tool's schema, too, which is the author's.
        fields = {**vars(read), **(read.model_extra or {})}
        return {name: value for name, value in fields.items() if value is not None}

    def body_of(self, request: ChatRequest) -> dict[str, Any]:
        """Return the body of a checked request."""
        messages = [dict(message) for message in request.messages]
        body = {**self.defaults, "model": request.model, "messages": messages, **request.params}
        return {**body, "metadata": dict(request.metadata)} if request.metadata else body

    def metadata_of(self, request: ChatRequest) -> Mapping[str, Any]:
        """Return a request's metadata with the types that the service documents."""
        return request.metadata

    def problems_in_metadata(self, metadata: Mapping[str, Any]) -> list[str]:
        """Return one sentence for each thing about the metadata that the service's documentation forbids."""
        return []

    def problems_in_size(self, request: ChatRequest, size: int) -> list[str]:
        """
        Return what the service's documentation forbids about a request's size.

        :param size: Bytes of the body as it is sent.
        """
        return []

    def answer_tokens(self, request: ChatRequest, *, unlimited: int) -> int:
        """
        Return the tokens that all answers to a request may take.

        :param unlimited: Tokens that one answer is taken to have where nothing limits it. What is not above
            zero, such as Distribute.AI's -1, is no limit.
        """
        params = {**self.defaults, **request.params}
        limits = [limit for name in self.token_limits if (limit := _count(params.get(name)))]
        return max(limits, default=unlimited) * (_count(params.get("n")) or 1)

    @abstractmethod
    def problems_in_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return one sentence for each thing about the messages that the service's documentation forbids."""

    def askable(self, job_id: str) -> str:
        """
        Return a job id that the service may be asked about.

        :raises RequestRefused: for text that no service hands out and that would ask for something else.
        """
        if usable_job_id(job_id):
            return job_id
        raise RequestRefused(f"{clipped(repr(job_id))} is no job id: nothing was asked", service=self.name)

    def _undocumented(self, in_messages: Sequence[str], in_params: Sequence[str]) -> list[str]:
        """Return problems that only the service's documentation sees, and what may be done about them."""
        problems = [*in_messages, *in_params]
        if in_params:
            problems.append(
                f"{self.title} documents the params {', '.join(sorted(self.params.model_fields))}"
            )
        if problems:
            problems.append("allow_undocumented_params in the connection's extra sends anything all the same")
        return problems

    # What comes back -------------------------------------------------------------------------------

    def read_ticket(self, answer: httpx.Response) -> str:
        """
        Read the answer to a submission.

        :returns: The job id.
        :raises ServiceError: as :func:`submit_error` says.
        """
        if answer.is_success:
            try:
                job_id = parse_object(without_key(answer)).get("id")
            except Unreadable as error:
                raise self.unanswered(
                    f"answered {answer.status_code} with {error}", answer.status_code
                ) from None
            if usable_job_id(job_id):
                return job_id
            raise self.unanswered(
                f"answered {answer.status_code} without a usable job id", answer.status_code
            )
        raise self.submit_error(answer)

    def read_job(self, job_id: str, answer: httpx.Response) -> Job:
        """
        Read the answer to a look.

        The job carries the id that was asked for: the service need not repeat it.

        :raises ServiceError: as :func:`look_error` says.
        """
        if answer.is_success:
            try:
                return self.job_from(job_id, parse_object(without_key(answer)))
            except Unreadable as error:
                raise self.unavailable(
                    f"answered {answer.status_code} with {error}", answer.status_code
                ) from None
        raise self.look_error(job_id, answer)

    def read_probe(self, answer: httpx.Response) -> None:
        """
        Read the answer to a look at a job that cannot exist.

        :raises ServiceError: it is neither "no such job", in JSON, nor a job.
        """
        with contextlib.suppress(JobNotFound):
            if answer.status_code in _ELSEWHERE and not is_object(answer.content):
                raise RequestRefused(
                    f"{answer.request.url} answered {answer.status_code}, and not in JSON. That is not "
                    f"{self.title}: correct the connection's host",
                    service=self.name,
                    status=answer.status_code,
                )
            self.read_job("", answer)

    @abstractmethod
    def job_from(self, job_id: str, body: Mapping[str, Any]) -> Job:
        """Read the body of a look. Never raises: what cannot be read is left out."""

    def lost(self, job_id: str) -> Job:
        """Return the job as failed because the service does not know it any more."""
        message = (
            f"{self.title} does not know this job (any more). It may have been billed. "
            "Check that the connection uses the key the job was submitted with"
        )
        return self._failed(job_id, "not found", "lost", message)

    def withheld(self, job_id: str, error: RequestRefused) -> Job:
        """Return the job as failed because the service will not show it."""
        return self._failed(job_id, "withheld", "withheld", str(error))

    def _failed(self, job_id: str, word: str, type_: str, message: str) -> Job:
        error = JobError(type=type_, message=message)
        return Job(job_id=job_id, service=self.name, state=JobState.FAILED, status=word, error=error)

    # What goes wrong -------------------------------------------------------------------------------

    def submit_error(self, answer: httpx.Response) -> ServiceError:
        """Classify an answer to a submission that is not a success."""
        status, retry_after = answer.status_code, retry_after_of(answer)
        said = f"{self.title} answered {status}{quoted(answer)}"
        if status in _DENIED:
            return self.denied(status, quoted(answer))
        if status in _NOT_ACCEPTED or (status == 503 and retry_after is not None):
            return NotAccepted(
                f"{said}. The request was not accepted and is not billed",
                service=self.name,
                status=status,
                retry_after=reset_of(answer) if retry_after is None else retry_after,
                throttled=True,
            )
        if status == 408 or status >= 500:
            return self.unanswered(f"answered {status}{quoted(answer)}", status)
        mend = "Change the request"
        if status in _ELSEWHERE or status < 400:
            mend += f", or correct the connection's host, which led to {answer.request.url}"
        return RequestRefused(
            f"{said}. The request was refused and is not billed. {mend}", service=self.name, status=status
        )

    def look_error(self, job_id: str, answer: httpx.Response) -> ServiceError:
        """
        Classify an answer to a look that is not a success.

        A job is given up only on the service's own word, in JSON: whatever stands between answers for a
        while with any status.
        """
        status, retry_after = answer.status_code, retry_after_of(answer)
        said = f"{self.title} answered {status}{quoted(answer)}"
        if status == 401 or (status in _DENIED and not is_page(answer)):
            return self.denied(status, f"{quoted(answer)} to a look at job {job_id!r}")
        its_own = is_object(answer.content)
        if status == 404 and its_own:
            return JobNotFound(f"{said} for job {job_id!r}", service=self.name, status=status)
        if status in _WITHHELD and its_own:
            return RequestRefused(f"{said} to a look at job {job_id!r}", service=self.name, status=status)
        if status in _ELSEWHERE:
            said += f". That is no answer of {self.title}'s own: {answer.request.url} may lead elsewhere"
        return Unavailable(
            said,
            service=self.name,
            status=status,
            retry_after=reset_of(answer) if status == 429 and retry_after is None else retry_after,
            throttled=status == 429 or retry_after is not None,
        )

    def denied(self, status: int, words: str = "") -> AccessDenied:
        """Return the error for 401, 402 and 403, with what to do about it."""
        return AccessDenied(
            f"{self.title} answered {status}{words}. {_DENIED[status]}", service=self.name, status=status
        )

    def unanswered(self, what: str, status: int | None = None) -> OutcomeUnknown:
        """Return the error for a submission whose outcome nobody knows."""
        return OutcomeUnknown(
            f"{self.title} {what}. The request was sent: it may have been accepted, and then it runs and is "
            "billed",
            service=self.name,
            status=status,
        )

    def unreached(self, what: str) -> NotAccepted:
        """Return the error for a submission that surely never left."""
        return NotAccepted(
            f"{self.title} could not be reached: {what}. Nothing was sent and nothing is billed",
            service=self.name,
        )

    def unavailable(self, what: str, status: int | None = None) -> Unavailable:
        """Return the error for a look without a usable answer."""
        return Unavailable(f"{self.title} {what}", service=self.name, status=status)


#: As httpx writes a body.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _count(value: object) -> int:
    """Return a number above zero; 0: it is none."""
    return max(0, int(value)) if isinstance(value, int | float) and math.isfinite(value) else 0


_NOT_ACCEPTED = frozenset({425, 429})
#: What a service says of a job that it will not show, now or later.
_WITHHELD = frozenset({400, 410, 422})
#: Usual answers of a server that is the wrong one, or of the right one to a wrong path.
_ELSEWHERE = frozenset({404, 405})
_DENIED = {
    401: "The API key is wrong or missing: correct the connection's password, then clear the task",
    402: "The balance is too low: top up the account, then clear the task",
    403: "The API key may not do this: give it the permission or use another one, then clear the task",
}
