# SPDX-License-Identifier: Apache-2.0

"""
Checks of request bodies, put together in tables that read like the vendors' field lists.

A check is called with a value and its path, and yields a message for each thing that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Check = Callable[[Any, str], Iterator[str]]


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no double can hold
        return False


@dataclass(frozen=True)
class Number:
    """A JSON number within bounds; ``integer`` as JSON Schema has it, so ``1.0`` is one."""

    minimum: float = -math.inf
    maximum: float = math.inf
    integer: bool = False
    choices: tuple[float, ...] = ()

    def __call__(self, value: Any, path: str) -> Iterator[str]:
        """Yield what is wrong with ``value``."""
        if not _is_number(value) or (self.integer and value != int(value)):
            yield f"{path} must be {'an integer' if self.integer else 'a number'}"
        elif value < self.minimum:
            yield f"{path} must be greater than or equal to {self.minimum:g}, got {value}"
        elif value > self.maximum:
            yield f"{path} must be less than or equal to {self.maximum:g}, got {value}"
        elif self.choices and value not in self.choices:
            yield f"{path} must be one of {', '.join(f'{choice:g}' for choice in self.choices)}, got {value}"


@dataclass(frozen=True)
class Text:
    """A string, of ``choices`` if there are any."""

    choices: tuple[str, ...] = ()

    def __call__(self, value: Any, path: str) -> Iterator[str]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, str):
            yield f"{path} must be a string"
        elif self.choices and value not in self.choices:
            yield f"{path} must be one of {', '.join(self.choices)}, got {value!r}"


def flag(value: Any, path: str) -> Iterator[str]:
    """A boolean."""
    if not isinstance(value, bool):
        yield f"{path} must be a boolean"


@dataclass(frozen=True)
class ListOf:
    """An array of which every item passes ``item``."""

    item: Check

    def __call__(self, value: Any, path: str) -> Iterator[str]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, list):
            yield f"{path} must be an array"
            return
        for index, item in enumerate(value):
            yield from self.item(item, f"{path}[{index}]")


@dataclass(frozen=True)
class Record:
    """An object. ``closed`` refuses unknown fields; ``values`` checks every value of a free-form object."""

    fields: dict[str, Check] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    closed: bool = False
    values: Check | None = None

    def __call__(self, value: Any, path: str) -> Iterator[str]:
        """Yield what is wrong with ``value``."""
        if not isinstance(value, dict):
            yield f"{path or 'body'} must be an object"
            return
        prefix = f"{path}." if path else ""
        for name in self.required:
            if name not in value:
                yield f"{prefix}{name} is required"
        for name, item in value.items():
            if check := self.fields.get(name, self.values):
                yield from check(item, f"{prefix}{name}")
            elif self.closed:
                yield f"unrecognized field {prefix}{name}"


@dataclass(frozen=True)
class Nullable:
    """``null``, or what passes ``check``."""

    check: Check

    def __call__(self, value: Any, path: str) -> Iterator[str]:
        """Yield what is wrong with ``value``."""
        if value is not None:
            yield from self.check(value, path)


@dataclass(frozen=True)
class Either:
    """What passes one of ``checks``. The message is that of the last one."""

    checks: tuple[Check, ...]

    def __call__(self, value: Any, path: str) -> Iterator[str]:
        """Yield what is wrong with ``value``."""
        problems: list[str] = []
        for check in self.checks:
            if not (problems := list(check(value, path))):
                return
        yield from problems
