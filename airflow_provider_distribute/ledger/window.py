# SPDX-License-Identifier: Apache-2.0

"""What the next object of the journal may promise: a pure decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_distribute.ledger.records import (
    Accepted,
    Intended,
    Refused,
    Unanswered,
    Unsent,
)
from airflow_provider_distribute.ledger.spans import rows_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_distribute.ledger.records import Record, Refusal, Ticket

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
        self._known: set[int] = set()
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
        """Of how many rows the next object can record the outcome."""
        return len(self._known)

    @property
    def under_way(self) -> int:
        """How many rows were intended by written objects and have no known outcome."""
        return len(self._unrecorded) - self.known

    @property
    def settled(self) -> bool:
        """Whether everything intended is recorded."""
        return not self._unrecorded

    def accepted(self, ticket: Ticket) -> None:
        """Report that the service took the requests of a ticket's rows."""
        self._tickets.append(ticket)
        self._known.update(rows_in(ticket.rows))

    def refused(self, refusal: Refusal) -> None:
        """Report that the service will not have a row's request."""
        self._refusals.append(refusal)
        self._known.add(refusal.row)

    def unanswered(self, row: int) -> None:
        """Report that a row's request was sent and not answered."""
        self._unanswered.append(row)
        self._known.add(row)

    def unsent(self, row: int) -> None:
        """Report that a row's request was surely not taken; nothing more is intended after that."""
        self._stopped = True
        self._unsent.append(row)
        self._known.add(row)

    def entry(self, intended: Iterable[int]) -> list[Record]:
        """
        Return what the next object says; :meth:`written` follows once it is durable.

        The intent comes first, even if it is empty, so that it survives a torn end.

        :param intended: At most :attr:`free` rows.
        """
        self._promised = set(intended)
        self._recording, self._known = self._known, set()
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
