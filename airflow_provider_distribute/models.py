# SPDX-License-Identifier: Apache-2.0

"""The frozen values everything else passes around: settings, requests, jobs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

from airflow_provider_distribute.exceptions import ConnectionInvalid, InvalidRequest

__all__ = ["ChatRequest", "Job", "JobError", "JobState", "Price", "Settings", "problems_in"]

HOUR = 3600.0
#: Both services promise an answer, or give up, within this many seconds.
SERVICE_WINDOW = 72 * HOUR
#: What the default deadline leaves on top, so that a job which ends in the last minute is still seen.
DEADLINE_MARGIN = 1 * HOUR
#: Default for how long jobs are waited for, in seconds: the services' 72 hours and a margin.
DEFAULT_TIMEOUT = SERVICE_WINDOW + DEADLINE_MARGIN
#: Default for ``poke_interval``: seconds between the looks of a fixed schedule, which finds jobs no sooner.
DEFAULT_POKE_INTERVAL = 30.0
#: The longest duration an author can ask for, in seconds. Later instants do not fit into Airflow's tables.
LONGEST = 366 * 24 * HOUR


def _in_seconds(duration: object) -> object:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


#: How long something may take that an author chooses: above zero, and at most a year.
Seconds = Annotated[float, BeforeValidator(_in_seconds), Field(gt=0, le=LONGEST)]


class Value(BaseModel):
    """Frozen, closed, and silent about its input in errors: input may be a prompt or a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Fault(NamedTuple):
    """One thing that pydantic found wrong: where, of which of its types, and in its words."""

    where: str
    type: str
    words: str

    def __str__(self) -> str:
        what = "unknown field" if self.type == _UNKNOWN_FIELD else self.words.removeprefix("Value error, ")
        return f"{self.where}: {what}" if self.where else what


_UNKNOWN_FIELD, _MISSING = "extra_forbidden", "missing"


def _faults_in(error: ValidationError) -> list[_Fault]:
    details = error.errors(include_url=False, include_input=False)
    return [_Fault(".".join(map(str, detail["loc"])), detail["type"], detail["msg"]) for detail in details]


def problems_in(error: ValidationError) -> list[str]:
    """Return one sentence for each thing pydantic found wrong, without the input."""
    return [str(fault) for fault in _faults_in(error)]


def _absent_if_blank(value: object) -> object:
    """An empty box in a connection form is no answer at all."""
    return None if isinstance(value, str) and not value.strip() else value


Blankable = BeforeValidator(_absent_if_blank)


def _no_boolean(value: object) -> object:
    """To Python ``True`` is 1; whoever writes it for a number means something else."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


NoBoolean = BeforeValidator(_no_boolean)


class Price(Value):
    """
    What a model costs.

    :param prompt: US dollars per million tokens read.
    :param completion: US dollars per million tokens written.
    """

    prompt: Annotated[float, NoBoolean] = Field(ge=0, allow_inf_nan=False)
    completion: Annotated[float, NoBoolean] = Field(ge=0, allow_inf_nan=False)


def _price_table(value: object) -> object:
    """Read ``{"model": [prompt, completion]}``, or the same as JSON text, which is what a form sends."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("is not JSON") from None
    if not isinstance(value, Mapping):
        return value
    try:
        return tuple(
            (model, Price(prompt=prompt, completion=completion))
            for model, (prompt, completion) in value.items()
        )
    except (TypeError, ValueError):
        raise ValueError("takes two numbers for each model: dollars per million tokens in and out") from None


class Settings(Value):
    """
    One Airflow connection, read and checked.

    :cvar service: Name of the service, which is the connection's type.
    :param conn_id: The connection's id.
    :param api_key: The service's key (the connection's password).
    :param base_url: Where the service is (the connection's host).
    :param model: Model for requests that name none.
    :param timeout: Seconds one exchange may take once connected.
    :param connect_timeout: Seconds to get connected.
    :param requests_per_second: Ceiling for requests to the service from one process; ``None``: as fast as the
        service takes them.
    :param max_connections: Connections, and so requests, open at once from one process.
    :param dashboard_url: Where people see their jobs; linked from the task.
    :param allow_undocumented_params: Send body fields and values that the service does not document.
    :param airflow_metadata: Send dag, run, task, map index and input index with each request.
    :param prices: What models cost you, where that differs from the published prices:
        ``{"model": [dollars per million tokens in, out]}``.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    service: ClassVar[str]

    conn_id: str
    api_key: SecretStr
    base_url: str
    model: Annotated[str | None, Blankable] = None
    timeout: Annotated[float, NoBoolean] = Field(default=60.0, gt=0, le=HOUR)
    connect_timeout: Annotated[float, NoBoolean] = Field(default=10.0, gt=0, le=HOUR)
    requests_per_second: Annotated[float | None, NoBoolean, Blankable] = Field(default=None, gt=0, le=10_000)
    max_connections: Annotated[int, NoBoolean] = Field(default=32, ge=1, le=1000)
    dashboard_url: str
    allow_undocumented_params: bool = False
    airflow_metadata: bool = True
    prices: Annotated[tuple[tuple[str, Price], ...], BeforeValidator(_price_table)] = ()

    @field_validator("api_key")
    @classmethod
    def _key_fits_a_header(cls, value: SecretStr) -> SecretStr:
        key = value.get_secret_value().strip()
        if not key:
            raise ValueError("is empty")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("has characters that cannot stand in an HTTP header")
        return SecretStr(key)

    @field_validator("base_url", "dashboard_url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        parts = urlsplit(value.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http(s) URL")
        return value.strip().rstrip("/")

    @field_validator("base_url")
    @classmethod
    def _is_a_base(cls, value: str) -> str:
        match = _BASE_URL.fullmatch(value)
        printable = value.isascii() and value.isprintable() and " " not in value
        if match is None or not printable or not 0 < int(match["port"] or 1) < 65536:
            raise ValueError("must be scheme, host, port and path, and nothing else")
        try:
            AnyHttpUrl(value)
        except ValidationError as error:
            raise ValueError(f"cannot be called: {'; '.join(problems_in(error))}") from None
        return value

    @classmethod
    def parse(cls, conn_id: str, fields: Mapping[str, Any]) -> Self:
        """
        Check a connection's fields.

        :raises ConnectionInvalid: naming every missing or wrong field at once.
        """
        given = {name: value for name, value in fields.items() if _absent_if_blank(value) is not None}
        try:
            return cls(conn_id=conn_id, **given)
        except ValidationError as error:
            faults = _faults_in(error)
            problems = [_as_in_the_form(fault) for fault in faults]
            if any(fault.type == _UNKNOWN_FIELD for fault in faults):
                problems.append(f"extra takes {', '.join(sorted(cls.extras()))}")
            raise ConnectionInvalid(conn_id, problems) from None

    @classmethod
    def extras(cls) -> frozenset[str]:
        """Return the names that may stand in the connection's extra."""
        return frozenset(cls.model_fields) - {"conn_id", "api_key", "base_url"}


#: Internationalised host names are written in their ASCII form (``xn--…``).
_BASE_URL = re.compile(
    r"https?://(LABEL(\.LABEL)*\.?|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?(/[^?#\\]{0,2000})?".replace(
        "LABEL", "[a-z0-9_][a-z0-9_-]{0,62}"
    ),
    re.IGNORECASE,
)

_FORM_NAMES = {"api_key": "password", "base_url": "host"}


def _as_in_the_form(fault: _Fault) -> str:
    if (fault.where, fault.type) == ("api_key", _MISSING):
        fault = fault._replace(words="the API key is missing")
    return str(fault._replace(where=_FORM_NAMES.get(fault.where, fault.where)))


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


class ChatRequest(Value):
    """
    One chat completion an author asks for.

    Messages and parameters stay out of ``repr``.

    :param messages: OpenAI-style messages, each a mapping with at least ``role``.
    :param model: Model; ``None``: the connection's.
    :param params: Further body fields, such as ``temperature``.
    :param metadata: Keys that travel with the request where the service takes them.
    """

    messages: tuple[Mapping[str, Any], ...] = Field(min_length=1, repr=False)
    model: str | None = None
    params: Mapping[str, Any] = Field(default_factory=dict, repr=False)
    metadata: Mapping[str, Any] = Field(default_factory=dict, repr=False)

    @field_validator("messages")
    @classmethod
    def _messages_have_roles(cls, messages: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        for place, message in enumerate(messages):
            if not isinstance(message.get("role"), str):
                raise ValueError(f"message {place} has no role")
        return messages

    @classmethod
    def parse(
        cls,
        item: object,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        params: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ChatRequest:
        """
        Read what an author wrote: a prompt, a message list, or a mapping with either.

        A mapping may also hold ``model``, ``params``, ``metadata`` and ``system_prompt``; they win over the
        defaults given here, ``params`` and ``metadata`` key by key. The system prompt goes in front unless
        the messages bring a system message of their own.

        :raises InvalidRequest: naming everything that is wrong.
        """
        if isinstance(item, ChatRequest):
            item = dict(item)
        fields = cls._fields_of(item)
        unknown = sorted(map(str, fields.keys() - _ITEM_FIELDS))
        if unknown:
            known = ", ".join(sorted(_ITEM_FIELDS))
            raise InvalidRequest([f"{name}: unknown field (a request takes {known})" for name in unknown])
        messages = cls._messages_of(fields, fields.get("system_prompt") or system_prompt)
        try:
            return cls(
                messages=messages,
                model=fields.get("model") or model or None,
                params={**(params or {}), **(fields.get("params") or {})},
                metadata={**(metadata or {}), **(fields.get("metadata") or {})},
            )
        except ValidationError as error:
            raise InvalidRequest(problems_in(error)) from None
        except TypeError:
            raise InvalidRequest(["params and metadata must be mappings"]) from None

    @staticmethod
    def _fields_of(item: object) -> Mapping[str, Any]:
        match item:
            case str():
                return {"prompt": item}
            case Mapping():
                return item
            case Sequence():
                return {"messages": item}
        raise InvalidRequest(
            [f"a request is a prompt, a list of messages or a mapping, not {type(item).__name__}"]
        )

    @staticmethod
    def _messages_of(fields: Mapping[str, Any], system_prompt: str | None) -> tuple[Any, ...]:
        prompt, messages = fields.get("prompt"), fields.get("messages")
        if (prompt is None) == (messages is None):
            raise InvalidRequest(["exactly one of prompt and messages is needed"])
        if prompt is not None:
            if not isinstance(prompt, str) or not prompt.strip():
                raise InvalidRequest(["the prompt is empty or not a string"])
            messages = [{"role": "user", "content": prompt}]
        if isinstance(messages, str) or not isinstance(messages, Sequence):
            raise InvalidRequest(["messages must be a list"])
        if not messages:
            raise InvalidRequest(["messages is empty"])
        brings_system = any(
            isinstance(message, Mapping) and message.get("role") == "system" for message in messages
        )
        if system_prompt and not brings_system:
            messages = [{"role": "system", "content": system_prompt}, *messages]
        return tuple(messages)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are the same for the same question: model, messages and parameters."""
        told = _plain([self.model, self.messages, self.params])
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def labelled(self, labels: Mapping[str, Any]) -> ChatRequest:
        """Return the request with further metadata; what the author gave wins."""
        return self.model_copy(update={"metadata": {**labels, **self.metadata}})


#: Body fields for which a request has a place of its own; every other one is of its params.
OWN_FIELDS = frozenset(ChatRequest.model_fields) - {"params"}

_ITEM_FIELDS = frozenset({"prompt", "messages", "system_prompt", "model", "params", "metadata"})


class JobState(StrEnum):
    """What a job's state means to us. The service's own word is kept beside it, in ``Job.status``."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class JobError(Value):
    """
    Why a job failed.

    :param type: ``failed`` (the service said so), ``lost`` (the service does not know the job any more) or
        ``withheld`` (the service will not show it).
    :param message: The service's words, or that it gave none.
    """

    type: str
    message: str


#: The types of error that leave unclear what became of a job: it may have ended well, and been billed.
UNCLEAR = frozenset({"lost", "withheld"})


class Job(Value):
    """
    One request accepted by a service, as seen by one look.

    Answers stay out of ``repr``.

    :param job_id: The service's id, an opaque string.
    :param service: Name of the service.
    :param state: What the status means.
    :param status: The service's own word.
    :param content: Text of the first choice.
    :param finish_reason: Why the first choice ended, in the service's word.
    :param tool_calls: Tool calls of the first choice.
    :param choices: All choices as the service gave them.
    :param usage: Token counts as the service gave them.
    :param model: Model as the service names it.
    :param created_at: When the service took it (UTC).
    :param finished_at: When it ended (UTC).
    :param error: Why it failed.
    """

    job_id: str
    service: str
    state: JobState
    status: str
    content: str | None = Field(default=None, repr=False)
    finish_reason: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = Field(default=(), repr=False)
    choices: tuple[Mapping[str, Any], ...] = Field(default=(), repr=False)
    usage: Mapping[str, Any] | None = None
    model: str | None = None
    created_at: datetime | None = None
    finished_at: datetime | None = None
    error: JobError | None = Field(default=None, repr=False)

    @property
    def done(self) -> bool:
        """Whether the job has ended, well or badly."""
        return self.state is not JobState.PENDING

    @property
    def succeeded(self) -> bool:
        """Whether the job ended well."""
        return self.state is JobState.SUCCEEDED

    @property
    def lost(self) -> bool:
        """Whether the job counts as failed because the service does not know it any more."""
        return self.error is not None and self.error.type == "lost"

    @property
    def unclear(self) -> bool:
        """Whether the job counts as failed although nobody knows what became of it: it may have been paid."""
        return self.error is not None and self.error.type in UNCLEAR

    @property
    def reason(self) -> str:
        """Why it failed, for people."""
        return self.error.message if self.error else "no reason given"

    def result(self) -> dict[str, Any]:
        """
        Return the job as plain JSON, as it goes to XCom.

        ``status`` is ``"succeeded"``, ``"failed"`` or ``"pending"``; times are ISO-8601 in UTC; ``error`` is
        ``None`` or ``{"type", "message"}``.
        """
        return {
            "job_id": self.job_id,
            "service": self.service,
            "status": self.state.value,
            "content": self.content,
            "finish_reason": self.finish_reason,
            "tool_calls": [dict(call) for call in self.tool_calls],
            "choices": [dict(choice) for choice in self.choices],
            "usage": None if self.usage is None else dict(self.usage),
            "model": self.model,
            "created_at": self.created_at.isoformat() if self.created_at else None,
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
            "error": self.error.model_dump() if self.error else None,
        }
