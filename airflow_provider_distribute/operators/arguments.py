# SPDX-License-Identifier: Apache-2.0

"""What DAG authors write as arguments, read."""

from __future__ import annotations

import ast
import contextlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from airflow_provider_distribute.models import Seconds

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["rendered", "seconds"]

_SECONDS: TypeAdapter[float] = TypeAdapter(Seconds)


def seconds(name: str, duration: float | timedelta) -> float:
    """
    Return a duration in seconds, checked while the Dag is parsed and nothing is paid.

    :param name: The argument's.
    :raises ValueError: it is not above zero, or is longer than a year.
    """
    try:
        return _SECONDS.validate_python(duration)
    except ValidationError:
        raise ValueError(
            f"{name} must be more than 0 and at most a year of seconds, not {duration!r}."
        ) from None


def rendered(value: Any) -> Any:
    """Return what a template stands for: unless it renders natively, a list or mapping comes as its text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "(", "{")):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                meant = read(value.strip())
                return meant if isinstance(meant, list | tuple | dict) else value
    return value
