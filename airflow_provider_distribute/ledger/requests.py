# SPDX-License-Identifier: Apache-2.0

"""
What a run asks, as it was read and checked: one line for each row, in input order.

The run keeps its own copy, so that a retry, a repair and the results do not depend on what became of the
input.
"""

from __future__ import annotations

import json
import re
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.exceptions import LedgerCorrupt
from airflow_provider_distribute.ledger.directory import READERS
from airflow_provider_distribute.ledger.lines import checked, decode, sealed, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_distribute.ledger.directory import Directory

__all__ = ["RequestReader", "RequestWriter"]

#: Bytes from which on an object is written.
_FULL = 1024 * 1024
_NAME = re.compile(r"\d{6}\.jsonl")


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
        self.add_json(to_json(record).encode())

    def add_json(self, text: bytes) -> None:
        """Add a line that is JSON already."""
        self._lines.append(checked(text))
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


class RequestReader:
    """
    Yields the lines of a folder, in order. They were complete before the journal named the folder. Blocks.

    Unlike a generator it can be asked again after a :class:`LedgerUnavailable`, and goes on where it was.

    :param directory: The run's directory.
    :param folder: Where in it.
    """

    def __init__(self, directory: Directory, folder: str) -> None:
        self._directory = directory
        self._folder = folder
        self._unread: deque[str] | None = None
        self._lines: deque[bytes] = deque()

    def __iter__(self) -> RequestReader:
        """Return the reader itself."""
        return self

    def __next__(self) -> dict[str, Any]:
        """
        Return the next line.

        :raises LedgerUnavailable: the storage did not answer.
        :raises LedgerCorrupt: an object is damaged.
        """
        while not self._lines:
            self._read()
        record: dict[str, Any] = json.loads(self._lines.popleft())
        return record

    def _read(self) -> None:
        if self._unread is None:
            names = filter(_NAME.fullmatch, self._directory.names(self._folder))
            self._unread = deque(f"{self._folder}/{name}" for name in names)
        if not self._unread:
            raise StopIteration
        for name, data in self._directory.read_all(islice(self._unread.copy(), READERS)):
            decoded = decode(data)
            if not decoded.whole:
                raise LedgerCorrupt(self._directory.below(name), "is damaged")
            self._lines.extend(decoded.lines)
            self._unread.popleft()
