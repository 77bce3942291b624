# SPDX-License-Identifier: Apache-2.0

"""Results as Airflow can store them in an XCom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["storable"]

#: Keys by which Airflow knows its own values in an XCom: it refuses to store a mapping with one of the first
#: two, and reads one with the others as something else.
_RESERVED = frozenset({"__classname__", "__id__", "__type", "__var"})


def storable(value: Any) -> Any:
    """Return JSON as Airflow can store it: a key that it keeps for itself gets ``reserved:`` in front."""
    if isinstance(value, Mapping):
        return {f"reserved:{key}" if key in _RESERVED else key: storable(it) for key, it in value.items()}
    return [storable(it) for it in value] if isinstance(value, list | tuple) else value
