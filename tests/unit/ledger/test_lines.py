# SPDX-License-Identifier: Apache-2.0

"""Objects made of checked lines, and what is left of them after damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_distribute.ledger.lines import decode, line, sealed
from airflow_provider_distribute.ledger.spans import rows_in, spans

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records = st.lists(st.fixed_dictionaries({"text": texts, "number": st.integers()}), max_size=5)


@given(records)
def test_an_object_is_read_as_it_was_written(written: list[dict[str, object]]) -> None:
    """Whatever characters the records hold, line ends among them."""
    read = decode(sealed([line(record) for record in written], writer="w"))
    assert (read.records, read.whole) == (written, True)


@given(records, st.data())
def test_a_truncated_object_is_never_whole(written: list[dict[str, object]], data: st.DataObject) -> None:
    """At any byte; the lines before the cut are still read, and nothing else is."""
    whole = sealed([line(record) for record in written], writer="w")
    cut = decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert not cut.whole
    assert cut.records == written[: len(cut.records)]


@given(records, st.data())
def test_a_changed_byte_is_noticed(written: list[dict[str, object]], data: st.DataObject) -> None:
    """Wherever it is; the lines before it are still read, and nothing else is."""
    whole = bytearray(sealed([line(record) for record in written], writer="w"))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = decode(bytes(whole))
    assert not damaged.whole
    assert damaged.records == written[: len(damaged.records)]


def test_lines_without_their_seal_are_torn() -> None:
    """A cut between two lines leaves only good lines behind, and is noticed all the same."""
    read = decode(line({"a": 1}) + line({"end": 7, "writer": "w"}))
    assert (read.records[0], read.whole) == ({"a": 1}, False)


@given(st.sets(st.integers(0, 60)))
def test_spans_hold_the_rows(rows: set[int]) -> None:
    """Ascending, whatever order they came in."""
    assert list(rows_in(spans(rows))) == sorted(rows)


@pytest.mark.parametrize(
    ("rows", "text"), [((), ""), ((5,), "5"), ((3, 1, 2), "1-3"), ((0, 2, 3, 9), "0,2-3,9")]
)
def test_spans_are_short(rows: tuple[int, ...], text: str) -> None:
    """Neighbours share one span."""
    assert spans(rows) == text
