# SPDX-License-Identifier: Apache-2.0

"""
Lines with a checksum, sealed by a last line that counts them.

A line is eight hexadecimal digits (CRC-32 of the rest), a space, and one JSON object.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PREFIX = 9  # eight digits and a space

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Decoded:
    """
    What could be read of an object.

    :param lines: The JSON of the lines before the first damaged one, not yet parsed.
    :param whole: Whether the seal is there and fits.
    """

    lines: tuple[bytes, ...]
    whole: bool

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines, parsed."""
        return [json.loads(line) for line in self.lines]


def line(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line with its checksum."""
    return checked(to_json(record).encode())


def checked(text: bytes) -> bytes:
    """Return one line of JSON with its checksum."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def sealed(lines: Iterable[bytes], *, writer: str) -> bytes:
    """
    Return an object made of lines.

    :param writer: Who writes it; two writers never produce the same bytes.
    """
    body = list(lines)
    return b"".join(body) + line({"end": len(body), "writer": writer})


def decode(data: bytes) -> Decoded:
    """Read an object that may be torn or damaged."""
    good: list[bytes] = []
    for raw in data.splitlines(keepends=True):
        text = raw[_PREFIX:-1]
        if raw[-1:] != b"\n" or raw[:_PREFIX] != b"%08x " % zlib.crc32(text):
            return Decoded(tuple(good), whole=False)
        good.append(text)
    if not good:
        return Decoded((), whole=False)
    *before, last = good
    if json.loads(last).get("end") == len(before):
        return Decoded(tuple(before), whole=True)
    return Decoded(tuple(good), whole=False)
