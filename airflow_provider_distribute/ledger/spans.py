# SPDX-License-Identifier: Apache-2.0

"""Sets of row numbers as short text: ``0-63,70``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def spans(rows: Iterable[int]) -> str:
    """Return row numbers, in any order, as ascending spans."""
    parts: list[str] = []
    first = last = -1
    for row in sorted(set(rows)):
        if row != last + 1 or first < 0:
            if first >= 0:
                parts.append(_span(first, last))
            first = row
        last = row
    if first >= 0:
        parts.append(_span(first, last))
    return ",".join(parts)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def rows_in(text: str) -> Iterator[int]:
    """Yield the row numbers of spans, ascending."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
