# SPDX-License-Identifier: Apache-2.0

"""Reading what is to be asked; everything wrong is named, and nothing is sent."""

from __future__ import annotations

import builtins
import gzip
import json
import threading
from typing import TYPE_CHECKING, Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pydantic
import pytest
from upath import UPath

from airflow_provider_distribute.bulk import inputs
from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.inputs import Defaults, Item, Shard, items_of, source_of
from airflow_provider_distribute.bulk.output_types import Mismatch, output_type_from
from airflow_provider_distribute.bulk.run import Plan, stage
from airflow_provider_distribute.exceptions import InvalidInput, InvalidRequest
from airflow_provider_distribute.models import ChatRequest
from tests.unit.bulk.world import OWNER
from tests.unit.contracts import DISTRIBUTE, INFERENCE_NET

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_distribute.bulk.inputs import Source
    from airflow_provider_distribute.bulk.output_types import OutputType


def plan(**fields: Any) -> Plan:
    return Plan(DISTRIBUTE.settings(model="Llama-3.1 8B"), OWNER, **fields)


def problems_in(source: Source) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as raised:
        stage(source, plan())
    return raised.value.problems


def asked(source: Source, **defaults: Any) -> list[Item]:
    read = [item for _, item in items_of(source, Defaults(**defaults), Shard())]
    assert all(isinstance(item, Item) for item in read)
    return [item for item in read if isinstance(item, Item)]


def lines_file(tmp_path: Path, *lines: object, name: str = "in.jsonl") -> Source:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return source_of(str(path), open_path=UPath)


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
        (item,) = asked(source_of([{"prompt": "a", "custom_id": "x"}]), system_prompt="Be brief.")
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

    def test_parquet(self, tmp_path: Path) -> None:
        """Only the columns that are needed are read."""
        table = pyarrow.table({"text": ["a", None], "number": [1, 2], "rest": ["x", "y"]})
        pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
        source = source_of(str(tmp_path / "in.parquet"), prompt="{number}: {text}", open_path=UPath)
        assert problems_in(source) == ("row 2: nothing in column 'text'",)

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        """Is noticed before the first row."""
        (tmp_path / "in.csv").write_text("a,b\n1,2\n")
        source = source_of(str(tmp_path / "in.csv"), prompt="{text}", open_path=UPath)
        assert problems_in(source) == ("the prompt names column 'text'; the file has a, b",)

    def test_a_file_that_is_not_what_it_says(self, tmp_path: Path) -> None:
        """Not CSV, not Parquet."""
        (tmp_path / "in.csv").write_bytes(b"text\n\xff\xfe\n")
        (tmp_path / "in.parquet").write_bytes(b"PAR?")
        csv = source_of(str(tmp_path / "in.csv"), prompt="{text}", open_path=UPath)
        parquet = source_of(str(tmp_path / "in.parquet"), prompt="{text}", open_path=UPath)
        assert "not CSV in UTF-8" in problems_in(csv)[0]
        assert problems_in(parquet) == ("not a Parquet file",)

    def test_parquet_needs_its_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For reading and for writing; the message names it."""
        real = builtins.__import__

        def without(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("pyarrow"):
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        source = source_of(str(tmp_path / "in.parquet"), prompt="{text}", open_path=UPath)
        assert "airflow-provider-distribute[parquet]" in problems_in(source)[0]
        with pytest.raises(InvalidRequest, match="parquet"):
            format_from("parquet")

    @pytest.mark.parametrize("prompt", ["no column", "{}", "{a.b}", "{a[0]}", "{"])
    def test_a_prompt_names_columns(self, prompt: str) -> None:
        """And nothing inside of them."""
        with pytest.raises(InvalidRequest):
            source_of("in.csv", prompt=prompt, open_path=UPath)


class TestRefusals:
    """What is wrong is said with its line, before anything is paid."""

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("{", "line 2: not JSON at column 2"),
            ("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), "line 2: not JSON at column 1"),
            ("7", "line 2: a request is a prompt, a list of messages or a mapping, not int"),
            ({"prompt": ""}, "line 2: the prompt is empty or not a string"),
            ({"prompt": "a", "custom_id": "first"}, "line 2: custom_id 'first' is there twice"),
            ({"prompt": "a", "custom_id": " "}, "line 2: custom_id: a text of 1 to 512 characters is needed"),
            (
                {"prompt": "a", "custom_id": True},
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

    def test_what_the_service_forbids_is_named(self) -> None:
        """The same checks as for one request."""
        (problem,) = problems_in(source_of([{"prompt": "a", "params": {"max_completion_tokens": 601}}]))
        assert problem.startswith("requests[0]: params.max_completion_tokens")

    def test_all_wrong_lines_are_named_up_to_a_hundred(self) -> None:
        """Then reading stops, and the message says so."""
        assert len(problems_in(source_of(["a", *[7] * 3, "b"]))) == 3
        with pytest.raises(InvalidInput, match="possibly more") as raised:
            stage(source_of([7] * 200), plan())
        assert len(raised.value.problems) == 100

    def test_an_empty_input_is_refused(self, tmp_path: Path) -> None:
        """A run of nothing is a mistake upstream."""
        assert problems_in(source_of([])) == ("it holds no requests",)
        assert problems_in(lines_file(tmp_path)) == ("it holds no requests",)

    def test_a_file_that_cannot_be_read_is_refused(self, tmp_path: Path) -> None:
        """With its URI."""
        with pytest.raises(InvalidInput, match=r"(?s)missing\.jsonl.*FileNotFoundError"):
            stage(source_of(str(tmp_path / "missing.jsonl"), open_path=UPath), plan())

    def test_a_storage_that_is_not_there_is_refused(self) -> None:
        """Or one whose connection nobody defined."""

        def refuse(uri: str) -> Any:
            raise ValueError("no such scheme")

        with pytest.raises(InvalidRequest, match=r"'odd://in\.jsonl' cannot be opened.*no such scheme"):
            source_of("odd://in.jsonl", open_path=refuse)

    def test_an_endless_line_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would not fit in memory."""
        monkeypatch.setattr(inputs, "LONGEST_LINE", 10)
        assert problems_in(lines_file(tmp_path, "x" * 11)) == ("line 1: longer than 10 bytes",)

    @pytest.mark.parametrize("requests", [{"prompt": "a"}, 7, None, "one\nprompt", " "])
    def test_what_is_no_input_at_all(self, requests: object) -> None:
        """A mapping would be read key by key, a string character by character."""
        with pytest.raises(InvalidRequest):
            source_of(requests, open_path=UPath)

    def test_a_prompt_belongs_to_a_table(self) -> None:
        """Not to a list, and not to JSON Lines; and a table needs one."""
        for requests, prompt in ((["a"], "{x}"), ("in.jsonl", "{x}"), ("in.csv", None)):
            with pytest.raises(InvalidRequest, match="prompt"):
                source_of(requests, prompt=prompt, open_path=UPath)

    def test_an_unknown_format_is_refused(self) -> None:
        """With those there are."""
        with pytest.raises(InvalidRequest, match="jsonl, parquet, openai_batch"):
            format_from("xml")


class Answer(pydantic.BaseModel):
    """What answers must be."""

    word: str


SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
LIST_SCHEMA = {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}


class TestOutputTypes:
    """What an answer must be."""

    @pytest.mark.parametrize(
        ("spec", "content", "value"),
        [
            (str, "any text", "any text"),
            (Answer, '{"word": "a"}', {"word": "a"}),
            (Answer, '```json\n{"word": "a"}\n```', {"word": "a"}),
            (list[int], '{"response": [1, 2]}', [1, 2]),
            (SCHEMA, '{"word": "a"}', {"word": "a"}),
            (LIST_SCHEMA, '{"response": [1]}', [1]),
        ],
    )
    def test_an_answer_that_fits(self, spec: Any, content: str, value: object) -> None:
        """Becomes plain JSON, also out of a code fence."""
        assert output_type_from(spec).read(content) == value

    @pytest.mark.parametrize(
        ("spec", "content"),
        [
            (str, None),
            (Answer, None),
            (Answer, "text"),
            (Answer, '{"word": 1}'),
            (Answer, '{"word": "' + "x" * 5000),
            (list[int], "[1]"),
            (SCHEMA, "text"),
            (SCHEMA, '{"word": 1}'),
            (LIST_SCHEMA, "[1]"),
            (LIST_SCHEMA, '{"response": ["' + "x" * 5000 + '"]}'),
        ],
    )
    def test_an_answer_that_does_not_fit(self, spec: Any, content: str | None) -> None:
        """Is explained in a few words."""
        with pytest.raises(Mismatch) as raised:
            output_type_from(spec).read(content)
        assert 0 < len(str(raised.value)) <= 2000

    @pytest.mark.parametrize("spec", [{"type": "nonsense"}, threading.Thread, 7])
    def test_what_is_no_type(self, spec: Any) -> None:
        """Is refused before anything is sent."""
        with pytest.raises(InvalidRequest):
            output_type_from(spec)

    def ask(self, output_type: OutputType, *messages: dict[str, Any], by_field: bool = True) -> ChatRequest:
        """Return a request with the type asked for."""
        return output_type.asked_of(ChatRequest(messages=messages), by_response_format=by_field)

    def test_text_is_not_asked_for(self) -> None:
        """The request goes as it is."""
        request = ChatRequest.parse("What?")
        assert output_type_from(str).asked_of(request, by_response_format=True) is request

    def test_a_schema_is_asked_for_in_the_prompt(self) -> None:
        """In the system message that is there, or in one of its own."""
        kind = output_type_from(Answer)
        user = {"role": "user", "content": "What?"}
        own = self.ask(kind, user, by_field=False)
        joined = self.ask(kind, {"role": "system", "content": "Be brief."}, user, by_field=False)
        assert [message["role"] for message in own.messages] == ["system", "user"]
        assert joined.messages[0]["content"].startswith("Be brief.\n\nAnswer with one JSON value")
        assert own.params == {}

    def test_a_schema_is_asked_for_by_the_field_where_there_is_one(self) -> None:
        """Under the type's name; the author's own field wins."""
        wanted = self.ask(output_type_from(Answer), {"role": "user", "content": "What?"}).params[
            "response_format"
        ]
        assert (wanted["type"], wanted["json_schema"]["name"]) == ("json_schema", "Answer")

    def test_inference_net_gets_the_field(self) -> None:
        """And the checks of the service let it through."""
        settings = INFERENCE_NET.settings()
        staged = stage(source_of(["What?"]), Plan(settings, OWNER, output_type=output_type_from(Answer)))
        assert staged.count == 1
