# SPDX-License-Identifier: Apache-2.0

"""What the next object of the journal may promise."""

from __future__ import annotations

from airflow_provider_distribute.ledger.records import (
    Accepted,
    Intended,
    Refusal,
    Refused,
    Ticket,
    Unanswered,
    Unsent,
)
from airflow_provider_distribute.ledger.window import Window


def intending(*rows: int) -> Window:
    window = Window(4)
    window.entry(rows)
    window.written()
    return window


def test_places_are_free_again_only_for_the_object_after_the_record() -> None:
    """Then the limit holds even for whoever finds the last object damaged."""
    window = intending(0, 1, 2, 3)
    window.accepted(Ticket("a", "0", 1.0))
    assert (window.free, window.known, window.under_way) == (0, 1, 3)
    window.entry([])
    assert window.free == 0
    window.written()
    assert window.free == 1


def test_a_ticket_may_cover_many_rows() -> None:
    """All of them are recorded with it, and their places are free."""
    window = intending(0, 1, 2, 3)
    ticket = Ticket("group", "0-2", 1.0)
    window.accepted(ticket)
    assert (window.known, window.under_way) == (3, 1)
    assert window.entry([]) == [Intended(""), Accepted((ticket,))]
    window.written()
    assert (window.free, window.settled) == (3, False)


def test_every_outcome_is_recorded() -> None:
    """Behind the intent, which survives a torn end."""
    window = intending(0, 1, 2)
    window.refused(Refusal(0, "no", 1.0))
    window.unanswered(1)
    window.unsent(2)
    assert window.free == 0
    assert window.entry([]) == [
        Intended(""),
        Refused((Refusal(0, "no", 1.0),)),
        Unanswered("1"),
        Unsent("2"),
    ]
    window.written()
    assert (window.settled, window.free) == (True, 0)
