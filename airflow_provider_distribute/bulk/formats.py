# SPDX-License-Identifier: Apache-2.0

"""How results are written: JSON Lines, Parquet, or the lines of an OpenAI batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, get_args

from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.ledger.lines import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMATS", "STATUSES", "Format", "FormatName", "Row", "Status", "format_from"]

Status = Literal["succeeded", "failed", "invalid", "expired", "unknown", "not_submitted"]
STATUSES: tuple[Status, ...] = get_args(Status)

FormatName = Literal["jsonl", "parquet", "openai_batch"]

#: Rows of a row group, unless its texts are large.
_PARQUET_ROWS = 2048
#: Characters of a row group's texts from which on it is written.
_PARQUET_CHARACTERS = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """
    One input's outcome.

    :param custom_id: The author's name for it, or ``row-<index>``.
    :param index: Its place in the input, from 0.
    :param status: How it ended.
    :param output: The answer: text, or what ``output_type`` made of it.
    :param raw_output: The text as it came, when it did not fit ``output_type``.
    :param error: ``{"type", "message"}``, or ``None``.
    :param model: The model as the service names it, else the one that was asked for.
    :param finish_reason: Why the answer ended, in the service's word.
    :param usage: Token counts as the service gave them.
    :param cost: US dollars, an estimate from the counted tokens.
    :param job_id: The service's id of the newest job.
    :param attempts: How often the row was, or may have been, sent.
    :param submitted_at: When the newest job was accepted, ISO-8601 in UTC.
    :param finished_at: When it ended, as the service or else the look says.
    """

    custom_id: str
    index: int
    status: Status
    output: Any = None
    raw_output: str | None = None
    error: Mapping[str, str] | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    cost: float | None = None
    job_id: str | None = None
    attempts: int = 0
    submitted_at: str | None = None
    finished_at: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it ended with an answer that fits."""
        return self.status == "succeeded"

    @property
    def answered(self) -> bool:
        """Whether it ended with an answer, even one that does not fit."""
        return self.status in ("succeeded", "invalid")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        # dataclasses.asdict would copy the output, and more slowly than it is written.
        return dict(zip(_FIELDS, _values(self), strict=True))


_FIELDS = tuple(field.name for field in fields(Row))
_values = attrgetter(*_FIELDS)


class Format(ABC):
    """
    Writes rows to a stream.

    :cvar file: Name of the results.
    """

    file: ClassVar[str]

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    @classmethod  # noqa: B027  most formats need nothing
    def check(cls) -> None:
        """
        Find out, before anything is paid, whether this format can be written here.

        :raises InvalidRequest: something is missing.
        """

    @abstractmethod
    def write(self, row: Row, result: Mapping[str, Any] | None) -> None:
        """
        Write a row.

        :param result: What the service answered: :meth:`airflow_provider_distribute.models.Job.result`.
        """

    def close(self) -> None:  # noqa: B027  most formats hold nothing back
        """Write what is left; the stream stays open."""


def _line(value: Mapping[str, Any]) -> bytes:
    """Return one line of JSON that is one line to every reader: some split it at these characters, too."""
    text = to_json(value)
    for end, escaped in _OTHER_LINE_ENDS:
        text = text.replace(end, escaped)
    return (text + "\n").encode()


_OTHER_LINE_ENDS = (("\x85", r"\u0085"), ("\u2028", r"\u2028"), ("\u2029", r"\u2029"))


class _JsonLines(Format):
    file = "results.jsonl"

    def write(self, row: Row, result: Mapping[str, Any] | None) -> None:
        self._stream.write(_line(row.as_dict()))


class _OpenAIBatch(Format):
    """OpenAI's ``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``."""

    file = "results.jsonl"

    def write(self, row: Row, result: Mapping[str, Any] | None) -> None:
        line: dict[str, Any] = {"id": f"batch_req_{row.index}", "custom_id": row.custom_id}
        if result is not None and row.answered:
            body = {
                "id": row.job_id,
                "object": "chat.completion",
                "created": _epoch(result["created_at"] or row.submitted_at),
                "model": row.model,
                "choices": result["choices"],
                "usage": row.usage,
            }
            line["response"] = {"status_code": 200, "request_id": row.job_id, "body": body}
        else:
            line["response"] = None
        error = row.error
        line["error"] = {"code": error["type"], "message": error["message"]} if error else None
        self._stream.write(_line(line))


def _epoch(at: str | None) -> int:
    return int(datetime.fromisoformat(at).timestamp()) if at else 0


class _Parquet(Format):
    """One row group for some thousand rows. What has no fixed shape is JSON text: output, usage."""

    file = "results.parquet"

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        text = pyarrow.string()
        self._schema = pyarrow.schema(
            {
                **dict.fromkeys(("custom_id", "status", "output", "raw_output"), text),
                "index": pyarrow.int64(),
                "error": pyarrow.struct({"type": text, "message": text}),
                **dict.fromkeys(
                    ("model", "finish_reason", "usage", "job_id", "submitted_at", "finished_at"), text
                ),
                "cost": pyarrow.float64(),
                "attempts": pyarrow.int32(),
            }
        )
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(stream, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    @classmethod
    def check(cls) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise InvalidRequest(
                ["writing Parquet needs pyarrow: pip install 'airflow-provider-distribute[parquet]'"],
                where="The run",
            ) from error

    def write(self, row: Row, result: Mapping[str, Any] | None) -> None:
        told = row.as_dict()
        if row.output is not None and not isinstance(row.output, str):
            told["output"] = to_json(row.output)
        told["usage"] = None if row.usage is None else to_json(row.usage)
        self._rows.append(told)
        self._characters += len(told["output"] or "") + len(row.raw_output or "")
        if len(self._rows) == _PARQUET_ROWS or self._characters >= _PARQUET_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()
        self._characters = 0

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


FORMATS: Mapping[FormatName, type[Format]] = {
    "jsonl": _JsonLines,
    "parquet": _Parquet,
    "openai_batch": _OpenAIBatch,
}


def format_from(name: FormatName) -> type[Format]:
    """
    Return a format by its name, after finding out that it can be written.

    :raises InvalidRequest: something is missing for it.
    """
    FORMATS[name].check()
    return FORMATS[name]
