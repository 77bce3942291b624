# SPDX-License-Identifier: Apache-2.0

"""
Reading what is to be asked, from a list or a file, as a stream.

Every line is read and checked before anything is sent; what is wrong is collected, up to a hundred lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_distribute.exceptions import InputUnreadable, InvalidInput, InvalidRequest
from airflow_provider_distribute.ledger.directory import INSTALL_STORAGE, UNKNOWN_STORAGE
from airflow_provider_distribute.models import OWN_FIELDS, ChatRequest
from airflow_provider_distribute.services.reading import clipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_distribute.ledger.directory import StoragePath

    OpenPath = Callable[[str], StoragePath]

__all__ = ["Defaults", "Item", "Shard", "Source", "items_of", "source_of", "uri_of"]

#: Lines reported at once.
MOST_PROBLEMS = 100
#: Bytes of the longest line that is read.
LONGEST_LINE = 16 * 1024 * 1024
#: Characters of the longest ``custom_id``; the OpenAI batch format has no more.
_LONGEST_CUSTOM_ID = 512
_CUSTOM_ID = "custom_id"
#: Bytes that are read ahead; what precedes damage in them is lost with it.
_BUFFER = 64 * 1024
#: Bytes of a column that are read at once. Many to a request where each costs a round trip.
_PARQUET_BUFFER = 4 * 1024 * 1024
_PARQUET_ROWS = 256
_NOT_UTF_8 = "not UTF-8"
_STOPPED = "reading stopped here"
#: Nobody finds the input there however often it is tried.
_NOT_THERE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
#: The bytes were read, and are not what they should be.
_DAMAGE = (ValueError, EOFError, NotImplementedError, gzip.BadGzipFile, zlib.error, csv.Error)


@dataclass(frozen=True, slots=True)
class Defaults:
    """
    What holds for requests that do not say otherwise.

    :param model: Model.
    :param system_prompt: Goes in front of conversations without a system message.
    :param params: Body fields.
    """

    model: str | None = None
    system_prompt: str | None = None
    params: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """
    One part of an input that several task instances share: every ``of``-th request, from ``number`` on.

    :param number: Which part, from 0.
    :param of: How many parts there are.
    """

    number: int = 0
    of: int = 1

    def index(self, row: int) -> int:
        """Return where in the whole input a row of this part stands."""
        return row * self.of + self.number


@dataclass(frozen=True, slots=True)
class Item:
    """
    One request as it was read.

    :param custom_id: The author's name for it, or ``None``.
    :param request: What is asked.
    """

    custom_id: str | None
    request: ChatRequest


class Source(ABC):
    """
    Where requests come from.

    :ivar name: For people, in messages.
    """

    name: str

    @property
    def arguments(self) -> Mapping[str, str]:
        """What an author gave to say where the requests are, by the argument's name."""
        return {}

    @abstractmethod
    def lines(self) -> Iterator[tuple[str, object]]:
        """
        Yield what stands there, each with a name for people such as ``line 3``.

        A line that cannot be read is yielded as the :class:`InvalidRequest` that says why.
        """


class _List(Source):
    def __init__(self, requests: Sequence[Any]) -> None:
        self.name = "The list of requests"
        self._requests = requests

    def lines(self) -> Iterator[tuple[str, object]]:
        for place, item in enumerate(self._requests):
            yield f"requests[{place}]", item


class _File(Source):
    _compression: ClassVar[str | None] = "infer"

    def __init__(self, uri: str, open_path: OpenPath) -> None:
        self.name = f"The input {uri!r}"
        self._uri = uri
        self._open_path = open_path

    @property
    def arguments(self) -> Mapping[str, str]:
        return {"requests": self._uri}

    def lines(self) -> Iterator[tuple[str, object]]:
        storage, path = self._place()
        last = None
        try:
            with (
                storage.open(path, "rb", compression=self._compression) as file,
                # The files of most storages cannot limit the length of a line they read.
                io.BufferedReader(file, _BUFFER) as buffered,
            ):
                for name, thing in self._lines(buffered):
                    yield name, thing
                    last = name
        except InvalidInput:
            raise
        except Exception as error:
            where = f"after {last}" if last else "at the start"
            if not _is_damage(error):
                raise self._unreadable(where, error) from error
            what = f"it is damaged, or not what its name says ({type(error).__name__})"
            yield where, InvalidRequest([f"{what}; {_STOPPED}"])

    def _place(self) -> tuple[Any, str]:
        """Return the storage and the path in it. Only now: who goes on with a copy need not have it."""
        try:
            path = self._open_path(self._uri)
            return path.fs, path.path
        except Exception as error:
            transient = not isinstance(error, UNKNOWN_STORAGE)
            follows = "a retry tries again" if transient else INSTALL_STORAGE
            what = f"it cannot be opened ({type(error).__name__}: {error}): {follows}"
            raise InputUnreadable([what], source=self.name, transient=transient) from error

    @abstractmethod
    def _lines(self, file: io.BufferedReader) -> Iterator[tuple[str, object]]:
        """Yield what :meth:`lines` does; any exception means that there is no more to read."""

    def _unreadable(self, where: str, error: Exception) -> InputUnreadable:
        transient = not isinstance(error, _NOT_THERE)
        follows = "a retry reads it again" if transient else "check the URI and its permissions"
        what = f"{where}: it cannot be read ({type(error).__name__}): {follows}"
        return InputUnreadable([what], source=self.name, transient=transient)


def _is_damage(error: Exception) -> bool:
    # A plain OSError without a number is what pyarrow and bz2 say of bytes that they cannot decode.
    return isinstance(error, _DAMAGE) or (type(error) is OSError and error.errno is None)


class _JsonLines(_File):
    def _lines(self, file: io.BufferedReader) -> Iterator[tuple[str, object]]:
        number = 0
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(raw) > LONGEST_LINE:
                yield f"line {number}", InvalidRequest([f"longer than {LONGEST_LINE} bytes; {_STOPPED}"])
                return
            if not raw.isspace():
                yield f"line {number}", _parsed(raw if number > 1 else raw.removeprefix(BOM_UTF8))


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError:
        return InvalidRequest([_NOT_UTF_8])
    except json.JSONDecodeError as error:
        return InvalidRequest([f"not JSON at column {error.colno}"])
    except (ValueError, RecursionError) as error:
        return InvalidRequest([f"not JSON: {error}"])


class _Table(_File):
    """Rows whose columns fill a prompt."""

    def __init__(self, uri: str, open_path: OpenPath, prompt: str) -> None:
        super().__init__(uri, open_path)
        self._prompt = prompt
        self._columns = _columns_of(prompt)

    @property
    def arguments(self) -> Mapping[str, str]:
        return {**super().arguments, "prompt": self._prompt}

    def _request(self, row: Mapping[str, Any]) -> object:
        empty = [name for name in self._columns if _blank(row.get(name))]
        if empty:
            return InvalidRequest([f"nothing in column {name!r}" for name in empty])
        try:
            prompt = self._prompt.format_map(row)
        except (ValueError, TypeError, OverflowError) as error:
            return InvalidRequest([f"prompt does not fit the columns: {error}"])
        custom_id = row.get(_CUSTOM_ID)
        return {"prompt": prompt} if _blank(custom_id) else {"prompt": prompt, _CUSTOM_ID: custom_id}

    def _wanted(self, names: Sequence[str]) -> list[str]:
        """Return the columns that are read, of those that are there."""
        said = clipped(", ".join(map(repr, names)) or "none")
        problems = [
            f"the prompt names column {name!r}; the file has {said}"
            for name in self._columns
            if name not in names
        ]
        wanted = [name for name in dict.fromkeys((*self._columns, _CUSTOM_ID)) if name in names]
        problems += [f"column {name!r} is there twice" for name in wanted if names.count(name) > 1]
        if problems:
            raise InvalidInput(problems, source=self.name)
        return wanted


def _blank(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


class _Csv(_Table):
    def _lines(self, file: io.BufferedReader) -> Iterator[tuple[str, object]]:
        # What is not UTF-8 is found row by row, so that its line can be named.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        before = csv.field_size_limit(LONGEST_LINE)
        try:
            yield from self._rows(csv.reader(_bounded(text), strict=True))
        finally:
            csv.field_size_limit(before)
            text.detach()

    def _rows(self, reader: Any) -> Iterator[tuple[str, object]]:
        header: list[str] = next(filter(None, reader), [])
        places = {name: header.index(name) for name in self._wanted(header)}
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"line {start}", InvalidRequest([f"not CSV: {error}"])
                continue
            if row:
                yield f"line {start}", self._cells(row, places, len(header))

    def _cells(self, row: list[str], places: Mapping[str, int], width: int) -> object:
        if len(row) > width:
            return InvalidRequest(
                [f"{len(row)} fields where the header has {width}: a comma inside of a text needs quotes"]
            )
        cells = {name: row[place] for name, place in places.items() if place < len(row)}
        told = "".join(cells.values())
        try:
            told.encode()
        except UnicodeEncodeError:
            return InvalidRequest([_NOT_UTF_8])
        return InvalidRequest(["holds a NUL character"]) if "\0" in told else self._request(cells)


def _bounded(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise csv.Error(f"longer than {LONGEST_LINE} characters; {_STOPPED}")
        yield line


class _Parquet(_Table):
    _compression: ClassVar[str | None] = None

    def __init__(self, uri: str, open_path: OpenPath, prompt: str) -> None:
        super().__init__(uri, open_path, prompt)
        try:
            import pyarrow.parquet as parquet  # type: ignore[import-untyped]
        except ImportError as error:
            raise InvalidRequest(
                ["reading Parquet needs pyarrow: pip install 'airflow-provider-distribute[parquet]'"],
                where="The run",
            ) from error
        self._table = parquet.ParquetFile

    def _lines(self, file: io.BufferedReader) -> Iterator[tuple[str, object]]:
        # Reading ahead would hold the whole column of a row group.
        table = self._table(file, buffer_size=_PARQUET_BUFFER, pre_buffer=False)
        wanted = self._wanted(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", self._decoded(row)

    def _decoded(self, row: Mapping[str, Any]) -> object:
        """Many writers leave out that a column of bytes is text."""
        try:
            texts = {name: cell.decode() for name, cell in row.items() if isinstance(cell, bytes)}
        except UnicodeDecodeError:
            return InvalidRequest([_NOT_UTF_8])
        return self._request({**row, **texts})


def _columns_of(prompt: str) -> list[str]:
    try:
        fields = [(name, spec or "") for _, name, spec, _ in Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise InvalidRequest([f"prompt: {error}"], where="The run") from error
    odd = [name for name, spec in fields if not name or "{" in spec or not {*name}.isdisjoint(".[]")]
    if odd or not fields:
        raise InvalidRequest(
            ["prompt must name columns, such as 'Summarise: {text}'; write {{ and }} for braces"],
            where="The run",
        )
    return list(dict.fromkeys(name for name, _ in fields))


_TABLES: Mapping[str, type[_Table]] = {".csv": _Csv, ".csv.gz": _Csv, ".parquet": _Parquet}


def uri_of(requests: object) -> str | None:
    """Return the URI that requests are read from, given as text or as a path; ``None``: they are no file."""
    if isinstance(requests, str):
        return requests
    if hasattr(requests, "fs"):  # an ObjectStoragePath or UPath; not all of them are PathLike
        return str(requests)
    return os.fsdecode(requests) if isinstance(requests, os.PathLike) else None


def source_of(requests: object, *, prompt: str | None = None, open_path: OpenPath) -> Source:
    """
    Return where requests come from.

    :param requests: A list of requests, or the URI or path of a JSON Lines, CSV or Parquet file.
    :param prompt: Filled from the columns of a CSV or Parquet file.
    :param open_path: From a URI to a path, such as ``ObjectStoragePath``.
    :raises InvalidRequest: it is neither, or the prompt does not fit.
    """
    uri = uri_of(requests)
    if uri is not None:
        return _file_source(uri, prompt, open_path)
    if isinstance(requests, Mapping | bytes) or not isinstance(requests, Sequence):
        raise InvalidRequest(
            [f"requests is a list of requests or the URI of a file, not {type(requests).__name__}"],
            where="The run",
        )
    if prompt is not None:
        raise InvalidRequest(["prompt is for CSV and Parquet files; a list brings its own"], where="The run")
    return _List(requests)


def _file_source(uri: str, prompt: str | None, open_path: OpenPath) -> Source:
    table = next((table for ending, table in _TABLES.items() if uri.lower().endswith(ending)), None)
    if "\n" in uri or not uri.strip():
        raise InvalidRequest(
            ["requests is one string: give a list of prompts, or the URI of a file"], where="The run"
        )
    if (table is None) != (prompt is None):
        raise InvalidRequest(["prompt belongs to CSV and Parquet files, and they need one"], where="The run")
    if table and prompt is not None:
        return table(uri, open_path, prompt)
    return _JsonLines(uri, open_path)


def items_of(source: Source, defaults: Defaults) -> Iterator[tuple[str, Item | InvalidRequest]]:
    """Yield the requests with their names for people; a wrong one comes as the error that says why."""
    for name, thing in source.lines():
        try:
            yield name, thing if isinstance(thing, InvalidRequest) else _item(thing, defaults)
        except InvalidRequest as error:
            yield name, error


def _item(thing: object, defaults: Defaults) -> Item:
    custom_id = None
    if isinstance(thing, Mapping):
        fields = dict(thing)
        custom_id = _custom_id(fields.pop("custom_id", None))
        thing = _from_batch_line(fields) if "body" in fields else fields
    request = ChatRequest.parse(
        thing, model=defaults.model, system_prompt=defaults.system_prompt, params=defaults.params
    )
    return Item(custom_id, request)


def _custom_id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_CUSTOM_ID or "\0" in value:
        raise InvalidRequest([f"custom_id: a text of 1 to {_LONGEST_CUSTOM_ID} characters is needed"])
    return value


def _from_batch_line(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read an OpenAI Batch input line: ``{"custom_id", "method", "url", "body"}``."""
    body = fields["body"]
    if not isinstance(body, Mapping):
        raise InvalidRequest(["body: is not an object"])
    url = fields.get("url", "/v1/chat/completions")
    if not str(url).endswith("/chat/completions"):
        raise InvalidRequest([f"url: {url!r} is not a chat completion"])
    unknown = fields.keys() - {"body", "method", "url"}
    if unknown:
        raise InvalidRequest([f"{name}: unknown field of a batch line" for name in sorted(unknown)])
    own = {name: body[name] for name in OWN_FIELDS if name in body}
    return {**own, "params": {name: value for name, value in body.items() if name not in own}}
