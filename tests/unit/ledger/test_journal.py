# SPDX-License-Identifier: Apache-2.0

"""The journal, rows and requests on a local disk and on a store that is not one."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from upath import UPath

from airflow_provider_distribute.exceptions import LedgerCorrupt, LedgerTaken, LedgerUnavailable
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.ledger.lines import line, sealed
from airflow_provider_distribute.ledger.records import Asking, Intended, Opened, Owner
from airflow_provider_distribute.ledger.requests import RequestWriter, read_requests
from airflow_provider_distribute.ledger.rows import Landed, RowWriter, read_rows, result_in

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


def test_a_store_that_lost_its_own_answer_is_believed() -> None:
    """It took the object, did not say so, was asked again, and then says that the object exists."""
    path = UPath(f"memory://{uuid4()}")

    class Forgetful:
        protocol = "memory"

        def __getattr__(self, name: str) -> Any:
            return getattr(path.fs, name)

        def pipe_file(self, name: str, data: bytes, mode: str) -> None:
            path.fs.pipe_file(name, data, mode=mode)
            raise FileExistsError(name)

    class Path:
        fs = Forgetful()
        path = "/forgetful"

    journal = Journal(Directory(Path()), writer="a")
    journal.append([OPENED])
    assert journal.read().opened == OPENED


def test_a_storage_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    """It is never taken for an empty one, and the message names the place."""
    (tmp_path / "journal").write_text("a file, where a folder should be")
    (tmp_path / "rows").mkdir()

    class Broken:
        protocol = ("file", "local")

        def __getattr__(self, name: str) -> Any:
            raise PermissionError(name)

    class Path:
        fs = Broken()
        path = str(tmp_path)

        def __str__(self) -> str:
            return "s3://bucket/run"

    with pytest.raises(LedgerUnavailable, match="'s3://bucket/run/journal'") as raised:
        Journal(Directory(Path()), writer="a").read()
    assert raised.value.transient


def test_a_storage_that_cannot_be_opened_is_an_error() -> None:
    """No such kind of storage, or no such Airflow connection for it."""

    def refuse(uri: str) -> Any:
        raise ValueError("no such scheme")

    with pytest.raises(LedgerUnavailable, match=r"no such scheme.*'odd://run'"):
        Directory.at("odd://run", refuse)


def test_a_record_of_a_newer_version_is_an_error(directory: Directory) -> None:
    """Skipping it could forget what was paid."""
    directory.create("journal/00000001.jsonl", sealed([line({"merged": "0-2"})], writer="w"))
    with pytest.raises(LedgerCorrupt, match="this version cannot read"):
        Journal(directory, writer="a").read()


def test_a_newer_format_is_an_error(directory: Directory) -> None:
    """The format's version stands in the first record."""
    record = {"opened": {**OPENED.as_json(), "format": 2}}  # type: ignore[dict-item]
    directory.create("journal/00000001.jsonl", sealed([line(record)], writer="w"))
    with pytest.raises(LedgerCorrupt, match="format 2"):
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


def test_the_last_object_of_a_rows_writer_may_be_torn(directory: Directory) -> None:
    """Its whole lines count; an earlier one that is damaged is an error."""
    writer = RowWriter(directory, writer="a")
    lines = [Landed(row, str(row), 5.0, True, None).line({}) for row in range(3)]
    writer.write(lines[:1])
    writer.write(lines[1:])
    whole = directory.read("rows/a/000002.jsonl")
    assert whole is not None
    directory.overwrite("rows/a/000002.jsonl", whole[:-5])
    assert [head.row for head, _ in read_rows(directory)] == [0, 1, 2]
    directory.overwrite("rows/a/000001.jsonl", b"")
    with pytest.raises(LedgerCorrupt, match="damaged"):
        list(read_rows(directory))


def test_requests_come_back_in_order(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """From however many objects."""
    monkeypatch.setattr("airflow_provider_distribute.ledger.requests._FULL", 50)
    writer = RequestWriter(directory, "requests/a")
    asked = [{"row": row, "text": "x" * row} for row in range(9)]
    for request in asked:
        writer.add(request)
    writer.flush()
    writer.flush()
    assert list(read_requests(directory, "requests/a")) == asked
    assert len(directory.names("requests/a")) > 3


def test_damaged_requests_are_an_error(directory: Directory) -> None:
    """They were complete before the run was opened."""
    directory.create("requests/a/000001.jsonl", b"{}")
    with pytest.raises(LedgerCorrupt, match="damaged"):
        list(read_requests(directory, "requests/a"))


def test_a_stream_replaces_an_object_only_when_it_is_complete(directory: Directory) -> None:
    """A reader sees the old one or the new one."""
    directory.overwrite("results.jsonl", b"old")
    with contextlib.suppress(ZeroDivisionError), directory.replacing("results.jsonl") as stream:
        stream.write(b"half")
        stream.write(bytes(1 // 0))
    assert directory.read("results.jsonl") == b"old"
    with directory.replacing("results.jsonl") as stream:
        stream.write(b"new")
    assert directory.read("results.jsonl") == b"new"
    assert directory.read("manifest.json") is None


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
