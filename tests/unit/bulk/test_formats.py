# SPDX-License-Identifier: Apache-2.0

"""How rows are written: whatever could be read can be, and every line is strict JSON."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_distribute.bulk import formats
from airflow_provider_distribute.bulk.formats import FORMATS, FormatName, Row, format_from
from airflow_provider_distribute.bulk.output_types import Mismatch, output_type_from
from airflow_provider_distribute.services import SERVICES
from tests.unit.contracts import sample

USAGE = {"prompt_tokens": 1, "completion_tokens": 2}
GOOD = Row("a", 0, "succeeded", output={"word": "yes"}, usage=USAGE, cost=0.5, job_id="j", attempts=1)
BAD = Row("b", 1, "failed", error={"type": "failed", "message": "no"}, attempts=2)
CHOICES = [{"index": 0, "message": {"role": "assistant", "content": '{"word": "yes"}'}}]
RESULT = {"choices": CHOICES, "created_at": "2026-11-26T00:00:00+00:00"}


class Answer(pydantic.BaseModel):
    """What answers must be."""

    word: str
    more: Any = None


KINDS = [output_type_from(spec) for spec in (str, Answer, Any, dict[str, float], {"type": "object"}, {})]


def written(name: FormatName, *rows: Row) -> bytes:
    stream = io.BytesIO()
    format_ = format_from(name)(stream)
    for row in rows:
        format_.write(row, RESULT if row.status in ("succeeded", "invalid") else None)
    format_.close()
    return stream.getvalue()


def lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


def parquet(data: bytes) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(io.BytesIO(data))


class TestFormats:
    """One row for each input."""

    def test_json_lines(self) -> None:
        """Every field, in UTF-8; a line end inside of a text ends no line."""
        ends = "a\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029b"
        data = written("jsonl", GOOD, BAD, Row("ü", 2, "succeeded", output=ends))
        assert len(data.decode().splitlines()) == 3
        good, bad, odd = lines(data)
        assert good == {
            "custom_id": "a",
            "index": 0,
            "status": "succeeded",
            "output": {"word": "yes"},
            "raw_output": None,
            "error": None,
            "model": None,
            "finish_reason": None,
            "usage": USAGE,
            "cost": 0.5,
            "job_id": "j",
            "attempts": 1,
            "submitted_at": None,
            "finished_at": None,
        }
        assert bad["error"] == {"type": "failed", "message": "no"}
        assert (odd["custom_id"], odd["output"]) == ("ü", ends)

    def test_openai_batch_lines(self) -> None:
        """Readers of OpenAI's batch output find what they look for."""
        good, bad = lines(written("openai_batch", GOOD, BAD))
        assert good["response"]["body"]["choices"] == CHOICES
        assert (good["custom_id"], good["response"]["status_code"], good["error"]) == ("a", 200, None)
        assert (bad["response"], bad["error"]) == (None, {"code": "failed", "message": "no"})

    @pytest.mark.parametrize("service", SERVICES)
    @pytest.mark.parametrize("name", ["succeeded", "tool-call"])
    @pytest.mark.parametrize("created_at", [None, "2026-11-26T00:00:00.5+00:00"])
    def test_openai_reads_its_bodies(self, service: str, name: str, created_at: str | None) -> None:
        """With the types of its own client; the time is the service's, or else our own."""
        chat = pytest.importorskip("openai.types.chat")
        result = SERVICES[service].job_from("j", sample(f"{service}.{name}")).result()
        sent = "2026-11-25T00:00:00+00:00"
        row = Row("a", 0, "succeeded", model="m", usage=result["usage"], job_id="j", submitted_at=sent)
        stream = io.BytesIO()
        format_from("openai_batch")(stream).write(row, {**result, "created_at": created_at})
        (line,) = lines(stream.getvalue())
        completion = chat.ChatCompletion.model_validate(line["response"]["body"])
        assert completion.created == (1795651200 if created_at else 1795564800)
        assert completion.choices[0].message.content == result["content"]

    def test_parquet(self) -> None:
        """The same rows, with JSON text where the shape is free."""
        text = Row("c", 2, "succeeded", output="text")
        good, bad, plain = parquet(written("parquet", GOOD, BAD, text)).read().to_pylist()
        assert (json.loads(good["output"]), json.loads(good["usage"])) == ({"word": "yes"}, USAGE)
        assert (bad["error"], bad["usage"]) == ({"type": "failed", "message": "no"}, None)
        assert plain["output"] == "text"

    def test_no_rows(self) -> None:
        """A part of an input may be empty; its results can be read like any."""
        assert written("jsonl") == written("openai_batch") == b""
        assert parquet(written("parquet")).metadata.num_rows == 0


class TestBounds:
    """Parquet holds rows back, but not many."""

    def test_a_row_group_has_so_many_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And the last one what is left."""
        monkeypatch.setattr(formats, "_PARQUET_ROWS", 2)
        data = parquet(written("parquet", GOOD, BAD, GOOD))
        assert [data.metadata.row_group(number).num_rows for number in range(2)] == [2, 1]

    def test_a_row_group_of_large_texts_has_fewer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that memory does not depend on how long answers are."""
        monkeypatch.setattr(formats, "_PARQUET_CHARACTERS", 100)
        long = Row("c", 2, "invalid", raw_output="x" * 60)
        data = parquet(written("parquet", long, long, GOOD, BAD))
        assert [data.metadata.row_group(number).num_rows for number in range(2)] == [2, 2]


class TestWhatWasRead:
    """Whatever an output type reads."""

    @given(
        st.text(st.characters(), max_size=30)
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
            max_leaves=20,
        )
        .flatmap(lambda value: st.sampled_from([value, {"response": value}, {"word": "a", "more": value}]))
        .map(json.dumps)
    )
    def test_every_format_writes(self, content: str) -> None:
        """As it was read, in strict JSON."""
        rows = []
        for index, kind in enumerate(KINDS):
            with contextlib.suppress(Mismatch):
                rows.append(Row(f"row-{index}", index, "succeeded", output=kind.read(content)))
        for name in FORMATS:
            data = written(name, *rows)
            if name == "jsonl":
                assert [line["output"] for line in lines(data)] == [row.output for row in rows]
