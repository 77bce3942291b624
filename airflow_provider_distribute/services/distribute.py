# SPDX-License-Identifier: Apache-2.0

"""
Distribute.AI's asynchronous chat: ``POST /async/chat/create``, then ``POST /async/chat/result``.

Source: docs.distribute.ai, "Enterprise inference API", "Async API", pages "Chat create" and "Chat result".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Required

from pydantic import Field, StrictBool, StrictStr, field_validator, with_config
from typing_extensions import TypedDict

from airflow_provider_distribute.models import Job, JobError, JobState, NoBoolean, Price, Settings
from airflow_provider_distribute.services.base import Call, Finite, Open, Params, Service
from airflow_provider_distribute.services.reading import (
    clipped,
    completion_fields,
    instant,
    same_word,
    text_or_none,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_provider_distribute.models import ChatRequest

#: The documented ceiling of ``max_completion_tokens``.
TOKEN_CEILING = 600
ROLES = ("system", "user", "assistant", "tool")


class DistributeSettings(Settings):
    """
    A connection of type ``distribute``.

    :param not_found_grace: Seconds for which a 404 on a look means that the job is not visible yet.
    :param auth_prefix: What stands before the key in the header; the documented samples have nothing there.
    """

    service: ClassVar[str] = "distribute"

    base_url: str = "https://api.distribute.ai"
    dashboard_url: str = "https://dashboard.distribute.ai/enterprise"
    not_found_grace: Annotated[float, NoBoolean] = Field(default=30.0, ge=0)
    auth_prefix: str = ""

    @field_validator("auth_prefix")
    @classmethod
    def _stands_apart(cls, value: str) -> str:
        if not (value.isascii() and value.isprintable()):
            raise ValueError("has characters that cannot stand in an HTTP header")
        return f"{value.strip()} " if value.strip() else ""


@with_config(Open)
class _Function(TypedDict, total=False):
    name: Required[StrictStr]
    description: StrictStr
    parameters: dict[str, Any]
    strict: StrictBool


@with_config(Open)
class _Tool(TypedDict):
    type: Literal["function"]
    function: _Function


@with_config(Open)
class _StreamOptions(TypedDict, total=False):
    include_usage: StrictBool


class DistributeParams(Params):
    """
    Body fields of "Chat create", with the documented bounds.

    The request object is closed. ``stream`` is accepted there but has no meaning for a job.
    """

    reasoning_effort: str | None = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2), NoBoolean] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2), NoBoolean] = None
    max_completion_tokens: Annotated[int | None, Field(ge=-1, le=TOKEN_CEILING), NoBoolean] = None
    n: Annotated[int | None, Field(ge=1, le=2), NoBoolean] = None
    modalities: list[str] | None = None
    seed: Annotated[float | int | None, Finite, NoBoolean] = None
    service_tier: str | None = None
    stop: list[str] | None = None
    stream: Literal[False] | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2), NoBoolean] = None
    top_p: Annotated[float | None, Field(ge=0, le=1), NoBoolean] = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class Distribute(Service):
    """Distribute.AI."""

    name: ClassVar[str] = "distribute"
    title: ClassVar[str] = "Distribute.AI"
    settings: ClassVar[type[Settings]] = DistributeSettings
    params: ClassVar[type[Params]] = DistributeParams
    takes_response_format: ClassVar[bool] = False
    #: Left out, the limit is 128, silently.
    defaults: ClassVar[Mapping[str, Any]] = {"max_completion_tokens": TOKEN_CEILING}
    token_limits: ClassVar[tuple[str, ...]] = ("max_completion_tokens",)
    states: ClassVar[Mapping[str, JobState]] = {
        "created": JobState.PENDING,
        "queued": JobState.PENDING,
        "postponed": JobState.PENDING,
        "assigned connections": JobState.PENDING,
        "processing": JobState.PENDING,
        "completed": JobState.SUCCEEDED,
        "error": JobState.FAILED,
    }
    #: The billing page "Text to text". No cheaper asynchronous price is listed.
    prices_as_of: ClassVar[str] = "2026-11"
    prices: ClassVar[Mapping[str, Price]] = {
        "Llama-3.1 8B": Price(prompt=0.10, completion=0.16),
        "Llama-3.3 70B": Price(prompt=0.70, completion=0.80),
    }

    def authorization(self, settings: DistributeSettings) -> str:
        """Return the raw key, behind the connection's ``auth_prefix``."""
        return f"{settings.auth_prefix}{settings.api_key.get_secret_value()}"

    def describe_submit(self, request: ChatRequest, settings: DistributeSettings) -> Call:
        """Describe "Chat create"."""
        return self.submission("/async/chat/create", request, settings)

    def metadata_of(self, request: ChatRequest) -> Mapping[str, Any]:
        """Metadata is documented with strings only, so it is written as such."""
        return {str(key): str(value) for key, value in request.metadata.items()}

    def describe_look(self, job_id: str, settings: DistributeSettings) -> Call:
        """Describe "Chat result"."""
        return Call("POST", "/async/chat/result", {"id": self.askable(job_id)})

    def not_found_grace(self, settings: DistributeSettings) -> float:
        """Return the connection's ``not_found_grace``."""
        return settings.not_found_grace

    def problems_in_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Content parts are not documented, roles are these four, names are text."""
        problems = []
        for place, message in enumerate(messages):
            if message["role"] not in ROLES:
                problems.append(f"messages.{place}: the role is not one of {', '.join(ROLES)}")
            if not isinstance(message.get("content"), str):
                problems.append(f"messages.{place}: the content must be a plain string")
            if not isinstance(message.get("name", ""), str):
                problems.append(f"messages.{place}: the name must be a string")
        return problems

    def job_from(self, job_id: str, body: Mapping[str, Any]) -> Job:
        """Read "Chat result". No reason is documented for ``ERROR``; one is shown if it comes."""
        word = text_or_none(body.get("status")) or "(none)"
        state = self.states.get(same_word(word), JobState.PENDING)
        error = None
        if state is JobState.FAILED:
            error = JobError(
                type="failed", message=clipped(words_of(body) or "no reason given by the service")
            )
        return Job(
            job_id=job_id,
            service=self.name,
            state=state,
            status=clipped(word),
            created_at=instant(body.get("created")),
            finished_at=instant(body.get("finished")),
            error=error,
            **(completion_fields(body) if state is not JobState.PENDING else {}),
        )
