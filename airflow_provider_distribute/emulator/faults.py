# SPDX-License-Identifier: Apache-2.0

"""
What goes wrong, and when: rules such as ``429:service=distribute,operation=submit,rate=0.1,retry_after=2``.

A kind acts in one of three ways.

**Instead of an answer.** The request is not processed, nothing is paid; with ``accepted=true`` it is
processed and paid first, and only its answer is lost.

===================  =============================================================================
``400`` to ``504``   that status; ``value`` is the message; ``retry_after=SECONDS`` adds the header
                     (``http_date=true`` as a date)
``hang``             nothing for ``seconds`` (default 30), then the connection is reset
``reset``            the connection is reset
``redirect``         307 to ``value`` (default ``/elsewhere``; who follows is in the ledger as the
                     operation ``other``)
===================  =============================================================================

**The answer is spoilt.** The request is processed.

===================  =============================================================================
``slow``             comes after ``seconds`` (default 30)
``truncated``        half of the JSON, in a complete HTTP response
``cut``              half of the response, then the connection is closed
``malformed``        not quite JSON
``empty``            200 without a body
``html``             200 with a page, as a proxy's login would be
``content_type``     the right JSON, called text/plain
``oversized``        followed by ``size`` blanks (default 16 MiB)
``unknown_status``   a look reports ``value`` (default ``REVIEWING``), which no contract knows
===================  =============================================================================

**The job is spoilt**, at its submission: ``duplicate`` (recorded and paid twice, one id is answered)
and every word of :mod:`~airflow_provider_distribute.emulator.script` (``error``, ``never``, ``status``,
``null_content``, ...) with its value in ``value``.

A rule applies to all requests, or to those of one ``service``, one ``operation`` (``submit``, ``look``
or ``models``), one ``job``, or where the JSON of the request that made the job holds the text ``match``.
Of these it skips the first ``after``, then hits a share ``rate`` of them, at most ``count`` times. The
first rule that hits decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from airflow_provider_distribute.emulator.exchange import Delivery, Operation, Reply, json_reply
from airflow_provider_distribute.emulator.limits import retry_after
from airflow_provider_distribute.emulator.script import PLAIN, WORDS
from airflow_provider_distribute.emulator.spec import Spec, build, split

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from airflow_provider_distribute.emulator.contracts import Contract
    from airflow_provider_distribute.emulator.contracts.base import Shape

ELSEWHERE = "/elsewhere"
LONGEST_SECONDS = 600.0
LARGEST_BYTES = 1 << 30


class Fault(Spec):
    """One rule; its fields are explained in the module's text."""

    kind: str
    service: Literal["distribute", "inference_net"] | None = None
    operation: Operation | None = None
    job: str | None = None
    match: str | None = None
    rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    count: PositiveInt | None = None
    after: NonNegativeInt = 0
    accepted: bool = False
    retry_after: Annotated[float, Field(ge=0)] | None = None
    http_date: bool = False
    seconds: Annotated[float, Field(ge=0, le=LONGEST_SECONDS)] = 30.0
    size: Annotated[int, Field(ge=0, le=LARGEST_BYTES)] = 16 << 20
    value: str | None = None

    @field_validator("kind", mode="before")
    @classmethod
    def _status_as_text(cls, kind: object) -> object:
        return str(kind) if isinstance(kind, int) else kind

    @model_validator(mode="after")
    def _known_kind(self) -> Fault:
        if self.kind not in KINDS:
            raise ValueError(f"no such fault {self.kind!r}; there are {', '.join(KINDS)}")
        if self.kind in WORDS:
            WORDS[self.kind](PLAIN, self.value or "")
        return self

    @property
    def needs_processing(self) -> bool:
        """Whether the request is processed before the fault strikes."""
        return self.accepted or not KINDS[self.kind].instead

    @property
    def script(self) -> str | None:
        """The script word this fault gives to a new job, if it does."""
        return (f"{self.kind}={self.value}" if self.value else self.kind) if self.kind in WORDS else None


@dataclass(frozen=True, slots=True)
class Scene:
    """What an effect may want to know."""

    contract: Contract
    shape: Shape
    now: float


Effect = Callable[[Reply, Fault, Scene], Reply]


def _status(reply: Reply, fault: Fault, scene: Scene) -> Reply:
    status = int(fault.kind)
    headers = {}
    if fault.retry_after is not None:
        headers["Retry-After"] = retry_after(fault.retry_after, scene.now, http_date=fault.http_date)
    message = fault.value or MESSAGES[status]
    return json_reply(status, scene.contract.error(status, message, scene.shape), headers)


def _unknown_status(reply: Reply, fault: Fault, scene: Scene) -> Reply:
    if reply.status != 200:
        return reply
    result: dict[str, Any] = json.loads(reply.body)
    return json_reply(200, {**result, scene.contract.status_field: fault.value or "REVIEWING"})


def _redirect(reply: Reply, fault: Fault, scene: Scene) -> Reply:
    return Reply(307, headers={"Location": fault.value or ELSEWHERE})


MESSAGES = {
    400: "Bad request",
    401: "Invalid API key",
    402: "Insufficient balance",
    403: "Forbidden",
    404: "Not found",
    408: "Request timeout",
    409: "Conflict",
    413: "Request entity too large",
    422: "Unprocessable entity",
    425: "Too early",
    429: "Too many requests",
    500: "Internal server error",
    501: "Not implemented",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
}

LOGIN_PAGE = b"<!doctype html><title>Sign in</title><h1>Sign in to continue</h1>"


@dataclass(frozen=True, slots=True)
class Kind:
    """
    How a kind of fault acts.

    :param effect: makes the answer that is sent; ``None`` where the job is spoilt, not the answer.
    :param instead: whether the request is normally not processed.
    :param operations: what it can hit.
    """

    effect: Effect | None
    instead: bool = False
    operations: frozenset[Operation] = frozenset(Operation)


_SUBMIT = frozenset({Operation.SUBMIT})

KINDS: dict[str, Kind] = {
    **{str(status): Kind(_status, instead=True) for status in MESSAGES},
    "hang": Kind(lambda reply, fault, _: Reply(delivery=Delivery.RESET, delay=fault.seconds), instead=True),
    "reset": Kind(lambda reply, fault, _: Reply(delivery=Delivery.RESET), instead=True),
    "redirect": Kind(_redirect, instead=True),
    "slow": Kind(lambda reply, fault, _: replace(reply, delay=fault.seconds)),
    "truncated": Kind(lambda reply, fault, _: replace(reply, body=reply.body[: len(reply.body) // 2])),
    "cut": Kind(lambda reply, fault, _: replace(reply, delivery=Delivery.CUT)),
    "malformed": Kind(lambda reply, fault, _: replace(reply, body=reply.body[:-1] + b",,}")),
    "empty": Kind(lambda reply, fault, _: replace(reply, body=b"")),
    "html": Kind(lambda reply, fault, _: Reply(200, LOGIN_PAGE, content_type="text/html")),
    "content_type": Kind(lambda reply, fault, _: replace(reply, content_type="text/plain")),
    "oversized": Kind(lambda reply, fault, _: replace(reply, padding=fault.size)),
    "unknown_status": Kind(_unknown_status, operations=frozenset({Operation.LOOK})),
    "duplicate": Kind(None, operations=_SUBMIT),
    **{word: Kind(None, operations=_SUBMIT) for word in WORDS},
}


def parse(text: str) -> Fault:
    """
    Read one rule, ``kind:key=value,...``.

    :raises ValueError: if the kind or a parameter is wrong.
    """
    kind, parameters = split(text)
    return build(Fault, text, {**parameters, "kind": kind})


def from_json(value: Mapping[str, Any] | str) -> Fault:
    """
    Read one rule as a control request has it: the same text, or an object of the same names.

    :raises ValueError: if the kind or a parameter is wrong.
    """
    return parse(value) if isinstance(value, str) else build(Fault, value, value)


@dataclass(slots=True)
class Rule:
    """A fault and how often it came into question and hit."""

    id: int
    fault: Fault
    chance: Random
    seen: int = 0
    hits: int = 0

    def strikes(self) -> bool:
        """Decide for one more request that the rule applies to."""
        fault = self.fault
        self.seen += 1
        if self.seen <= fault.after or (fault.count is not None and self.hits >= fault.count):
            return False
        if fault.rate < 1 and self.chance.random() >= fault.rate:
            return False
        self.hits += 1
        return True


@dataclass(slots=True)
class Faults:
    """All rules, in the order they were given."""

    chance: Callable[[int], Random]
    rules: list[Rule] = field(default_factory=list)
    given: int = 0

    def add(self, fault: Fault) -> Rule:
        """Add a rule after the others."""
        self.given += 1
        rule = Rule(self.given, fault, self.chance(self.given))
        self.rules.append(rule)
        return rule

    def remove(self, rule_id: int | None = None) -> None:
        """Remove one rule, or all."""
        self.rules = [rule for rule in self.rules if rule_id not in (None, rule.id)]

    def decide(
        self, service: str, operation: Operation, job_id: str, text: Callable[[], str]
    ) -> Fault | None:
        """
        Return the fault that strikes this request, if one does.

        :param text: returns the prompt and metadata the request is about; called only if a rule asks for
            them.
        """
        for rule in self.rules:
            fault = rule.fault
            if (
                fault.service in (None, service)
                and fault.operation in (None, operation)
                and operation in KINDS[fault.kind].operations
                and fault.job in (None, job_id)
                and (fault.match is None or fault.match in text())
                and rule.strikes()
            ):
                return fault
        return None
