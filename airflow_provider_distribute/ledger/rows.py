# SPDX-License-Identifier: Apache-2.0

"""What came back: one line for each row, in the order seen, in objects of some megabytes."""

from __future__ import annotations

import json
import logging
import re
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.ledger.lines import checked, decode, sealed, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow_provider_distribute.ledger.directory import Directory

__all__ = ["Landed", "RowWriter", "read_rows", "result_in"]

log = logging.getLogger(__name__)

_FOLDER = "rows"
_NAME = re.compile(r"\d{6}\.jsonl")
#: Stands between a line's head and its result. Quotes inside of strings are escaped, so it stands there only.
_RESULT = b',"result":'


@dataclass(frozen=True, slots=True)
class Landed:
    """
    What one look saw of one row, as far as can be told without reading the answer.

    :param row: The row.
    :param ticket: The ticket that covers it; a row counts only for its newest ticket.
    :param seen_at: Epoch seconds of the look.
    :param succeeded: Whether the job ended well.
    :param cost: What it cost in US dollars, an estimate; ``None``: no price is known.
    """

    row: int
    ticket: str
    seen_at: float
    succeeded: bool
    cost: float | None

    def line(self, result: Mapping[str, Any]) -> bytes:
        """Return it as a line, together with :meth:`airflow_provider_distribute.models.Job.result`."""
        head = to_json(asdict(self)).encode()
        return checked(b"%s%s%s}" % (head[:-1], _RESULT, to_json(result).encode()))

    @classmethod
    def head(cls, text: bytes) -> Landed:
        """Read a line without its result."""
        return cls(**json.loads(text[: text.index(_RESULT)] + b"}"))


def result_in(text: bytes) -> dict[str, Any]:
    """Read a line's result."""
    result: dict[str, Any] = json.loads(text[text.index(_RESULT) + len(_RESULT) : -1])
    return result


class RowWriter:
    """
    Writes row objects, from one thread or several. Blocks; on an event loop, use it from a thread.

    :param directory: The run's directory.
    :param writer: Names whoever writes; never the same for two of them.
    """

    def __init__(self, directory: Directory, *, writer: str) -> None:
        self._directory = directory
        self._writer = writer
        self._written = 0
        self._turn = threading.Lock()

    def write(self, lines: Sequence[bytes]) -> None:
        """
        Write lines made by :meth:`Landed.line` as the next object.

        :raises LedgerUnavailable: the storage did not answer. The same lines can be written again.
        """
        # A write whose waiter was cancelled goes on, while the same lines are written once more.
        with self._turn:
            name = f"{_FOLDER}/{self._writer}/{self._written + 1:06d}.jsonl"
            self._directory.overwrite(name, sealed(lines, writer=self._writer))
            self._written += 1


def read_rows(directory: Directory) -> Iterator[tuple[Landed, bytes]]:
    """
    Yield the head and the text of every line, writer by writer.

    The same row may come several times: two triggerers may have waited for it for a while. Of a damaged
    object the whole lines count; what it does not show can be looked at again.

    :raises LedgerUnavailable: the storage did not answer.
    """
    for writer in directory.names(_FOLDER):
        folder = f"{_FOLDER}/{writer}"
        names = [f"{folder}/{name}" for name in directory.names(folder) if _NAME.fullmatch(name)]
        for name, data in directory.read_all(names):
            decoded = decode(data)
            if not decoded.whole and name != names[-1]:
                log.warning(
                    "%r is damaged. Its first %d lines count; what it does not show is looked at again.",
                    directory.below(name),
                    len(decoded.lines),
                )
            for text in decoded.lines:
                yield Landed.head(text), text
