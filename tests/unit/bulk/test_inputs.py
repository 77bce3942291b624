# SPDX-License-Identifier: Apache-2.0

"""Reading what is to be asked; everything wrong is named, and nothing is sent."""

from __future__ import annotations

import builtins
import contextlib
import csv
import gzip
import io
import json
import os
import pathlib
import random
import re
from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_distribute.bulk import inputs
from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.inputs import Defaults, Item, items_of, source_of, uri_of
from airflow_provider_distribute.bulk.run import Plan, stage
from airflow_provider_distribute.exceptions import InputUnreadable, InvalidInput, InvalidRequest
from airflow_provider_distribute.models import ChatRequest
from tests.unit.bulk.world import OWNER
from tests.unit.contracts import DISTRIBUTE

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_distribute.bulk.inputs import Source


def plan(**fields: Any) -> Plan:
    return Plan(DISTRIBUTE.settings(model="Llama-3.1 8B"), OWNER, **fields)


def problems_in(source: Source) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as raised:
        stage(source, plan())
    return raised.value.problems


def asked(source: Source, **defaults: Any) -> list[Item]:
    read = [item for _, item in items_of(source, Defaults(**defaults))]
    assert all(isinstance(item, Item) for item in read)
    return [item for item in read if isinstance(item, Item)]


def lines_file(tmp_path: Path, *lines: object, name: str = "in.jsonl") -> Source:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return source_of(str(path), open_path=UPath)


class Remote(AbstractFileSystem):  # type: ignore[misc]
    """A storage that is reached over a network: one object, read in ranges, until it fails."""

    cachable = False

    def __init__(
        self, data: bytes, *, fails_at: float = float("inf"), error: Exception | None = None
    ) -> None:
        super().__init__()
        self.data = data
        self._fails_at = fails_at
        self._error = error
        self.furthest = 0
        self.ranges: list[tuple[int, int]] = []

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Say what is there."""
        return {"name": path, "size": len(self.data), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> AbstractBufferedFile:
        return AbstractBufferedFile(self, path, mode, block_size=1000)

    def cat_file(self, path: str, start: int = 0, end: int = 0, **kwargs: Any) -> bytes:
        """Read a range."""
        if end > self._fails_at:
            assert self._error
            raise self._error
        self.furthest = max(self.furthest, end)
        self.ranges.append((start, end))
        return self.data[start:end]

    def source(self, name: str, prompt: str | None = None) -> Source:
        """Return the object as a source."""
        path = SimpleNamespace(fs=self, path=name)
        return source_of(f"remote://{name}", prompt=prompt, open_path=lambda uri: path)


def parquet_of(**columns: list[Any]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


class TestShapes:
    """A line holds one of these."""

    @pytest.mark.parametrize(
        "line",
        [
            '"What?"',
            [{"role": "user", "content": "What?"}],
            {"prompt": "What?"},
            {"messages": [{"role": "user", "content": "What?"}]},
            {
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"messages": [{"role": "user", "content": "What?"}]},
            },
        ],
        ids=["prompt", "messages", "mapping", "mapping of messages", "batch line"],
    )
    def test_a_line_is_a_request(self, tmp_path: Path, line: object) -> None:
        """All of them ask the same."""
        (item,) = asked(lines_file(tmp_path, line), model="m")
        assert item.request == ChatRequest(messages=({"role": "user", "content": "What?"},), model="m")

    def test_a_batch_line_brings_its_body(self, tmp_path: Path) -> None:
        """Model, metadata and every other body field."""
        body = {
            "model": "own",
            "messages": [{"role": "user", "content": "What?"}],
            "temperature": 0.5,
            "metadata": {"k": "v"},
        }
        (item,) = asked(lines_file(tmp_path, {"custom_id": 7, "body": body}), model="m")
        assert (item.custom_id, item.request.model) == ("7", "own")
        assert (item.request.params, item.request.metadata) == ({"temperature": 0.5}, {"k": "v"})

    def test_compressed_lines_and_empty_ones(self, tmp_path: Path) -> None:
        """Gzip is known by the file's name; empty lines are nothing."""
        assert len(asked(lines_file(tmp_path, '"a"', "", '"b"', name="in.jsonl.gz"))) == 2

    def test_a_list(self) -> None:
        """With defaults for what an item does not say."""
        (item,) = asked(
            source_of([{"prompt": "a", "custom_id": "x"}], open_path=UPath), system_prompt="Be brief."
        )
        assert item.custom_id == "x"
        assert item.request.messages[0] == {"role": "system", "content": "Be brief."}


class TestTables:
    """CSV and Parquet fill a prompt from their columns."""

    def test_csv(self, tmp_path: Path) -> None:
        """Quoted line ends and a byte order mark included."""
        (tmp_path / "in.csv").write_text('\ufeffcustom_id,text\nx,"two\nlines"\n,plain\n', encoding="utf-8")
        items = asked(source_of(str(tmp_path / "in.csv"), prompt="Sum up: {text}", open_path=UPath))
        assert [(item.custom_id, item.request.messages[0]["content"]) for item in items] == [
            ("x", "Sum up: two\nlines"),
            (None, "Sum up: plain"),
        ]

    def test_parquet(self) -> None:
        """Only the columns that are needed are read, and values may be written in a format."""
        data = parquet_of(text=["a", None, " "], number=[1.0, 2.0, float("nan")], rest=["x", "y", "z"])
        assert problems_in(Remote(data).source("in.parquet", "{number:.2f}: {text}")) == (
            "row 2: nothing in column 'text'",
            "row 3: nothing in column 'number'; nothing in column 'text'",
        )
        (item,) = asked(Remote(parquet_of(number=[1.0])).source("in.parquet", "{number:.2f}"))
        assert item.request.messages[0]["content"] == "1.00"

    def test_a_column_of_bytes_is_text(self) -> None:
        """Many writers do not say so; what is no text is refused by its row."""
        data = parquet_of(text=["é".encode(), b"\xff"])
        assert problems_in(Remote(data).source("in.parquet", "{text}")) == ("row 2: not UTF-8",)
        (item,) = asked(Remote(parquet_of(text=["é".encode()])).source("in.parquet", "{text}"))
        assert item.request.messages[0]["content"] == "é"

    def test_parquet_is_read_as_a_stream(self) -> None:
        """However large a row group is: the first rows come long before its end is read."""
        texts = [random.Random(number).randbytes(600).hex() for number in range(20_000)]
        file = Remote(parquet_of(text=texts))
        read = items_of(file.source("in.parquet", "{text}"), Defaults())
        before = len(file.ranges)
        next(read)
        longest = max(end - start for start, end in file.ranges[before:])
        assert longest <= 5 * 1024 * 1024 < len(file.data) // 2

    def test_zero_is_a_name(self) -> None:
        """What is empty in a cell of text is a number in Parquet."""
        data = parquet_of(custom_id=[0, None], text=["a", "b"])
        items = asked(Remote(data).source("in.parquet", "{text}"))
        assert [item.custom_id for item in items] == ["0", None]

    def test_a_long_text_is_read(self) -> None:
        """The CSV reader's own limit is back afterwards."""
        before = csv.field_size_limit()
        (item,) = asked(Remote(b"text\n" + b"x" * 200_000).source("in.csv", "{text}"))
        assert len(item.request.messages[0]["content"]) == 200_000
        assert csv.field_size_limit() == before

    @pytest.mark.parametrize("data", [b"a,b\n1,2\n", parquet_of(a=[1], b=[2])], ids=["csv", "parquet"])
    def test_a_column_that_is_not_there(self, data: bytes) -> None:
        """Is noticed before the first row."""
        source = Remote(data).source("in.csv" if data[:1] == b"a" else "in.parquet", "{text}")
        assert problems_in(source) == ("the prompt names column 'text'; the file has 'a', 'b'",)

    def test_a_column_that_is_there_twice(self) -> None:
        """Nobody knows which one is meant; others than those that are read may be."""
        header = b"\ntext,text,,\n"
        assert problems_in(Remote(header + b"a,b,,").source("in.csv", "{text}")) == (
            "column 'text' is there twice",
        )
        assert len(asked(Remote(b"text,,\na,,").source("in.csv", "{text}"))) == 1

    @pytest.mark.parametrize(
        ("text", "problems"),
        [
            (
                "hello, world",
                ["line 2: 2 fields where the header has 1: a comma inside of a text needs quotes"],
            ),
            ('"one\ntwo\n', ["line 2: not CSV: unexpected end of data"]),
            ('"one" two', ["line 2: not CSV: ',' expected after '\"'"]),
            ("\n\n' '\n \nb", ["line 5: nothing in column 'text'"]),
            ('"two\nlines"\n" \n "', ["line 4: nothing in column 'text'"]),
            ("a\0b\nc", ["line 2: holds a NUL character"]),
            ("a\r\n\r\n \r\n", ["line 4: nothing in column 'text'"]),
            ('"a" b\n\xff\na', ["line 2: not CSV: ',' expected after '\"'", "line 3: not UTF-8"]),
        ],
    )
    def test_a_wrong_row_is_named_by_its_line(self, text: str, problems: list[str]) -> None:
        """By the one it starts at, in the file; the others are read all the same."""
        data = b"text\n" + text.encode("latin-1")
        assert problems_in(Remote(data).source("in.csv", "S: {text}")) == tuple(problems)

    def test_a_row_that_ends_early(self) -> None:
        """Lacks what the prompt needs, or not."""
        source = Remote(b"text,more\na,b\nc\n").source("in.csv", "{text}{more}")
        assert problems_in(source) == ("line 3: nothing in column 'more'",)
        assert len(asked(Remote(b"text,more\na,b\nc\n").source("in.csv", "{text}"))) == 2

    def test_a_format_that_does_not_fit_the_column(self) -> None:
        """A CSV file holds nothing but text."""
        (problem,) = problems_in(Remote(b"n\n1\n").source("in.csv", "{n:.2f}"))
        assert problem.startswith("line 2: prompt does not fit the columns")

    @pytest.mark.parametrize(
        ("name", "data"),
        [("in.csv", b"\xff\xfet\0e\0"), ("in.csv", b'"text'), ("in.csv", b""), ("in.parquet", b"PAR?")],
    )
    def test_a_file_that_is_not_what_it_says(self, name: str, data: bytes) -> None:
        """Is refused, in words that can be written."""
        (problem,) = problems_in(Remote(data).source(name, "{text}"))
        assert problem.encode()

    def test_parquet_needs_its_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For reading and for writing; the message names it."""
        real = builtins.__import__

        def without(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("pyarrow"):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(InvalidRequest, match=r"airflow-provider-distribute\[parquet\]"):
            source_of(str(tmp_path / "in.parquet"), prompt="{text}", open_path=UPath)
        with pytest.raises(InvalidRequest, match=r"airflow-provider-distribute\[parquet\]"):
            format_from("parquet")

    @pytest.mark.parametrize("prompt", ["no column", "{}", "{a.b}", "{a[0]}", "{", "{a:{b}}"])
    def test_a_prompt_names_columns(self, prompt: str) -> None:
        """And nothing inside of them."""
        with pytest.raises(InvalidRequest):
            source_of("in.csv", prompt=prompt, open_path=UPath)


class TestStorage:
    """Where files are, and what becomes of a run when they cannot be read."""

    @pytest.mark.parametrize(
        "path",
        [pathlib.Path("/a/b.jsonl"), UPath("/a/b.jsonl"), UPath("memory:///a/b.jsonl")],
        ids=lambda path: type(path).__name__,
    )
    def test_a_path_is_as_good_as_its_uri(self, path: Any) -> None:
        """As in result_path, whatever makes it a path."""
        assert uri_of(path) == str(path)
        opened: list[str] = []

        def note(uri: str) -> Any:
            opened.append(uri)
            raise FileNotFoundError

        with pytest.raises(InputUnreadable):
            list(source_of(path, open_path=note).lines())
        assert opened == [str(path)]

    def test_what_names_no_file(self, tmp_path: Path) -> None:
        """Has no URI; an entry of a directory does."""
        (tmp_path / "x.jsonl").touch()
        (entry,) = os.scandir(tmp_path)
        assert (uri_of(["a"]), uri_of(None), uri_of(entry)) == (None, None, str(tmp_path / "x.jsonl"))

    @pytest.mark.parametrize(
        ("name", "prompt", "data"),
        [
            ("in.jsonl", None, b'\xef\xbb\xbf"a"\n \n"b"'),
            ("in.jsonl.gz", None, gzip.compress(b'"a"\n"b"\n')),
            ("in.csv", "{text}", b"text\na\nb\n"),
            ("in.CSV.gz", "{text}", gzip.compress(b"text\na\nb\n")),
            ("in.parquet", "{text}", parquet_of(text=["a", "b"])),
        ],
        ids=["jsonl", "jsonl.gz", "csv", "CSV.gz", "parquet"],
    )
    def test_any_storage_will_do(self, name: str, prompt: str | None, data: bytes) -> None:
        """Files over a network are read like local ones."""
        items = asked(Remote(data).source(name, prompt))
        assert [item.request.messages[0]["content"] for item in items] == ["a", "b"]

    def test_a_file_is_read_as_a_stream(self) -> None:
        """The first lines are there long before the last ones are read."""
        storage = Remote(b'"a question"\n' * 100_000)
        lines = storage.source("in.jsonl").lines()
        next(lines)
        assert storage.furthest < 100_000
        lines.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("error", "transient"),
        [
            (TimeoutError(), True),
            (ConnectionResetError(104, "reset"), True),
            (RuntimeError("throttled"), True),
            (PermissionError(13, "no"), False),
        ],
    )
    def test_a_storage_that_fails_halfway(self, error: Exception, transient: bool) -> None:
        """Is worth a retry, unless a person has to act."""
        storage = Remote(b'"%s"\n' % (b"x" * 997) * 200, fails_at=150_000, error=error)
        with pytest.raises(InputUnreadable, match=rf"after line \d+: .*{type(error).__name__}") as raised:
            stage(storage.source("in.jsonl"), plan())
        assert raised.value.transient is transient

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        """Is named; trying again does not help."""
        with pytest.raises(InputUnreadable, match=r"(?s)missing\.jsonl.*FileNotFoundError") as raised:
            stage(source_of(str(tmp_path / "missing.jsonl"), open_path=UPath), plan())
        assert not raised.value.transient

    @pytest.mark.parametrize("fails", ["path", "fs"])
    @pytest.mark.parametrize(
        ("error", "remedy", "transient"),
        [
            (ValueError("no such scheme"), "install the Airflow provider of this storage", False),
            (ImportError("no such package"), "install the Airflow provider of this storage", False),
            (RuntimeError("no such connection"), "a retry tries again", True),
        ],
        ids=lambda it: type(it).__name__,
    )
    def test_a_storage_that_cannot_be_opened(
        self, fails: str, error: Exception, remedy: str, transient: bool
    ) -> None:
        """Is said with the reason and the remedy, and is no damage to the input."""

        class Path:
            path = "in.jsonl"

            @property
            def fs(self) -> Any:
                raise error

        def open_path(uri: str) -> Any:
            if fails == "path":
                raise error
            return Path()

        message = rf"(?s)'odd://in\.jsonl'.*it cannot be opened \({type(error).__name__}: {error}\): {remedy}"
        with pytest.raises(InputUnreadable, match=message) as raised:
            stage(source_of("odd://in.jsonl", open_path=open_path), plan())
        assert raised.value.transient is transient

    def test_a_file_that_breaks_off(self) -> None:
        """Adds that to what is wrong before."""
        lines = [b"7", *(b'"%s"' % sha256(b"%d" % number).hexdigest().encode() for number in range(10_000))]
        broken = gzip.compress(b"\n".join(lines))[:-100_000]
        first, last = problems_in(Remote(broken).source("in.jsonl.gz"))
        assert first == "line 1: a request is a prompt, a list of messages or a mapping, not int"
        assert re.fullmatch(r"after line \d{4}: it is damaged, .* \(EOFError\); reading stopped here", last)

    def test_a_damaged_page(self) -> None:
        """Is found when its rows are read."""
        whole = parquet_of(text=["a", "b"])
        (problem,) = problems_in(Remote(whole[:4] + b"\xff" * 36 + whole[40:]).source("in.parquet", "{text}"))
        assert problem.startswith("at the start: it is damaged")

    def test_a_file_that_is_not_compressed(self) -> None:
        """Although its name says so."""
        (problem,) = problems_in(Remote(b'"a"\n').source("in.jsonl.gz"))
        assert problem.startswith("at the start: it is damaged, or not what its name says (BadGzipFile)")

    @given(st.binary(max_size=200))
    @example(b"text\n\xff")
    @example(b'text\n"')
    def test_no_bytes_raise_anything_else(self, data: bytes) -> None:
        """Whatever a file holds, it is read or refused."""
        for name, prompt in (("in.jsonl", None), ("in.csv", "{text}"), ("in.jsonl.gz", None)):
            for body in (data, b"text,more\n" + data):
                with contextlib.suppress(InvalidInput):
                    stage(Remote(body).source(name, prompt), plan())


class TestRefusals:
    """What is wrong is said with its line, before anything is paid."""

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("{", "line 2: not JSON at column 2"),
            ("\xed\xb3\xbf", "line 2: not JSON at column 1"),
            ("7", "line 2: a request is a prompt, a list of messages or a mapping, not int"),
            ({"prompt": ""}, "line 2: the prompt is empty or not a string"),
            ({"prompt": "a", "custom_id": "first"}, "line 2: custom_id 'first' is there twice"),
            ({"prompt": "a", "custom_id": " "}, "line 2: custom_id: a text of 1 to 512 characters is needed"),
            (
                {"prompt": "a", "custom_id": True},
                "line 2: custom_id: a text of 1 to 512 characters is needed",
            ),
            (
                {"prompt": "a", "custom_id": "a\0"},
                "line 2: custom_id: a text of 1 to 512 characters is needed",
            ),
            ({"body": []}, "line 2: body: is not an object"),
            ({"body": {}, "url": "/v1/embeddings"}, "line 2: url: '/v1/embeddings' is not a chat completion"),
            ({"body": {}, "also": 1}, "line 2: also: unknown field of a batch line"),
            (
                {"prompt": "a", "custom_id": "\ud800"},
                "line 2: holds something that JSON cannot say (UnicodeEncodeError)",
            ),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path: Path, line: object, problem: str) -> None:
        """Whatever is wrong with it."""
        assert problems_in(lines_file(tmp_path, {"prompt": "a", "custom_id": "first"}, line)) == (problem,)

    @pytest.mark.parametrize("line", ["9" * 5000, "[" * 100_000], ids=["digits", "levels"])
    def test_json_beyond_what_can_be_read_is_named(self, tmp_path: Path, line: str) -> None:
        """There are limits to the length of a number, and to the depth of lists."""
        (problem,) = problems_in(lines_file(tmp_path, line))
        assert problem.startswith("line 1: not JSON: ")

    def test_what_the_service_forbids_is_named(self) -> None:
        """The same checks as for one request."""
        wrong = {"prompt": "a", "params": {"max_completion_tokens": 601}}
        (problem,) = problems_in(source_of([wrong], open_path=UPath))
        assert problem.startswith("requests[0]: params.max_completion_tokens")

    def test_all_wrong_lines_are_named_up_to_a_hundred(self) -> None:
        """Then reading stops, and the message says so."""
        assert len(problems_in(source_of(["a", *[7] * 3, "b"], open_path=UPath))) == 3
        with pytest.raises(InvalidInput, match="possibly more") as raised:
            stage(source_of([7] * 200, open_path=UPath), plan())
        assert len(raised.value.problems) == 100

    def test_an_empty_input_is_refused(self, tmp_path: Path) -> None:
        """A run of nothing is a mistake upstream."""
        assert problems_in(source_of([], open_path=UPath)) == ("it holds no requests",)
        assert problems_in(lines_file(tmp_path)) == ("it holds no requests",)

    def test_an_endless_line_ends_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would not fit in memory; what is wrong before it is named as well."""
        monkeypatch.setattr(inputs, "LONGEST_LINE", 10)
        long = b"x" * 11
        wrong = "line 1: a request is a prompt, a list of messages or a mapping, not int"
        assert problems_in(Remote(b"7\n" + long + b"\n7").source("in.jsonl")) == (
            wrong,
            "line 2: longer than 10 bytes; reading stopped here",
        )
        assert problems_in(Remote(b"text\n \n" + long + b"\n \n").source("in.csv", "{text}")) == (
            "line 2: nothing in column 'text'",
            "line 3: not CSV: longer than 10 characters; reading stopped here",
        )

    @pytest.mark.parametrize("requests", [{"prompt": "a"}, 7, None, "one\nprompt", " ", b"in.jsonl"])
    def test_what_is_no_input_at_all(self, requests: object) -> None:
        """A mapping would be read key by key, a string character by character."""
        with pytest.raises(InvalidRequest):
            source_of(requests, open_path=UPath)

    def test_a_prompt_belongs_to_a_table(self) -> None:
        """Not to a list, and not to JSON Lines; and a table needs one."""
        for requests, prompt in ((["a"], "{x}"), ("in.jsonl", "{x}"), ("in.csv", None)):
            with pytest.raises(InvalidRequest, match="prompt"):
                source_of(requests, prompt=prompt, open_path=UPath)
