# SPDX-License-Identifier: Apache-2.0

"""What finished jobs answer: echoes, JSON by schema, tool calls, and what a script asks for."""

from __future__ import annotations

import contextlib
import enum
import json
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from airflow_provider_distribute.emulator import schemas
from airflow_provider_distribute.emulator.chance import generator
from tests.emulator.wire import TOKENS, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
    },
    {"type": "function", "function": {"name": "time"}},
]


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    """Something that refers to itself."""

    name: str
    parts: list[Part] = []


class Verdict(BaseModel):
    """The kind of type people ask models to fill."""

    label: Literal["spam", "ham"]
    score: Annotated[float, Field(gt=0, lt=1)]
    count: Annotated[int, Field(ge=3, le=4, multiple_of=4)]
    colour: Colour
    reason: Annotated[str, Field(min_length=40, max_length=60)]
    day: date
    tags: Annotated[list[str], Field(min_length=2)]
    pair: tuple[int, str]
    nested: Part
    either: int | str
    maybe: str | None = None


def test_the_answer_echoes_the_last_message(wire: Callable[..., Wire]) -> None:
    """After a tag, so that tests find their words in it."""
    wired = wire()
    assert wired.content(wired.job("Say hello.")).endswith("] Say hello.")


def test_the_answer_depends_on_prompt_and_seed_alone(wire: Callable[..., Wire]) -> None:
    """Not on what else was asked before."""
    first, again, other = wire(), wire(), wire(seed=1)
    again.job("Something else.")
    answer = first.content(first.job())
    assert answer == again.content(again.job())
    assert answer != other.content(other.job())
    assert answer != first.content(first.job("Say goodbye."))


def test_an_answer_is_cut_at_the_limit_of_tokens(wire: Callable[..., Wire]) -> None:
    """Only inference.net has a finish reason for it; distribute says stop."""
    wired = wire()
    job = wired.job("a b c d e", **{TOKENS[wired.service]: 3})
    completion = wired.completion(job)
    assert completion["usage"]["completion_tokens"] == 3
    reason = "stop" if wired.service == "distribute" else "length"
    assert completion["choices"][0]["finish_reason"] == reason


def test_distribute_cuts_at_128_tokens_unless_told_otherwise() -> None:
    """Its silent default; -1 is taken for no limit."""
    wired = Wire("distribute")
    usage = [
        wired.completion(wired.job("word " * 200, **fields))["usage"]["completion_tokens"]
        for fields in ({}, {"max_completion_tokens": -1})
    ]
    assert usage == [128, 201]


def test_n_answers_differ(wire: Callable[..., Wire]) -> None:
    """And are all counted."""
    wired = wire()
    completion = wired.completion(wired.job(n=2))
    assert [choice["index"] for choice in completion["choices"]] == [0, 1]
    assert len({choice["message"]["content"] for choice in completion["choices"]}) == 2
    assert completion["usage"]["completion_tokens"] == 6


def test_an_empty_conversation_is_answered(wire: Callable[..., Wire]) -> None:
    """No contract forbids it."""
    wired = wire()
    assert wired.content(wired.job(messages=[])).endswith("Hello.")


def test_inference_net_reads_content_parts() -> None:
    """Of which only text is echoed."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    wired = Wire("inference_net")
    parts = [{"type": "text", "text": "What is this?"}, image]
    job = wired.job(messages=[{"role": "user", "content": parts}])
    assert wired.content(job).strip().endswith("What is this?")


@pytest.mark.parametrize(
    ("choice", "name"),
    [("required", "weather"), ({"type": "function", "function": {"name": "time"}}, "time")],
)
def test_a_required_tool_is_called(wire: Callable[..., Wire], choice: object, name: str) -> None:
    """With arguments as JSON text; the content is empty on distribute and null on inference.net."""
    wired = wire()
    (answer,) = wired.completion(wired.job(tools=TOOLS, tool_choice=choice))["choices"]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] == ("" if wired.service == "distribute" else None)
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == name
    assert json.loads(call["function"]["arguments"]).keys() == ({"city"} if name == "weather" else set())


@pytest.mark.parametrize("choice", ["none", "auto", {}])
def test_a_tool_that_is_not_required_is_not_called(wire: Callable[..., Wire], choice: object) -> None:
    """The answer is in words."""
    wired = wire()
    (answer,) = wired.completion(wired.job(tools=TOOLS, tool_choice=choice))["choices"]
    assert answer["finish_reason"] == "stop"


def test_a_response_format_is_followed() -> None:
    """The answer is JSON that the pydantic model accepts."""
    wired = Wire("inference_net")
    schema = {"name": "verdict", "strict": True, "schema": Verdict.model_json_schema()}
    job = wired.job("Is it spam?", response_format={"type": "json_schema", "json_schema": schema})
    Verdict.model_validate_json(wired.content(job))


def test_json_mode_is_followed() -> None:
    """Without a schema it is an object."""
    wired = Wire("inference_net")
    assert isinstance(json.loads(wired.content(wired.job(response_format={"type": "json_object"}))), dict)


def test_a_schema_in_the_system_prompt_is_followed(wire: Callable[..., Wire]) -> None:
    """As one has to ask on distribute, which has no response_format; other braces before it do not matter."""
    schema = json.dumps(Verdict.model_json_schema())
    system = f"Use {{braces}} or {{}} freely. Answer by this schema: {schema} Only JSON."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Is it spam?"}]
    wired = wire()
    job = wired.job(messages=messages, **{TOKENS[wired.service]: 600})
    Verdict.model_validate_json(wired.content(job))


@pytest.mark.parametrize(
    "text", ["", "no braces", "{", '{"a": 1}', '{"type": "banana"}', "{'type': 'object'}"]
)
def test_what_is_no_schema_is_not_taken_for_one(text: str) -> None:
    """The answer stays in words."""
    assert schemas.embedded(text) is None


SIMPLE_SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 30, "maxLength": 40},
            {"type": "string", "format": "uuid"},
            {"type": "string", "format": "date-time"},
            {"type": "string", "default": "x"},
            {"type": "integer"},
            {"type": "integer", "minimum": 5, "exclusiveMaximum": 7},
            {"type": "number", "maximum": -1},
            {"type": "number", "minimum": 0.001, "maximum": 0.002},
            {"type": "number", "exclusiveMinimum": 0.5},
            {"type": "integer", "multipleOf": 7, "minimum": 15},
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["null", "integer"]},
            {"type": ["null"]},
            {"enum": ["a", 1, None]},
            {"const": {"k": []}},
            {"$ref": "#/$defs/leaf"},
            {},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda item, low: {"type": "array", "items": item, "minItems": low}, inner, st.integers(0, 3)
        ),
        st.builds(lambda a, b: {"type": "array", "prefixItems": [a, b], "minItems": 2}, inner, inner),
        st.builds(lambda item: {"items": item, "maxItems": 1}, inner),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(
            lambda parts: {"type": "object", "properties": parts, "required": sorted(parts)}
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"oneOf": parts[:1]}),
        st.builds(lambda a, b: {"allOf": [_object("x", a), _object("y", b)]}, inner, inner),
    ),
    max_leaves=6,
)


def _object(name: str, part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: part}, "required": [name]}


@settings(max_examples=150, deadline=None)
@given(SIMPLE_SCHEMAS, st.integers(0, 5))
def test_an_example_validates_against_its_schema(part: dict[str, Any], seed: int) -> None:
    """For every combination of the keywords that are understood."""
    schema = {"$defs": {"leaf": {"type": "integer", "minimum": 3}}, **part}
    value = schemas.example(schema, generator(seed), ["some", "words"])
    jsonschema.validate(value, schema)


KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "items", "enum", "anyOf", "allOf", "$ref", "minimum", "maximum", "minItems"),
        *("maxItems", "minLength", "maxLength", "required", "multipleOf", "exclusiveMinimum", "prefixItems"),
    ]
)
LEAVES = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["#/x", "object", "array", "string"])
)
NONSENSE = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYWORDS, NONSENSE, max_size=4))
def test_a_nonsensical_schema_gets_an_answer_or_a_value_error(schema: dict[str, Any]) -> None:
    """Nothing else: the job's look would end in a 500 that no fault asked for."""
    with contextlib.suppress(ValueError):
        json.dumps(schemas.example(schema, generator(0), ["word"]))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": None},
        {"type": "array", "minItems": 999, "items": {"type": "array", "minItems": 999, "items": {}}},
    ],
    ids=["nonsense", "too much"],
)
def test_what_cannot_be_followed_is_answered_in_words_and_called_with_nothing(schema: dict[str, Any]) -> None:
    """As a model would."""
    wired = Wire("inference_net")
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert wired.content(wired.job("Hi.", response_format=response_format)).endswith("Hi.")
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    (answer,) = wired.completion(wired.job(tools=[tool], tool_choice="required"))["choices"]
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


class TestScript:
    """What a request asks of its own job."""

    @pytest.mark.parametrize(
        ("prompt", "fields"),
        [("Hi.", {"metadata": {"emulate": "text=42"}}), ("Hi. [emulate: text=42]", {})],
        ids=["metadata", "prompt"],
    )
    def test_in_metadata_or_in_the_prompt(
        self, wire: Callable[..., Wire], prompt: str, fields: dict[str, Any]
    ) -> None:
        """The prompt is for callers that cannot set metadata."""
        wired = wire()
        assert wired.content(wired.job(prompt, **fields)) == "42"

    def test_the_words_of_both_are_joined(self, wire: Callable[..., Wire]) -> None:
        """The prompt's come last, and win."""
        wired = wire()
        job = wired.job(
            "Hi. [emulate: text=a; latency=5]", metadata={"emulate": "text=b;latency=9;null_content"}
        )
        wired.now += 5
        assert wired.completion(job)["choices"][0]["message"]["content"] is None

    def test_never(self, wire: Callable[..., Wire]) -> None:
        """Still processing after a month."""
        wired = wire(latency="10")
        job = wired.job(metadata={"emulate": "never"})
        wired.now += 30 * 86400
        assert wired.status(job) == ("PROCESSING" if wired.service == "distribute" else "In Progress")

    def test_latency(self, wire: Callable[..., Wire]) -> None:
        """Instead of the distribution's."""
        wired = wire(latency="1000")
        job = wired.job(metadata={"emulate": "latency=2"})
        wired.now += 2
        assert wired.status(job) in ("COMPLETED", "Success")

    def test_status(self, wire: Callable[..., Wire]) -> None:
        """An unknown word where the final one is due, and no answer."""
        wired = wire(latency="10")
        job = wired.job(metadata={"emulate": "status=ARCHIVED"})
        assert wired.status(job) in ("CREATED", "Queued")
        wired.now += 10
        assert wired.status(job) == "ARCHIVED"
        assert "usage" not in json.dumps(wired.result(job))

    def test_tokens(self, wire: Callable[..., Wire]) -> None:
        """For answers of a certain size, up to the request's limit."""
        wired = wire()
        job = wired.job(metadata={"emulate": "tokens=300"}, **{TOKENS[wired.service]: 400})
        assert wired.completion(job)["usage"]["completion_tokens"] == 300

    @pytest.mark.parametrize(
        ("word", "check"),
        [
            ("null_content", lambda c: c["choices"][0]["message"]["content"] is None),
            ("empty_choices", lambda c: c["choices"] == []),
            ("no_choices", lambda c: "choices" not in c),
            (
                "missing_fields",
                lambda c: not c.keys() & {"usage", "model", "created"} and "index" not in c["choices"][0],
            ),
            ("extra_fields", lambda c: "surprise" in c and "annotations" in c["choices"][0]["message"]),
            ("iso_times", lambda c: c["created"].startswith("2025-06-15T15:06:40")),
            (
                "no_choices; null_content; missing_fields; iso_times",
                lambda c: c.keys().isdisjoint({"choices", "created"}),
            ),
        ],
    )
    def test_oddities_of_the_answer(
        self, wire: Callable[..., Wire], word: str, check: Callable[[dict[str, Any]], bool]
    ) -> None:
        """What a client has to read without an error."""
        wired = wire()
        assert check(wired.completion(wired.job(metadata={"emulate": word})))

    @pytest.mark.parametrize("words", ["latency=soon", "tokens=many", "explode"])
    def test_a_word_that_cannot_be_read_is_400(self, wire: Callable[..., Wire], words: str) -> None:
        """A test with a typing error must not pass by luck."""
        assert wire().submit(metadata={"emulate": words}).status == 400
