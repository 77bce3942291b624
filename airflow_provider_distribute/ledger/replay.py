# SPDX-License-Identifier: Apache-2.0

"""From a journal's objects to what is known about each row: a pure function."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import TYPE_CHECKING

from airflow_provider_distribute.exceptions import LedgerCorrupt
from airflow_provider_distribute.ledger.records import (
    Accepted,
    Asking,
    Intended,
    Opened,
    Refusal,
    Refused,
    Settled,
    Stopped,
    Unanswered,
    Unsent,
)
from airflow_provider_distribute.ledger.spans import rows_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_distribute.ledger.records import Record

__all__ = ["Entry", "State", "object_name", "replay"]


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One object of the journal.

    :param number: Its number, from 1.
    :param records: What could be read of it.
    :param whole: Whether that is all of it.
    """

    number: int
    records: tuple[Record, ...]
    whole: bool = True


@dataclass(slots=True)
class State:
    """
    What is known about a run.

    :ivar opened: The last attempt; ``None``: there is no run.
    :ivar last: Number of the last object.
    :ivar tickets: The newest ticket of each row that ever got one.
    :ivar superseded: Older tickets, each with its row, in the order in which newer ones came. Their jobs ran,
        or run, and are billed.
    :ivar replaced: The same of all tickets of an input that was replaced.
    :ivar accepted_at: When each row's newest ticket was handed back, in epoch seconds; 0: never.
    :ivar open: Rows that the last attempt asks and has not intended yet.
    :ivar intended: Rows that the last attempt intended and did not record.
    :ivar doubt: Rows that may have been taken earlier, without our knowing.
    :ivar refusals: Rows whose newest request was refused.
    :ivar good: How many rows had ended well when the outcome was landed last.
    :ivar again: Rows that were landed and that a later attempt asks again.
    :ivar sends: How often each row was, or may have been, sent.
    :ivar repairs: How many of these asked for a better answer.
    :ivar duplicates: Requests sent although an earlier one for the same row may have been taken.
    :ivar rounds: How often the last attempt began to ask: once, and once more for each repair.
    :ivar stopped: Why the last attempt stopped sending before the last row; ``None``: it did not.
    """

    opened: Opened | None = None
    last: int = 0
    tickets: dict[int, str] = field(default_factory=dict)
    superseded: dict[tuple[int, str], None] = field(default_factory=dict)
    replaced: set[tuple[int, str]] = field(default_factory=set)
    accepted_at: array[float] = field(default_factory=lambda: array("d"))
    open: set[int] = field(default_factory=set)
    intended: set[int] = field(default_factory=set)
    doubt: set[int] = field(default_factory=set)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    good: int = 0
    again: set[int] = field(default_factory=set)
    sends: array[int] = field(default_factory=lambda: array("H"))
    repairs: array[int] = field(default_factory=lambda: array("H"))
    duplicates: int = 0
    rounds: int = 0
    stopped: Stopped | None = None

    @property
    def count(self) -> int:
        """Rows of the run."""
        return self.opened.count if self.opened else 0

    @property
    def unknown(self) -> set[int]:
        """Rows of which nobody knows whether the service took their newest request."""
        return self.doubt | self.intended

    def to_ask(self, *, doubtful: bool) -> set[int]:
        """
        Return the rows a new attempt asks.

        :param doubtful: Ask those again, too, of which nobody knows whether they were taken.
        """
        unknown = self.unknown
        never = set(range(self.count)) - self.tickets.keys() - self.refusals.keys() - unknown
        asked = never | self.again | self.open
        return asked | unknown if doubtful else asked - unknown

    def after(self, record: Record) -> State:
        """Return the state with one more record taken into account; this object may change."""
        if isinstance(record, Opened):
            return self._begun(record)
        self._apply(record)
        return self

    def _begun(self, record: Opened) -> State:
        if self.opened is None or self.opened.fingerprint != record.fingerprint:
            return State(
                opened=record,
                last=self.last,
                accepted_at=array("d", bytes(8 * record.count)),
                replaced=self.replaced | self.superseded.keys() | self.tickets.items(),
                sends=array("H", bytes(2 * record.count)),
                repairs=array("H", bytes(2 * record.count)),
            )
        self.opened = record
        self.rounds = 0
        self.stopped = None
        self.doubt |= self.intended
        self.intended = set()
        return self

    @singledispatchmethod
    def _apply(self, record: Record) -> None:
        raise NotImplementedError(type(record))

    @_apply.register
    def _(self, record: Asking) -> None:
        self.rounds += 1
        self.stopped = None
        self.open = set(record)
        self.again -= self.open
        for row in self.open:
            self.refusals.pop(row, None)

    @_apply.register
    def _(self, record: Intended) -> None:
        # A row is intended again only after its outcome was recorded: else this says the same twice.
        for row in set(record) - self.intended:
            self.duplicates += row in self.doubt
            self.sends[row] += 1
            self.repairs[row] += self.rounds > 1
            self.open.discard(row)
            self.intended.add(row)

    @_apply.register
    def _(self, record: Unsent) -> None:
        for row in self.intended.intersection(record):
            self.duplicates -= row in self.doubt
            self.sends[row] -= 1
            self.repairs[row] -= self.rounds > 1
            self.intended.discard(row)
            self.open.add(row)

    @_apply.register
    def _(self, record: Unanswered) -> None:
        for row in record:
            self.intended.discard(row)
            self.doubt.add(row)

    @_apply.register
    def _(self, record: Accepted) -> None:
        for ticket in record.tickets:
            for row in rows_in(ticket.rows):
                if self.tickets.get(row, ticket.id) != ticket.id:
                    self.superseded[row, self.tickets[row]] = None
                self.tickets[row] = ticket.id
                self.accepted_at[row] = ticket.at
                self._answered(row)

    @_apply.register
    def _(self, record: Refused) -> None:
        for refusal in record.refusals:
            self.refusals[refusal.row] = refusal
            self._answered(refusal.row)

    @_apply.register
    def _(self, record: Stopped) -> None:
        self.stopped = record

    @_apply.register
    def _(self, record: Settled) -> None:
        self.again = set(rows_in(record.again))
        self.doubt = set(rows_in(record.unknown))
        self.intended = set()
        self.good = len(self.tickets.keys() - self.again - self.doubt)

    def _answered(self, row: int) -> None:
        self.intended.discard(row)
        self.doubt.discard(row)

    def intend_next(self) -> None:
        """
        Take into account an object of which nothing is left.

        If it was complete and was damaged later, it intended the next rows in order, as far as the window
        allows.
        """
        if self.opened is not None:
            free = max(0, self.opened.window - len(self.intended))
            self._apply(Intended.of(sorted(self.open)[:free]))


def replay(entries: Iterable[Entry], state: State | None = None, *, where: str = "journal") -> State:
    """
    Return what is known after the journal's objects, given in order.

    An object may be torn when it is the last of its attempt; of its records, those before the damage count.

    :param state: What is known from the objects before, the last of them whole; it may change.
    :param where: Names the journal in errors.
    :raises LedgerCorrupt: an object in the middle is missing or damaged, or one speaks of other rows.
    """
    state = state or State()
    torn = False
    for entry in entries:
        if entry.number != state.last + 1:
            raise LedgerCorrupt(f"{where}/{object_name(state.last + 1)}", "is missing")
        opens = bool(entry.records) and isinstance(entry.records[0], Opened)
        if torn and not opens and (entry.records or entry.whole):
            raise LedgerCorrupt(f"{where}/{object_name(state.last)}", "is damaged")
        if entry.records and not opens and state.opened is None:
            raise LedgerCorrupt(
                f"{where}/{object_name(entry.number)}", "belongs to a run that was never opened"
            )
        state.last = entry.number
        try:
            for record in entry.records:
                state = state.after(record)
        except (IndexError, OverflowError, ValueError) as error:
            at = f"{where}/{object_name(entry.number)}"
            raise LedgerCorrupt(at, "speaks of rows that the run does not have") from error
        if not entry.records and not entry.whole:
            state.intend_next()
        torn = not entry.whole
    return state


def object_name(number: int) -> str:
    """Return the name of a journal's object."""
    return f"{number:08d}.jsonl"
