# SPDX-License-Identifier: Apache-2.0

"""All options of the emulator, as one value. Every spec in it is checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from airflow_provider_distribute.emulator import faults as faults_
from airflow_provider_distribute.emulator import latency as latency_
from airflow_provider_distribute.emulator import limits
from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.contracts.base import Shape
from airflow_provider_distribute.emulator.spec import Spec, build, split

PerService = str | Mapping[str, str]


class NotFound(Spec):
    """
    How long looks at a new job are answered with 404, as if it did not exist.

    Written ``seconds=2``, ``looks=3`` or ``until=done``; the longest of those given counts.

    :param seconds: for so long after the submission.
    :param looks: for so many looks.
    :param until: ``done``: until the job has ended.
    """

    seconds: NonNegativeFloat = 0.0
    looks: int = 0
    until: Literal["done"] | None = None


class Settings(BaseModel):
    """
    Options; a value marked *per service* is one for both, or a mapping by service name.

    :param key: the API key both services accept; ``None`` accepts any key of the right form.
    :param seed: repeats ids, texts, latencies and faults.
    :param latency: how long jobs take, see :mod:`~airflow_provider_distribute.emulator.latency`; per service.
    :param faults: rules, see :mod:`~airflow_provider_distribute.emulator.faults`.
    :param rate_limit: for instance ``100/s``, see :mod:`~airflow_provider_distribute.emulator.limits`; per
        service.
    :param not_found: see :class:`NotFound`; per service.
    :param balance: US dollars each service has to spend before it answers 402; ``None`` is enough for ever.
    :param time_scale: how many of the latency's seconds pass in one real second.
    :param timestamps: how distribute writes times.
    :param auth_prefix: what distribute expects before the key.
    :param errors: the form of inference_net's error bodies.
    :param keep: how many requests the ledger holds.
    :param keep_prompts: whether the ledger holds prompts.
    :param largest_body: bytes of a request body above which the answer is 413.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str | None = Field(default=None, repr=False)
    seed: int = 0
    latency: PerService = "0"
    faults: tuple[str, ...] = ()
    rate_limit: PerService = ""
    not_found: PerService = ""
    balance: NonNegativeFloat | None = None
    time_scale: PositiveFloat = 1.0
    timestamps: Literal["ms", "s", "iso"] = "ms"
    auth_prefix: str = ""
    errors: Literal["object", "string", "message", "detail"] = "object"
    keep: Annotated[int, Field(ge=0)] = 200_000
    keep_prompts: bool = False
    largest_body: PositiveInt = 10 << 20

    @model_validator(mode="after")
    def _every_spec_can_be_read(self) -> Settings:
        for option in (self.latency, self.rate_limit, self.not_found):
            if isinstance(option, Mapping) and (unknown := option.keys() - CONTRACTS.keys()):
                raise ValueError(f"no such service {min(unknown)!r}; there are {', '.join(CONTRACTS)}")
        for service in CONTRACTS:
            self.latency_of(service)
            self.rate_limit_of(service)
            self.not_found_of(service)
        self.rules()
        return self

    @property
    def shape(self) -> Shape:
        """The options about the form of answers."""
        return Shape(timestamps=self.timestamps, auth_prefix=self.auth_prefix, errors=self.errors)

    def rules(self) -> list[faults_.Fault]:
        """The fault rules to begin with."""
        return [faults_.parse(text) for text in self.faults]

    def latency_of(self, service: str) -> latency_.Latency:
        """A fresh latency distribution for ``service``."""
        return latency_.parse(_for(self.latency, service) or "0")

    def rate_limit_of(self, service: str) -> limits.RateLimit | None:
        """A fresh rate limit for ``service``, if it has one."""
        text = _for(self.rate_limit, service)
        return limits.parse(text) if text else None

    def not_found_of(self, service: str) -> NotFound:
        """For how long new jobs of ``service`` are not found."""
        text = _for(self.not_found, service)
        return build(NotFound, text, split(f":{text}")[1])


def _for(option: PerService, service: str) -> str:
    return option if isinstance(option, str) else option.get(service, "")
