# SPDX-License-Identifier: Apache-2.0

"""What an answer must be: asked for, read, and never in the way of the other rows."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Annotated, Any, Literal

import httpx
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.output_types import Mismatch, output_type_from
from airflow_provider_distribute.bulk.run import Plan, stage
from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.ledger.lines import to_json
from airflow_provider_distribute.models import ChatRequest
from tests.unit.bulk.world import OWNER, World
from tests.unit.contracts import INFERENCE_NET

if TYPE_CHECKING:
    from airflow_provider_distribute.bulk.output_types import OutputType


class Answer(pydantic.BaseModel):
    """What answers must be."""

    word: str


class Score(pydantic.BaseModel):
    """A number."""

    score: float


SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
LIST_SCHEMA = {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}


class TestReading:
    """From an answer's text to plain JSON."""

    @pytest.mark.parametrize(
        ("spec", "content", "value"),
        [
            (str, "any text", "any text"),
            (Answer, '{"word": "a"}', {"word": "a"}),
            (Answer, '```json\n{"word": "a"}\n```', {"word": "a"}),
            (list[int], '{"response": [1, 2]}', [1, 2]),
            (SCHEMA, '{"word": "a"}', {"word": "a"}),
            (LIST_SCHEMA, '{"response": [1]}', [1]),
            ({}, '{"response": 18446744073709551615}', 2**64 - 1),
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

    @pytest.mark.parametrize(
        ("spec", "content", "why"),
        [
            (Score, '{"score": NaN}', "not finite"),
            (Score, '{"score": 1e999}', "not finite"),
            ({"type": "object"}, '{"score": Infinity}', "not finite"),
            (Annotated[int, "any"], '{"response": 18446744073709551616}', "64 bits"),
            ({}, '{"response": -9223372036854775809}', "64 bits"),
            ({}, '{"response": ' + "9" * 5000 + "}", "not JSON"),
            ({}, '{"response": ' + "[" * 100_000, "not JSON"),
            ({}, '{"response": ' + "[" * 120 + "]" * 120 + "}", "nested more than 100 levels"),
            (dict[str, Any], '{"a": ' * 150 + "1" + "}" * 150, "nested more than 100 levels"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_an_answer_that_readers_of_the_results_could_not_take(
        self, spec: Any, content: str, why: str
    ) -> None:
        """Is a mismatch of one row: pandas would read none of a file with such a line."""
        with pytest.raises(Mismatch, match=why):
            output_type_from(spec).read(content)

    def test_half_a_surrogate_pair_is_replaced(self) -> None:
        """UTF-8 cannot say it, neither in the answer nor in what is wrong with it."""
        assert output_type_from(SCHEMA).read('{"word": "a\\ud800"}') == {"word": "a\ufffd"}
        nested = {"type": "object", "additionalProperties": {"type": "string"}}
        with pytest.raises(Mismatch) as raised:
            output_type_from(nested).read('{"\\ud800": 1}')
        assert str(raised.value).encode()

    @pytest.mark.parametrize(
        "error", [KeyError("zz"), RuntimeError("no"), RecursionError(), ValueError("\ud800")]
    )
    def test_whatever_an_authors_validator_raises_is_a_mismatch(self, error: Exception) -> None:
        """The answer is paid for: its row is invalid, and the others land."""

        def refuse(value: str) -> str:
            raise error

        with pytest.raises(Mismatch) as raised:
            output_type_from(Annotated[str, pydantic.AfterValidator(refuse)]).read('{"response": "a"}')
        assert str(raised.value).encode()

    def test_whatever_an_author_makes_of_an_answer_must_be_json(self) -> None:
        """A serializer may return anything."""
        odd = Annotated[str, pydantic.PlainSerializer(lambda value: threading.Lock(), return_type=Any)]
        with pytest.raises(Mismatch):
            output_type_from(odd).read('{"response": "a"}')

    @given(
        st.one_of(
            st.text(st.characters(), max_size=40),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
            )
            .flatmap(
                lambda value: st.sampled_from([value, {"response": value}, {"word": value}, {"score": value}])
            )
            .map(json.dumps),
        )
    )
    @example('{"response": "\ud800"}')
    def test_no_answer_raises_anything_else(self, content: str) -> None:
        """Any text is read as strict JSON in UTF-8, or is a mismatch whose words can be written too."""
        for kind in KINDS:
            try:
                value = kind.read(content)
            except Mismatch as error:
                value = str(error)
            assert json.loads(to_json(value).encode()) == value


KINDS = [
    output_type_from(spec) for spec in (str, Answer, Score, Any, dict[str, Any], SCHEMA, LIST_SCHEMA, {})
]


class TestDefinitions:
    """What an author may give."""

    @pytest.mark.parametrize(
        "spec",
        [
            {"type": "nonsense"},
            {"type": "object", "properties": {"x": {"$ref": "#/$defs/missing"}}},
            {"type": "object", "properties": {"x": {"$ref": "https://example.org/schema"}}},
            {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}},
            {"const": float("nan")},
            {"description": "\ud800"},
            threading.Thread,
            "Undefined",
            7,
        ],
        ids=repr,
    )
    def test_what_cannot_be_asked_for(self, spec: Any) -> None:
        """Is refused before anything is sent, references that lead nowhere included."""
        with pytest.raises(InvalidRequest, match="output_type"):
            output_type_from(spec)

    def test_references_are_followed_where_schemas_stand(self) -> None:
        """Not in a value that only looks like one; anchors and embedded schemas are found."""
        kind = output_type_from(
            {
                "type": "object",
                "properties": {
                    "a": {"$ref": "#word"},
                    "b": {"$ref": "urn:example:n"},
                    "c": {"const": {"$ref": "#/nowhere"}},
                    "d": True,
                },
                "$defs": {"w": {"$anchor": "word", "type": "string"}, "n": {"$id": "urn:example:n"}},
            }
        )
        assert kind.read('{"a": "x", "b": 1}') == {"a": "x", "b": 1}

    def test_a_schema_is_the_runs_own(self) -> None:
        """What the author's code does to it later changes nothing."""
        schema: dict[str, Any] = {"type": "object", "required": ["a"]}
        kind = output_type_from(schema)
        schema["required"].append("b")
        assert kind.read('{"a": 1}') == {"a": 1}


class TestAsking:
    """How a type is asked for."""

    def ask(self, output_type: OutputType, *messages: dict[str, Any], by_field: bool = True) -> ChatRequest:
        """Return a request with the type asked for."""
        return output_type.asked_of(ChatRequest(messages=messages), by_response_format=by_field)

    def wanted(self, spec: Any) -> Any:
        """Return what is asked for by the field."""
        asked = self.ask(output_type_from(spec), {"role": "user", "content": "What?"})
        return asked.params["response_format"]["json_schema"]

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
        assert joined.messages[1] == user
        assert own.params == {}

    def test_a_schema_is_asked_for_by_the_field_where_there_is_one(self) -> None:
        """Under the type's name."""
        wanted = self.wanted(Answer)
        assert (wanted["name"], wanted["schema"]) == ("Answer", Answer.model_json_schema())

    def test_an_authors_own_field_wins(self) -> None:
        """The type is still asked for in the prompt."""
        own = {"response_format": {"type": "json_object"}}
        request = ChatRequest.parse({"prompt": "What?", "params": own})
        asked = output_type_from(Answer).asked_of(request, by_response_format=True)
        assert asked.params == own

    def test_inference_net_gets_the_field(self) -> None:
        """And the checks of the service let it through."""
        settings = INFERENCE_NET.settings()
        staged = stage(
            source_of(["What?"], open_path=UPath), Plan(settings, OWNER, output_type=output_type_from(Answer))
        )
        assert staged.count == 1

    def closed(self, **properties: Any) -> dict[str, Any]:
        """Return an object that is closed and needs all it may hold."""
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def test_strict_mode_is_asked_for_where_the_schema_fits_it(self) -> None:
        """Every object in it is closed and requires all it may hold."""

        class Part(pydantic.BaseModel, extra="forbid"):
            kind: Literal["a", "b"]
            more: Part | None

        inner = self.closed(a={"type": "string"})
        for spec in (
            Part,
            list[Part],
            list[int],
            inner,
            self.closed(a={"type": "array", "items": inner}, b={"anyOf": [inner, {"type": "null"}]}),
            {**self.closed(a={"$ref": "#/definitions/x"}), "definitions": {"x": inner}},
            self.closed(),
        ):
            assert self.wanted(spec)["strict"] is True, spec

    def test_strict_mode_is_not_asked_for_otherwise(self) -> None:
        """A strict service would answer 400 to every row, and the schema means what its author wrote."""
        optional = {**self.closed(a={"type": "string"}), "required": []}
        is_open = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
        for spec in (
            Answer,
            dict[str, int],
            list[Answer],
            is_open,
            optional,
            self.closed(a=optional),
            self.closed(a={"type": "array", "items": is_open}),
            self.closed(a={"anyOf": [is_open, {"type": "null"}]}),
            {**self.closed(a={"$ref": "#/$defs/x"}), "$defs": {"x": is_open}},
            {**self.closed(a={"$ref": "#/definitions/x"}), "definitions": {"x": is_open}},
            self.closed(a={"type": "string", "maxLength": 3}),
            self.closed(a={}),
            self.closed(a=True),
        ):
            assert self.wanted(spec)["strict"] is False, spec


@pytest.mark.usefixtures("impatient")
class TestRows:
    """What becomes of an answer that is odd."""

    def test_one_odd_answer_leaves_the_others_as_they_are(self, world: World) -> None:
        """Its row is invalid and keeps the text."""
        world.service.answer = lambda prompt: '{"score": %s}' % ("NaN" if prompt == "b" else "1.5")
        world.attempt(["a", "b", "c"], output_type=output_type_from(Score))
        assert [(row["status"], row["output"]) for row in world.results()] == [
            ("succeeded", {"score": 1.5}),
            ("invalid", None),
            ("succeeded", {"score": 1.5}),
        ]
        assert world.results()[1]["raw_output"] == '{"score": NaN}'

    def test_tool_calls_are_no_answer_where_a_type_was_asked_for(self, world: World) -> None:
        """The row is invalid, and keeps the calls."""
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        world.service._result = lambda job_id: httpx.Response(  # type: ignore[method-assign]
            200, json={"status": "COMPLETED", "choices": [{"message": message}]}
        )
        world.attempt(["a"], output_type=output_type_from(Answer))
        (row,) = world.results()
        assert (row["status"], row["error"]["type"]) == ("invalid", "invalid_output")
        assert json.loads(row["raw_output"]) == [call]
