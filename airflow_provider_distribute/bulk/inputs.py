# SPDX-License-Identifier: Apache-2.0

"""
Reading what is to be asked, from a list or a file, as a stream.

Every line is read and checked before anything is sent; what is wrong is collected, up to a hundred lines.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.exceptions import InputUnreadable, InvalidInput, InvalidRequest
from airflow_provider_distribute.models import ChatRequest

if TYPE_CHECKING:
    from airflow_provider_distribute.ledger.directory import StoragePath

__all__ = ["Defaults", "Item", "Shard", "Source", "items_of", "source_of"]

#: Lines reported at once.
MOST_PROBLEMS = 100
#: Bytes of the longest line that is read.
LONGEST_LINE = 16 * 1024 * 1024
#: Characters of the longest ``custom_id``; the OpenAI batch format has no more.
_LONGEST_CUSTOM_ID = 512
_PARQUET_ROWS = 1024


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
    def __init__(self, path: StoragePath) -> None:
        self.name = f"The input {str(path)!r}"
        self._path = path

    def _open(self, **options: Any) -> Any:
        try:
            return self._path.fs.open(self._path.path, "rb", **options)
        except Exception as error:
            raise InputUnreadable(
                [f"it cannot be read ({type(error).__name__}): check the URI and its permissions"],
                source=self.name,
                transient=False,
            ) from error


class _JsonLines(_File):
    def lines(self) -> Iterator[tuple[str, object]]:
        number = 0
        with self._open(compression="infer") as file:
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise InvalidInput(
                        [f"line {number}: longer than {LONGEST_LINE} bytes"], source=self.name, more=True
                    )
                if raw.strip():
                    yield f"line {number}", _parsed(raw)


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return InvalidRequest([f"not JSON{where}"])


class _Table(_File):
    """Rows whose columns fill a prompt."""

    def __init__(self, path: StoragePath, prompt: str) -> None:
        super().__init__(path)
        self._prompt = prompt
        self._columns = _columns_of(prompt)

    def _requests(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[tuple[str, object]]:
        for number, row in rows:
            yield f"row {number}", self._request(row)

    def _request(self, row: Mapping[str, Any]) -> object:
        empty = [name for name in self._columns if row.get(name) is None]
        if empty:
            return InvalidRequest([f"nothing in column {name!r}" for name in empty])
        request = {"prompt": self._prompt.format_map(row)}
        return request | {"custom_id": row["custom_id"]} if row.get("custom_id") else request

    def _check(self, columns: Iterable[str]) -> None:
        there = list(columns)
        missing = [name for name in self._columns if name not in there]
        if missing:
            raise InvalidInput(
                [f"the prompt names column {name!r}; the file has {', '.join(there)}" for name in missing],
                source=self.name,
            )


class _Csv(_Table):
    def lines(self) -> Iterator[tuple[str, object]]:
        with self._open(compression="infer") as file:
            reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            try:
                self._check(reader.fieldnames or ())
                yield from self._requests(enumerate(reader, 1))
            except (csv.Error, UnicodeDecodeError) as error:
                raise InvalidInput(
                    [f"line {reader.line_num + 1}: not CSV in UTF-8 ({type(error).__name__})"],
                    source=self.name,
                ) from error


class _Parquet(_Table):
    def lines(self) -> Iterator[tuple[str, object]]:
        try:
            import pyarrow.parquet as parquet  # type: ignore[import-untyped]
        except ImportError as error:
            raise InvalidInput(
                ["reading Parquet needs pyarrow: pip install 'airflow-provider-distribute[parquet]'"],
                source=self.name,
            ) from error
        with self._open() as file:
            try:
                table = parquet.ParquetFile(file)
            except ValueError as error:
                raise InvalidInput(["not a Parquet file"], source=self.name) from error
            self._check(table.schema_arrow.names)
            wanted = [name for name in table.schema_arrow.names if name in {*self._columns, "custom_id"}]
            batches = table.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from self._requests(enumerate(rows, 1))


def _columns_of(prompt: str) -> list[str]:
    try:
        fields = [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise InvalidRequest([f"prompt: {error}"], where="The run") from error
    odd = [name for name in fields if not name or any(character in name for character in ".[]")]
    if odd or not fields:
        raise InvalidRequest(
            ["prompt must name columns, such as 'Summarise: {text}'; write {{ and }} for braces"],
            where="The run",
        )
    return list(dict.fromkeys(fields))


_TABLES: Mapping[str, type[_Table]] = {".csv": _Csv, ".csv.gz": _Csv, ".parquet": _Parquet}


def source_of(requests: object, *, prompt: str | None = None, open_path: Any = None) -> Source:
    """
    Return where requests come from.

    :param requests: A list of requests, or the URI of a JSON Lines, CSV or Parquet file.
    :param prompt: Filled from the columns of a CSV or Parquet file.
    :param open_path: From a URI to a path, such as ``ObjectStoragePath``.
    :raises InvalidRequest: it is neither, or the prompt does not fit.
    """
    if isinstance(requests, str):
        return _file_source(requests, prompt, open_path)
    if isinstance(requests, Mapping) or not isinstance(requests, Sequence):
        raise InvalidRequest(
            [f"requests is a list of requests or the URI of a file, not {type(requests).__name__}"],
            where="The run",
        )
    if prompt is not None:
        raise InvalidRequest(["prompt is for CSV and Parquet files; a list brings its own"], where="The run")
    return _List(requests)


def _file_source(uri: str, prompt: str | None, open_path: Any) -> Source:
    table = next((table for ending, table in _TABLES.items() if uri.lower().endswith(ending)), None)
    if "\n" in uri or not uri.strip():
        raise InvalidRequest(
            ["requests is one string: give a list of prompts, or the URI of a file"], where="The run"
        )
    if (table is None) != (prompt is None):
        raise InvalidRequest(["prompt belongs to CSV and Parquet files, and they need one"], where="The run")
    try:
        path = open_path(uri)
    except Exception as error:
        raise InvalidRequest(
            [f"requests: {uri!r} cannot be opened ({type(error).__name__}: {error})"], where="The run"
        ) from error
    return table(path, prompt) if table and prompt is not None else _JsonLines(path)


def items_of(source: Source, defaults: Defaults, shard: Shard) -> Iterator[tuple[str, Item | InvalidRequest]]:
    """Yield a shard's requests with their names for people; a wrong one comes as the error that says why."""
    for place, (name, thing) in enumerate(source.lines()):
        if place % shard.of != shard.number:
            continue
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
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_CUSTOM_ID:
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
    own = {name: body[name] for name in ("model", "messages", "metadata") if name in body}
    return {**own, "params": {name: value for name, value in body.items() if name not in own}}
