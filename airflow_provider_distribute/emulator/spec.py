# SPDX-License-Identifier: Apache-2.0

"""
The small language of the emulator's options: ``name:key=value,key=value``.

A latency (``lognormal:median=30,sigma=1``), a fault (``429:rate=0.1,retry_after=2``) and a rate limit
(``100/s:http_date=true``) are all written this way, on the command line and in control requests alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Spec(BaseModel):
    """A parsed option. Strings are coerced, unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySpec = TypeVar("AnySpec", bound=Spec)


def split(text: str) -> tuple[str, dict[str, str]]:
    """
    Split ``name:key=value,...`` into the name and its parameters, all still strings.

    :raises ValueError: if a parameter has no ``=``.
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, str] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: write parameters as key=value, got {item!r}")
        parameters[key.strip()] = value.strip()
    return name.strip(), parameters


def build(cls: type[AnySpec], text: object, parameters: Mapping[str, object]) -> AnySpec:
    """
    Make a ``cls`` from ``parameters``; ``text`` is what the author wrote, for the message.

    :raises ValueError: naming every wrong parameter and those there are.
    """
    try:
        return cls.model_validate(dict(parameters))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}" for problem in error.errors()
        )
        known = ", ".join(cls.model_fields) or "none"
        raise ValueError(f"{text!r}: {problems} (parameters: {known})") from None
