# SPDX-License-Identifier: Apache-2.0

"""What DAG authors write as arguments, read."""

from __future__ import annotations

import ast
import contextlib
import json
from datetime import timedelta
from typing import Any

from airflow_provider_distribute.models import LONGEST

__all__ = ["checked_seconds", "rendered"]


def seconds(duration: float | timedelta) -> float:
    """Return a duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def checked_seconds(**durations: float | timedelta) -> list[float]:
    """
    Return durations in seconds, while the Dag is parsed and nothing is paid.

    :raises ValueError: one is not above zero, or is longer than a year.
    """
    for name, duration in durations.items():
        if not 0 < seconds(duration) <= LONGEST:
            raise ValueError(f"{name} must be more than 0 and at most a year of seconds, not {duration!r}.")
    return [seconds(duration) for duration in durations.values()]


def rendered(value: Any) -> Any:
    """Return what a template stands for: unless it renders natively, a list or mapping comes as its text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "(", "{")):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                meant = read(value.strip())
                return meant if isinstance(meant, list | tuple | dict) else value
    return value
