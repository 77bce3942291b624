# SPDX-License-Identifier: Apache-2.0

"""The journal's objects on a storage: read all of them, write the next one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from airflow_provider_distribute.exceptions import LedgerNewer, LedgerTaken
from airflow_provider_distribute.ledger.lines import decode, line, sealed
from airflow_provider_distribute.ledger.records import record_from
from airflow_provider_distribute.ledger.replay import Entry, State, object_name, replay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.records import Record

__all__ = ["Journal", "entry_from", "object_from"]

_FOLDER = "journal"
_NAME = re.compile(r"(\d{8})\.jsonl")


class Journal:
    """
    A run's journal. Blocks; on an event loop, use it from a thread.

    :param directory: The run's directory.
    :param writer: Names whoever appends.
    """

    def __init__(self, directory: Directory, *, writer: str) -> None:
        self._directory = directory
        self._writer = writer
        self._last = 0
        self._whole = True

    def read(self) -> State:
        """
        Replay the journal. What is appended next comes after what was read.

        :raises LedgerUnavailable: the storage did not answer.
        :raises LedgerCorrupt: an object in the middle is missing or damaged.
        :raises LedgerNewer: a newer release has written one.
        """
        return self._replayed(State())

    def read_on(self, state: State) -> State:
        """
        Take into account what others have appended meanwhile.

        :param state: What was read, with what was appended here; it may change.
        :raises LedgerError: as :meth:`read` says.
        """
        # An object that was torn may have been under way then, and be whole now.
        return self._replayed(state) if self._whole else self.read()

    def _replayed(self, state: State) -> State:
        state = replay(self._entries(state.last), state, where=self._directory.below(_FOLDER))
        self._last = state.last
        return state

    def _entries(self, last: int) -> Iterator[Entry]:
        there = filter(_NAME.fullmatch, self._directory.names(_FOLDER))
        names = (f"{_FOLDER}/{name}" for name in there if name > object_name(last))
        for name, data in self._directory.read_all(names):
            try:
                entry = entry_from(int(name[-14:-6]), data)
            except ValueError as error:
                raise LedgerNewer(self._directory.below(name), str(error)) from error
            self._whole = entry.whole
            yield entry

    def append(self, records: Iterable[Record]) -> None:
        """
        Write the next object; when this returns, it is durable.

        :raises LedgerTaken: another attempt has written it; nothing more may be sent.
        :raises LedgerUnavailable: the storage did not answer; it may or may not have been written.
        """
        name = f"{_FOLDER}/{object_name(self._last + 1)}"
        try:
            self._directory.create(name, object_from(records, writer=self._writer))
        except FileExistsError:
            raise LedgerTaken(
                f"{self._directory.below(name)!r} was written by another attempt of this task, so this one "
                "stops sending. What it sent last is counted as unknown by the other one."
            ) from None
        self._last, self._whole = self._last + 1, True


def object_from(records: Iterable[Record], *, writer: str) -> bytes:
    """Return records as an object's bytes."""
    return sealed([line({record.name: record.as_json()}) for record in records], writer=writer)


def entry_from(number: int, data: bytes) -> Entry:
    """
    Read an object that may be torn.

    :raises ValueError: it holds a record that this version does not know.
    """
    decoded = decode(data)
    return Entry(number, tuple(record_from(record) for record in decoded.records), decoded.whole)
