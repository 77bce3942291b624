# SPDX-License-Identifier: Apache-2.0

"""What the next object of the journal may promise: a pure decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_distribute.ledger.records import (
    Accepted,
    Intended,
    Refusal,
    Refused,
    Ticket,
    Unanswered,
    Unsent,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_distribute.ledger.records import Record

__all__ = ["Window"]


class Window:
    """
    Keeps the rows that are intended and not recorded below a limit.

    What becomes known while an object is being written goes into the next one, so a slow storage costs fewer
    and larger objects, not speed. Rows recorded by an object free their places only for the object after it:
    then the limit holds even for a reader who finds the last object damaged.

    :param size: The limit.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._unrecorded: set[int] = set()
        self._promised: set[int] = set()
        self._recording: set[int] = set()
        self._tickets: list[Ticket] = []
        self._refusals: list[Refusal] = []
        self._unanswered: list[int] = []
        self._unsent: list[int] = []
        self._stopped = False

    @property
    def free(self) -> int:
        """
        How many rows the next object may intend.

        None, once a row was surely not taken: whoever finds the last object damaged takes it to have intended
        the next rows in order, and a row that was given back would come before them.
        """
        return 0 if self._stopped else self.size - len(self._unrecorded)

    @property
    def known(self) -> int:
        """How many outcomes the next object can record."""
        return len(self._tickets) + len(self._refusals) + len(self._unanswered) + len(self._unsent)

    @property
    def under_way(self) -> int:
        """How many rows were intended by written objects and have no known outcome."""
        return len(self._unrecorded) - self.known

    @property
    def settled(self) -> bool:
        """Whether everything intended is recorded."""
        return not self._unrecorded

    def accepted(self, row: int, ticket: str, at: float) -> None:
        """Report that the service took a row's request, at an epoch second."""
        self._tickets.append(Ticket(ticket, str(row), at))

    def refused(self, row: int, message: str, at: float) -> None:
        """Report that the service will not have a row's request."""
        self._refusals.append(Refusal(row, message, at))

    def unanswered(self, row: int) -> None:
        """Report that a row's request was sent and not answered."""
        self._unanswered.append(row)

    def unsent(self, row: int) -> None:
        """Report that a row's request was surely not taken; nothing more is intended after that."""
        self._stopped = True
        self._unsent.append(row)

    def entry(self, intended: Iterable[int]) -> list[Record]:
        """
        Return what the next object says; :meth:`written` follows once it is durable.

        The intent comes first, even if it is empty, so that it survives a torn end.

        :param intended: At most :attr:`free` rows.
        """
        self._promised = set(intended)
        self._recording = {int(ticket.rows) for ticket in self._tickets}
        self._recording.update(refusal.row for refusal in self._refusals)
        self._recording.update(self._unanswered, self._unsent)
        records: list[Record] = [Intended.of(self._promised)]
        if self._tickets:
            records.append(Accepted(tuple(self._tickets)))
        if self._refusals:
            records.append(Refused(tuple(self._refusals)))
        if self._unanswered:
            records.append(Unanswered.of(self._unanswered))
        if self._unsent:
            records.append(Unsent.of(self._unsent))
        self._tickets, self._refusals, self._unanswered, self._unsent = [], [], [], []
        return records

    def written(self) -> None:
        """Report that the object is durable; what it intends may be sent now."""
        self._unrecorded -= self._recording
        self._unrecorded |= self._promised
        self._promised, self._recording = set(), set()
