# SPDX-License-Identifier: Apache-2.0

"""
What a run asks, as it was read and checked: one line for each row, in input order.

The run keeps its own copy, so that a retry, a repair and the results do not depend on what became of the
input.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.exceptions import LedgerCorrupt
from airflow_provider_distribute.ledger.lines import decode, line, sealed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_provider_distribute.ledger.directory import Directory

__all__ = ["RequestWriter", "read_requests"]

#: Bytes from which on an object is written.
_FULL = 1024 * 1024


class RequestWriter:
    """
    Writes requests in objects of about a megabyte. Blocks.

    :param directory: The run's directory.
    :param folder: Where in it; no other writer's.
    """

    def __init__(self, directory: Directory, folder: str) -> None:
        self._directory = directory
        self._folder = folder
        self._lines: list[bytes] = []
        self._bytes = 0
        self._written = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a line; ``row`` names the row."""
        text = line(record)
        self._lines.append(text)
        self._bytes += len(text)
        if self._bytes >= _FULL:
            self.flush()

    def flush(self) -> None:
        """Write what was added; call it once more at the end."""
        if self._lines:
            self._written += 1
            name = f"{self._folder}/{self._written:06d}.jsonl"
            self._directory.create(name, sealed(self._lines, writer=self._folder))
            self._lines, self._bytes = [], 0


def read_requests(directory: Directory, folder: str) -> Iterator[dict[str, Any]]:
    """
    Yield the lines of a folder, in order. They were complete before the journal named the folder.

    :raises LedgerUnavailable: the storage did not answer.
    :raises LedgerCorrupt: an object is damaged.
    """
    names = [f"{folder}/{name}" for name in directory.names(folder)]
    for name, data in directory.read_all(names):
        decoded = decode(data)
        if not decoded.whole:
            raise LedgerCorrupt(directory.below(name), "is damaged")
        for text in decoded.lines:
            yield json.loads(text)
