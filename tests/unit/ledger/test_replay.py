# SPDX-License-Identifier: Apache-2.0

"""Replaying a journal after it, or its writer, was hit at any instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_distribute.exceptions import LedgerCorrupt
from airflow_provider_distribute.ledger.journal import entry_from, object_from
from airflow_provider_distribute.ledger.records import (
    Accepted,
    Asking,
    Intended,
    Opened,
    Owner,
    Record,
    Refusal,
    Refused,
    Settled,
    Stopped,
    Ticket,
    Unanswered,
    Unsent,
)
from airflow_provider_distribute.ledger.replay import Entry, State, replay
from airflow_provider_distribute.ledger.window import Window

if TYPE_CHECKING:
    import random

ROWS = 12
WINDOW = 4
OWNER = Owner("dag", "run", "task")


def opened(attempt: int = 1, fingerprint: str = "f", count: int = ROWS) -> Opened:
    return Opened(attempt, 0.0, OWNER, "conn", fingerprint, count, "requests/w", WINDOW)


def state_after(*objects: tuple[Record, ...]) -> State:
    return replay(Entry(number, records) for number, records in enumerate(objects, 1))


@dataclass
class Service:
    """What the service really took, and what it was really sent."""

    taken: dict[int, list[str]] = field(default_factory=dict)

    def take(self, row: int) -> str:
        """Take a request, and hand back a ticket."""
        tickets = self.taken.setdefault(row, [])
        tickets.append(f"{row}/{len(tickets)}")
        return tickets[-1]


@dataclass
class Worker:
    """
    One attempt that sends rows under a window, writing objects as it goes.

    Every step is one thing that can happen between two instants at which the process may be killed.
    """

    service: Service
    objects: list[bytes]
    attempt: int
    rng: random.Random
    window: Window = field(default_factory=lambda: Window(WINDOW))
    todo: list[int] = field(default_factory=list)
    sendable: list[int] = field(default_factory=list)
    answers: list[tuple[str, int, str]] = field(default_factory=list)

    def append(self, records: list[Record]) -> None:
        """Write the next object."""
        self.objects.append(object_from(records, writer=f"w{self.attempt}"))

    def open(self) -> None:
        """Begin the attempt."""
        state = read(self.objects)
        self.todo = sorted(state.to_ask(doubtful=True))
        self.append([opened(self.attempt), Asking.of(self.todo)])

    def write(self) -> None:
        """Write what is known and what is intended."""
        rows = self.todo[: self.rng.randint(0, self.window.free)]
        self.todo = self.todo[len(rows) :]
        self.append(self.window.entry(rows))
        self.window.written()
        self.sendable += rows

    def send(self) -> None:
        """Send a request; the answer is under way."""
        if self.sendable:
            row = self.sendable.pop(self.rng.randrange(len(self.sendable)))
            outcome = self.rng.choice(("accepted", "accepted", "accepted", "refused", "unanswered", "unsent"))
            lost = outcome == "unanswered" and self.rng.random() < 0.5
            ticket = self.service.take(row) if outcome == "accepted" or lost else ""
            self.answers.append((outcome, row, ticket))

    def hear(self) -> None:
        """Hear an answer."""
        if self.answers:
            outcome, row, ticket = self.answers.pop(0)
            match outcome:
                case "accepted":
                    self.window.accepted(Ticket(ticket, str(row), 1.0))
                case "refused":
                    self.window.refused(Refusal(row, "no", 1.0))
                case "unanswered":
                    self.window.unanswered(row)
                case _:
                    self.window.unsent(row)


def read(objects: list[bytes]) -> State:
    return replay(entry_from(number, data) for number, data in enumerate(objects, 1))


def tear(data: bytes, rng: random.Random) -> bytes:
    """Truncate an object, or change one of its bytes."""
    place = rng.randrange(len(data))
    if rng.random() < 0.5:
        return data[:place]
    return data[:place] + bytes([data[place] ^ rng.randint(1, 255)]) + data[place + 1 :]


def recorded(objects: list[bytes]) -> set[str]:
    """Return every ticket that the journal ever named."""
    entries = [entry_from(number, data) for number, data in enumerate(objects, 1)]
    accepted = [record for entry in entries for record in entry.records if isinstance(record, Accepted)]
    return {ticket.id for record in accepted for ticket in record.tickets}


def check_nothing_is_lost(objects: list[bytes], service: Service) -> None:
    """Each request the service took is recorded, or counted as unknown or as a possible duplicate."""
    state = read(objects)
    for row, tickets in service.taken.items():
        assert len(tickets) <= state.sends[row]
    taken = {ticket for tickets in service.taken.values() for ticket in tickets}
    assert len(taken - recorded(objects)) <= len(state.unknown) + state.duplicates


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_a_kill_at_any_instant_loses_nothing(rng: random.Random, lifetimes: list[int]) -> None:
    """
    Attempt after attempt is killed after some steps, and sometimes its last object is damaged as well.

    What the service took is recorded or counted; each kill leaves at most the window unknown; what is
    recorded as accepted is not asked again.
    """
    service = Service()
    objects: list[bytes] = []
    for attempt, steps in enumerate(lifetimes, 1):
        unknown_before = len(read(objects).unknown)
        worker = Worker(service, objects, attempt, rng)
        worker.open()
        unanswered = 0
        for _ in range(steps):
            before = len(worker.window._unanswered)
            rng.choice((worker.write, worker.send, worker.send, worker.hear, worker.hear))()
            unanswered += max(0, len(worker.window._unanswered) - before)
        if rng.random() < 0.5:
            objects[-1] = tear(objects[-1], rng)
        state = read(objects)
        check_nothing_is_lost(objects, service)
        assert len(state.intended) <= WINDOW
        assert len(state.unknown) <= unknown_before + WINDOW + unanswered
        assert not state.to_ask(doubtful=False) & state.unknown
        assert not state.to_ask(doubtful=True) & (state.tickets.keys() - state.unknown)


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_prefix_of_the_writes_can_be_taken_up(rng: random.Random) -> None:
    """Whatever was written last, a reader finds at most the window unknown, and every row in one place."""
    service = Service()
    objects: list[bytes] = []
    worker = Worker(service, objects, 1, rng)
    worker.open()
    while len(objects) < 12:
        rng.choice((worker.write, worker.send, worker.hear))()
    for length in range(len(objects) + 1):
        state = read(objects[:length])
        assert len(state.intended) <= WINDOW
        known = set(state.tickets) | set(state.refusals) | state.unknown | state.to_ask(doubtful=True)
        assert known == set(range(state.count))


@given(st.randoms(use_true_random=False))
def test_damage_in_the_middle_is_an_error(rng: random.Random) -> None:
    """It is never taken for "not written": jobs named there may be running and billed."""
    objects: list[bytes] = []
    worker = Worker(Service(), objects, 1, rng)
    worker.open()
    for _ in range(4):
        worker.write()
    objects[rng.randrange(1, len(objects) - 1)] = b""
    with pytest.raises(LedgerCorrupt, match="damaged"):
        read(objects)


def test_a_missing_object_is_an_error() -> None:
    """Names count without gaps, so one that is gone is noticed."""
    entries = [Entry(1, (opened(), Asking("0-3"))), Entry(3, (Intended("0"),))]
    with pytest.raises(LedgerCorrupt, match=r"00000002\.jsonl' is missing"):
        replay(entries)


def test_records_before_a_run_was_opened_are_an_error() -> None:
    """They name no owner and no input."""
    with pytest.raises(LedgerCorrupt, match="never opened"):
        state_after((Intended("0"),))


def test_a_torn_first_object_is_no_run() -> None:
    """Nothing was sent on its strength, and the next attempt opens the run after it."""
    entries = [Entry(1, (), whole=False), Entry(2, (opened(), Asking("0-11")))]
    assert replay(entries[:1]).opened is None
    assert replay(entries).open == set(range(ROWS))


def test_an_unreadable_last_object_counts_as_if_it_had_intended_the_next_rows() -> None:
    """It may have been complete and damaged later; at most the window is unknown even then."""
    entries = [
        Entry(1, (opened(), Asking("0-11"))),
        Entry(2, (Intended("0-1"),)),
        Entry(3, (), whole=False),
    ]
    assert replay(entries).unknown == {0, 1, 2, 3}


def test_a_torn_object_that_shows_its_intent_counts_for_what_it_says() -> None:
    """The intent comes first in every object, so most tears leave it readable."""
    entries = [Entry(1, (opened(), Asking("0-11"))), Entry(2, (Intended("0-1"),), whole=False)]
    assert replay(entries).unknown == {0, 1}


def test_a_second_attempt_killed_at_its_first_write_changes_nothing() -> None:
    """Two torn objects in a row are the last ones of two attempts."""
    entries = [
        Entry(1, (opened(), Asking("0-11"))),
        Entry(2, (Intended("0-1"),), whole=False),
        Entry(3, (), whole=False),
        Entry(4, (opened(3),)),
    ]
    assert {0, 1} <= replay(entries).unknown


def test_a_ticket_may_cover_many_rows() -> None:
    """A group or a batch hands back one ticket for all of its requests."""
    state = state_after((opened(), Asking("0-11")), (Intended("0-2"), Accepted((Ticket("g", "0-2", 5.0),))))
    assert list(state.tickets.items()) == [(0, "g"), (1, "g"), (2, "g")]


def test_a_row_that_is_asked_again_counts_by_its_newest_ticket() -> None:
    """The old one, which is paid for, is waited for until there is a new one, and is not forgotten then."""
    asked = state_after(
        (opened(), Asking("0-11")),
        (Intended("0"), Accepted((Ticket("old", "0", 5.0),))),
        (Settled("0", ""),),
        (opened(2), Asking("0")),
    )
    assert list(asked.tickets.items()) == [(0, "old")]
    asked.after(Intended("0"))
    asked.after(Accepted((Ticket("new", "0", 6.0),)))
    assert (list(asked.tickets.items()), asked.sends[0], asked.duplicates) == ([(0, "new")], 2, 0)
    assert list(asked.superseded) == [(0, "old")]


def test_sending_an_unknown_row_again_counts_as_a_possible_duplicate() -> None:
    """Unless that request was surely not taken."""
    state = state_after(
        (opened(), Asking("0-11")), (Intended("0-1"), Unanswered("0-1")), (Intended("0-1"), Unsent("1"))
    )
    assert (state.duplicates, state.doubt) == (1, {0, 1})


def test_a_refused_row_is_asked_again_only_after_it_was_landed() -> None:
    """Within the attempt, and when the attempt is taken up again, the refusal stands."""
    objects: list[tuple[Record, ...]] = [
        (opened(), Asking("0-11")),
        (Intended("0"), Refused((Refusal(0, "no", 1.0),))),
    ]
    assert 0 not in state_after(*objects).to_ask(doubtful=True)
    assert 0 in state_after(*objects, (Settled("0", ""),)).to_ask(doubtful=True)
    assert state_after(*objects, (Settled("0", ""),), (opened(2), Asking("0"))).refusals == {}


def test_another_input_starts_over_and_counts_what_it_leaves_behind() -> None:
    """The jobs of the old input go on and are billed."""
    state = state_after(
        (opened(), Asking("0-11")),
        (Intended("0-1"), Accepted((Ticket("a", "0", 1.0), Ticket("b", "1", 1.0)))),
        (opened(2, fingerprint="other", count=3),),
    )
    assert (state.superseded, state.replaced) == ({}, {(0, "a"), (1, "b")})
    assert (state.tickets, state.to_ask(doubtful=False)) == ({}, {0, 1, 2})


def test_the_same_ticket_twice_supersedes_nothing() -> None:
    """A service may hand back the job that it has already."""
    taken = Accepted((Ticket("a", "0", 1.0),))
    state = state_after((opened(), Asking("0-11")), (Intended("0"), taken), (Intended("0"), taken))
    assert (state.tickets, state.superseded) == ({0: "a"}, {})


def test_a_row_that_ended_well_is_out_of_doubt_once_it_was_landed() -> None:
    """Otherwise it would be paid for again: its old job answered, whatever became of a newer request."""
    state = state_after(
        (opened(), Asking("0-11")),
        (Intended("0-2"), Accepted((Ticket("a", "0", 1.0), Ticket("c", "2", 1.0)))),
        (Settled("0-1,3", ""),),
        (opened(2), Asking("0-1,3")),
        (Intended("0-1"), Unanswered("0-1")),
        (Settled("3", "1"),),
    )
    assert (state.unknown, state.again) == ({1}, {3})
    assert state.to_ask(doubtful=True) & {0, 1, 2, 3} == {1, 3}


def test_why_sending_stopped_stands_until_something_is_asked_again() -> None:
    """By another attempt, or by a repair."""
    stopped = Stopped("budget", "enough")
    objects: list[tuple[Record, ...]] = [(opened(), Asking("0-11")), (stopped,)]
    assert state_after(*objects).stopped == stopped
    assert state_after(*objects, (opened(2),)).stopped is None
    assert state_after(*objects, (Asking("0"),)).stopped is None


def test_repairs_are_counted_apart() -> None:
    """They cost more than the first question; what was surely not taken costs nothing."""
    state = state_after(
        (opened(), Asking("0-11")),
        (Intended("0-1"), Accepted((Ticket("a", "0-1", 1.0),))),
        (Asking("0-1"),),
        (Intended("0-1"), Unsent("1")),
    )
    assert (list(state.sends[:3]), list(state.repairs[:3])) == ([2, 1, 0], [1, 0, 0])


def test_an_object_that_says_again_what_the_one_before_said_changes_nothing() -> None:
    """A store that was asked twice may have written it twice."""
    said: tuple[Record, ...] = (
        Intended("2-3"),
        Accepted((Ticket("a", "0", 1.0),)),
        Unsent("1"),
    )
    before: tuple[tuple[Record, ...], ...] = ((opened(), Asking("0-11")), (Intended("0-1"),))
    once, twice = state_after(*before, said), state_after(*before, said, said)
    twice.last = once.last
    assert once == twice


@pytest.mark.parametrize("record", [Intended("12"), Accepted((Ticket("a", "12", 1.0),)), Intended("x")])
def test_rows_that_the_run_does_not_have_are_an_error(record: Record) -> None:
    """Such a journal is of no use, and its checksums are right, so somebody wrote it."""
    with pytest.raises(LedgerCorrupt, match=r"00000002\.jsonl' speaks of rows"):
        state_after((opened(), Asking("0-11")), (record,))
