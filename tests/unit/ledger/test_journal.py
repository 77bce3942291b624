# SPDX-License-Identifier: Apache-2.0

"""The journal, rows and requests on a local disk and on a store that is not one."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from upath import UPath

from airflow_provider_distribute.exceptions import LedgerCorrupt, LedgerNewer, LedgerTaken, LedgerUnavailable
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.ledger.lines import line, sealed
from airflow_provider_distribute.ledger.records import Asking, Intended, Opened, Owner
from airflow_provider_distribute.ledger.requests import RequestReader, RequestWriter
from airflow_provider_distribute.ledger.rows import Landed, RowWriter, read_rows, result_in
from tests.unit.storage import Failing, Store, directory_on

if TYPE_CHECKING:
    from pathlib import Path

OPENED = Opened(1, 0.0, Owner("dag", "run", "task"), "conn", "f", 3, "requests/w", 64)


@pytest.fixture(params=["local", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Directory:
    return Directory(UPath(tmp_path if request.param == "local" else f"memory://{uuid4()}"))


def test_a_run_that_was_never_opened_is_no_run(directory: Directory) -> None:
    """Nothing there is an answer, not an error."""
    assert Journal(directory, writer="a").read().opened is None


def test_what_was_appended_is_read(directory: Directory) -> None:
    """By another journal on the same directory."""
    journal = Journal(directory, writer="a")
    journal.append([OPENED, Asking("0-2")])
    journal.append([Intended("0")])
    state = Journal(directory, writer="b").read()
    assert (state.opened, state.intended, state.open) == (OPENED, {0}, {1, 2})


def test_the_first_of_two_attempts_stops_at_its_next_write(directory: Directory) -> None:
    """The second one took the next number; nothing is overwritten."""
    first, second = Journal(directory, writer="a"), Journal(directory, writer="b")
    first.append([OPENED, Asking("0-2")])
    second.read()
    second.append([OPENED])
    with pytest.raises(LedgerTaken, match="stops"):
        first.append([Intended("0")])
    assert Journal(directory, writer="c").read().intended == set()


def test_what_others_append_is_read_on(directory: Directory) -> None:
    """Without reading again what was read, as long as that was whole."""
    first, second = Journal(directory, writer="a"), Journal(directory, writer="b")
    first.append([OPENED, Asking("0-2")])
    state = second.read()
    first.append([Intended("0")])
    state = second.read_on(state)
    assert (state.last, state.intended, state.sends[0]) == (2, {0}, 1)
    second.append([OPENED])
    assert Journal(directory, writer="c").read().last == 3


def test_what_was_torn_is_read_again(directory: Directory) -> None:
    """It was under way: by now it is whole, and says more."""
    first, second = Journal(directory, writer="a"), Journal(directory, writer="b")
    first.append([OPENED, Asking("0-2")])
    first.append([Intended("0")])
    whole = directory.read("journal/00000002.jsonl")
    assert whole is not None
    directory.overwrite("journal/00000002.jsonl", whole[:3])
    state = second.read()
    assert state.intended == {0, 1, 2}
    directory.overwrite("journal/00000002.jsonl", whole)
    assert second.read_on(state).intended == {0}


def test_a_record_of_a_newer_version_is_an_error(directory: Directory) -> None:
    """Skipping it could forget what was paid."""
    directory.create("journal/00000001.jsonl", sealed([line({"merged": "0-2"})], writer="w"))
    with pytest.raises(LedgerNewer, match=r"this version cannot read .*Use that release"):
        Journal(directory, writer="a").read()


def test_a_newer_format_is_an_error(directory: Directory) -> None:
    """The format's version stands in the first record."""
    record = {"opened": {**OPENED.as_json(), "format": 2}}  # type: ignore[dict-item]
    directory.create("journal/00000001.jsonl", sealed([line(record)], writer="w"))
    with pytest.raises(LedgerNewer, match="format 2"):
        Journal(directory, writer="a").read()


def test_strange_files_in_the_journal_are_left_alone(directory: Directory) -> None:
    """Stores and people leave markers behind."""
    directory.create("journal/_SUCCESS", b"")
    assert Journal(directory, writer="a").read().opened is None


def test_rows_are_read_with_and_without_their_result(directory: Directory) -> None:
    """The head is enough for most, and a ticket cannot look like the start of a result."""
    landed = Landed(7, 'odd","result":', 5.0, True, 0.25)
    RowWriter(directory, writer="a").write([landed.line({"content": 'x,"result":{"a":1}'})])
    ((head, text),) = read_rows(directory)
    assert (head, result_in(text)) == (landed, {"content": 'x,"result":{"a":1}'})


def test_a_damaged_object_of_rows_shows_its_whole_lines(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever it is: jobs can be looked at again. Damage is told, unless a writer may have died there."""
    writer = RowWriter(directory, writer="a")
    lines = [Landed(row, str(row), 5.0, True, None).line({}) for row in range(4)]
    writer.write(lines[:2])
    writer.write(lines[2:])
    for name, left in (("rows/a/000002.jsonl", [0, 1, 2]), ("rows/a/000001.jsonl", [0, 2])):
        assert "damaged" not in caplog.text
        whole = directory.read(name)
        assert whole is not None
        directory.overwrite(name, whole[: whole.index(b"\n") + 5])
        assert [head.row for head, _ in read_rows(directory)] == left
    assert "000001.jsonl' is damaged. Its first 1 lines count" in caplog.text


def test_two_threads_never_write_the_same_object_of_rows() -> None:
    """A write whose waiter was cancelled goes on while the same lines are written again."""
    store = Store()
    writer = RowWriter(directory_on(store), writer="a")
    lines = [Landed(0, "t", 5.0, True, None).line({})]
    second = threading.Thread(target=writer.write, args=[lines])

    def meanwhile(act: str, path: str) -> float:
        if second.ident is None:
            second.start()
            second.join(0.1)  # time enough for a thread that nothing holds back
        return 1.0

    store.before = meanwhile
    writer.write(lines)
    second.join()
    assert sorted(store.objects) == ["run/rows/a/000001.jsonl", "run/rows/a/000002.jsonl"]


def test_requests_come_back_in_order(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """From however many objects."""
    monkeypatch.setattr("airflow_provider_distribute.ledger.requests._FULL", 50)
    writer = RequestWriter(directory, "requests/a")
    asked = [{"row": row, "text": "x" * row} for row in range(9)]
    for request in asked:
        writer.add(request)
    writer.flush()
    writer.flush()
    assert list(RequestReader(directory, "requests/a")) == asked
    assert len(directory.names("requests/a")) > 3


def test_requests_are_read_on_after_the_storage_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same line: none is skipped, and none comes twice."""
    monkeypatch.setattr("airflow_provider_distribute.ledger.requests._FULL", 50)
    store = Store()
    directory = directory_on(store)
    writer = RequestWriter(directory, "requests/a")
    for row in range(40):
        writer.add({"row": row, "text": "x" * 50})
    writer.flush()
    reader, failures = RequestReader(directory, "requests/a"), 0
    rows: list[int] = []
    store.before = Failing("read", "000012.jsonl", times=2)
    while len(rows) < 40:
        try:
            rows.append(next(reader)["row"])
        except LedgerUnavailable:
            failures += 1
    assert (rows, failures, next(reader, None)) == (list(range(40)), 2, None)


def test_damaged_requests_are_an_error(directory: Directory) -> None:
    """They were complete before the run was opened."""
    directory.create("requests/a/000001.jsonl", b"{}")
    with pytest.raises(LedgerCorrupt, match="damaged"):
        list(RequestReader(directory, "requests/a"))


def test_strange_files_among_the_requests_are_left_alone(directory: Directory) -> None:
    """People look at directories with tools that leave files behind."""
    directory.create("requests/a/.DS_Store", b"x")
    assert list(RequestReader(directory, "requests/a")) == []


@pytest.mark.parametrize(
    "other",
    [
        Owner("dag", "run", "task2"),
        Owner("dag", "run", "task", 0),
        Owner("dag_run", "", "task"),
        Owner("d" * 60 + "1", "run", "task"),
    ],
)
def test_no_two_task_instances_share_a_directory(other: Owner) -> None:
    """Not even those whose cleaned and shortened names are the same."""
    assert other.directory != OPENED.owner.directory
    assert other.directory != Owner("d" * 60 + "2", "run", "task").directory


def test_a_directory_name_is_safe_everywhere() -> None:
    """Run ids hold colons and plus signs, which some stores refuse and others decode."""
    name = Owner("dag", "scheduled__2026-11-22T00:00:00+00:00", "group.task", 3).directory
    assert name.startswith("dag__group.task__scheduled__2026-11-22T00-00-00-00-00__3__")
    assert json.dumps(name).isascii()
