# SPDX-License-Identifier: Apache-2.0

"""
What a request may look like inside, and that the emulator agrees.

The emulator's contracts are written from the same documents, apart from the services: what is sent they
accept. Where they take more, such as a request without an answer's limit, the service is the stricter one.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from airflow_provider_distribute.emulator.contracts import CONTRACTS as EMULATED
from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.models import ChatRequest
from tests.unit.contracts import CONTRACTS

HUGE = 10**400
ONLY_TYPE = {"type": "object", "default": None, "x-note": [1, None]}
FUNCTION = {"name": "f", "description": "d", "parameters": ONLY_TYPE, "strict": False, "more": None}
PNG = {"url": "data:image/png;base64,AA==", "detail": "low"}
SCHEMA = {"name": "n", "strict": True, "schema": ONLY_TYPE, "description": None}


def content(value: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": value}]}


def params(**values: object) -> dict[str, Any]:
    return {"prompt": "x", "params": values}


def metadata(**values: object) -> dict[str, Any]:
    return {"prompt": "x", "metadata": values}


def sent(service: str, item: object, **fields: Any) -> dict[str, Any]:
    """Return the body that goes out, as the service reads it."""
    contract = CONTRACTS[service]
    call = contract.service.describe_submit(ChatRequest.parse(item), contract.settings(**fields))
    assert call.written is not None
    read: dict[str, Any] = json.loads(call.written)
    return read


def faults(service: str, body: dict[str, Any]) -> list[str]:
    """Return what the emulator would answer 400 for."""
    return list(EMULATED[service].problems("chat", body))


FORBIDDEN = [
    ("distribute", params(tools=[{}]), "params.tools.0.type: "),
    ("distribute", params(tools=[{"type": "web", "function": FUNCTION}]), "params.tools.0.type: "),
    ("distribute", params(tools=[{"type": "web"}]), "params.tools.0.function: "),
    ("distribute", params(tools=["f"]), "params.tools.0: "),
    (
        "distribute",
        params(tools=[{"type": "function", "function": {}}]),
        "params.tools.0.function.name: Field required",
    ),
    (
        "distribute",
        params(tools=[{"type": "function", "function": {**FUNCTION, "strict": "no"}}]),
        "params.tools.0.function.strict: ",
    ),
    (
        "distribute",
        params(tools=[{"type": "function", "function": {**FUNCTION, "parameters": None}}]),
        "params.tools.0.function.parameters: ",
    ),
    ("distribute", params(stream_options={"include_usage": "x"}), "params.stream_options.include_usage: "),
    ("distribute", params(stream_options={"include_usage": 1}), "params.stream_options.include_usage: "),
    ("distribute", params(seed=HUGE), "params.seed: is too large for a number in JSON"),
    ("distribute", params(temperature=True), "params.temperature: must be a number, not true or false"),
    ("distribute", params(n=True), "params.n: must be a number, not true or false"),
    (
        "distribute",
        {"messages": [{"role": "user", "content": "x", "name": 5}]},
        "messages.0: the name must be a string",
    ),
    (
        "distribute",
        {"messages": [{"role": "user", "content": "x", "name": None}]},
        "messages.0: the name must be a string",
    ),
    ("distribute", content(({"type": "text", "text": "x"},)), "messages.0: the content must be a plain "),
    ("inference_net", params(response_format={"type": "xml"}), "params.response_format.type: "),
    ("inference_net", params(response_format={}), "params.response_format.type: Field required"),
    (
        "inference_net",
        params(response_format={"type": "json_schema", "json_schema": {**SCHEMA, "strict": "yes"}}),
        "params.response_format.json_schema.strict: ",
    ),
    (
        "inference_net",
        params(response_format={"type": "json_schema", "json_schema": {**SCHEMA, "schema": "s"}}),
        "params.response_format.json_schema.schema: ",
    ),
    ("inference_net", params(tools=["f"]), "params.tools.0: "),
    ("inference_net", params(n=-HUGE), "params.n: is too large for a number in JSON"),
    ("inference_net", params(max_tokens=HUGE), "params.max_tokens: is too large for a number in JSON"),
    ("inference_net", params(temperature=HUGE), "params.temperature: "),
    ("inference_net", params(top_p=False), "params.top_p: must be a number, not true or false"),
    ("inference_net", content(5), "messages.0: the content must be a string or a list of parts"),
    ("inference_net", content({"type": "text"}), "messages.0: the content must be a string or a list"),
    ("inference_net", content(["x"]), "messages.0.content.0: "),
    ("inference_net", content([{}]), "messages.0.content.0.type: Field required"),
    ("inference_net", content([{"type": "input_audio"}]), "messages.0.content.0.type: "),
    ("inference_net", content(({"type": "input_audio"},)), "messages.0.content.0.type: "),
    ("inference_net", content([{"type": "text", "text": 5}]), "messages.0.content.0.text: "),
    ("inference_net", content([{"type": "text", "text": None}]), "messages.0.content.0.text: "),
    (
        "inference_net",
        content([{"type": "text"}, {"type": "image_url", "image_url": "data:image/png,"}]),
        "messages.0.content.1.image_url: ",
    ),
    (
        "inference_net",
        content([{"type": "image_url", "image_url": {}}]),
        "messages.0.content.0.image_url.url: Field required",
    ),
    (
        "inference_net",
        content([{"type": "image_url", "image_url": {"url": None}}]),
        "messages.0.content.0.image_url.url: ",
    ),
    (
        "inference_net",
        content(({"type": "image_url", "image_url": {"url": "https://host/cat.png"}},)),
        "messages.0: images must be data URIs",
    ),
    ("inference_net", metadata(webhook_id=5), "metadata.webhook_id: must be a string"),
    ("inference_net", metadata(custom_id=None), "metadata.custom_id: must be a string"),
]


@pytest.mark.parametrize(("service", "item", "problem"), FORBIDDEN, ids=str)
def test_what_the_emulator_refuses_is_not_sent(service: str, item: dict[str, Any], problem: str) -> None:
    """The message says where it is, and the setting still lets it through, to be refused there."""
    with pytest.raises(InvalidRequest) as caught:
        sent(service, item)
    assert any(found.startswith(problem) for found in caught.value.problems), caught.value
    assert "allow_undocumented_params" in caught.value.problems[-1]
    assert faults(service, sent(service, item, allow_undocumented_params=True))


@pytest.mark.parametrize(
    ("service", "item"),
    [
        ("distribute", params(tools=[{"type": "function", "function": FUNCTION, "more": None}])),
        ("distribute", params(tools=({"type": "function", "function": {"name": "f"}},))),
        ("distribute", params(stream_options={"include_usage": True, "more": None})),
        ("distribute", params(stream_options={})),
        ("distribute", params(tool_choice={"type": "function", "function": {"name": "f"}})),
        ("distribute", {"messages": [{"role": "tool", "content": "x", "name": "n", "tool_call_id": "c"}]}),
        ("distribute", metadata(webhook_id=5, custom_id=None)),
        ("inference_net", params(response_format={"type": "json_schema", "json_schema": SCHEMA, "x": None})),
        ("inference_net", params(response_format={"type": "json_schema"})),
        ("inference_net", params(response_format={"type": "text"}, seed=HUGE, logprobs=None)),
        ("inference_net", params(tools=[{}, {"type": "web"}, {"type": "function", "function": FUNCTION}])),
        ("inference_net", params(tools=({"type": "function"},), stop=("a", "b"))),
        ("inference_net", {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}),
        ("inference_net", content(None)),
        ("inference_net", content([])),
        (
            "inference_net",
            content(({"type": "text", "text": "x", "cache": None}, {"type": "image_url", "image_url": PNG})),
        ),
        ("inference_net", content([{"type": "text"}])),
        ("inference_net", metadata(webhook_id="w", custom_id="", row=5, note=None)),
    ],
    ids=str,
)
def test_what_the_documents_allow_is_sent_as_it_was_written(service: str, item: dict[str, Any]) -> None:
    """Unlisted keys inside of objects stay, null among them; tuples are lists."""
    body = sent(service, item)
    assert faults(service, body) == []
    asked = json.loads(json.dumps(item))
    given = {name: value for name, value in asked.get("params", {}).items() if value is not None}
    assert {name: body[name] for name in given} == given
    assert body["messages"] == asked.get("messages", [{"role": "user", "content": "x"}])


def test_all_problems_of_shape_come_together() -> None:
    """Those of messages, metadata and params."""
    item = {**content(5), **metadata(webhook_id=5), "params": {"response_format": {}}}
    del item["prompt"]
    with pytest.raises(InvalidRequest) as caught:
        sent("inference_net", item)
    assert [problem.partition(":")[0] for problem in caught.value.problems[:3]] == [
        "messages.0",
        "metadata.webhook_id",
        "params.response_format.type",
    ]


SCALARS = st.sampled_from([None, True, False, 0, 1, -1, 2, 0.5, 1.5, HUGE, -HUGE, "", "x", "1", "no", "0.5"])
WORDS = st.sampled_from(
    ["text", "function", "image_url", "json_schema", "xml", "data:image/png,", "http://x"]
)
SOME = st.recursive(
    SCALARS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from(["type", "name", "url", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return objects with some of these fields, each of its kind or, now and then, of any."""
    return st.fixed_dictionaries({}, optional={**fields, "x": SOME}) | SOME


def several(item: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(item, max_size=2) | st.lists(item, max_size=2).map(tuple) | SOME


FLAGS = st.booleans() | SOME
TEXTS = WORDS | SOME
NUMBERS = SCALARS | SOME
PARTS = several(some(type=WORDS, text=TEXTS, image_url=some(url=TEXTS)))
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "boss"])},
    optional={"content": TEXTS | PARTS, "name": TEXTS, "x": SOME},
)
FUNCTIONS = some(name=TEXTS, description=TEXTS, parameters=some(), strict=FLAGS)
PARAMS = {
    "reasoning_effort": TEXTS,
    "frequency_penalty": NUMBERS,
    "max_completion_tokens": NUMBERS,
    "max_tokens": NUMBERS,
    "n": NUMBERS,
    "modalities": several(TEXTS),
    "seed": NUMBERS,
    "service_tier": TEXTS,
    "stop": TEXTS | several(TEXTS),
    "stream": FLAGS,
    "stream_options": some(include_usage=FLAGS),
    "temperature": NUMBERS,
    "top_p": NUMBERS,
    "tools": several(some(type=WORDS, function=FUNCTIONS)),
    "tool_choice": TEXTS | some(type=WORDS),
    "parallel_tool_calls": FLAGS,
    "response_format": some(type=WORDS, json_schema=some(name=TEXTS, strict=FLAGS, schema=some())),
}


@given(
    service=st.sampled_from(sorted(CONTRACTS)),
    messages=st.lists(MESSAGES, min_size=1, max_size=2),
    # One or two at a time: of many, one is always wrong.
    given_params=st.lists(st.sampled_from(sorted(PARAMS)), max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: PARAMS[name] for name in names})
    ),
    given_metadata=st.dictionaries(st.sampled_from(["webhook_id", "custom_id", "x"]), SOME, max_size=2),
    plain=st.booleans(),
)
@hypothesis_settings(max_examples=300)
def test_what_is_sent_is_accepted(
    service: str,
    messages: list[dict[str, Any]],
    given_params: dict[str, Any],
    given_metadata: dict[str, Any],
    plain: bool,
) -> None:
    """Whatever is asked: it is refused here, or the emulator takes it."""
    if plain:
        messages = [{"role": "user", "content": "x"}]
    item = {"messages": messages, "params": given_params, "metadata": given_metadata}
    try:
        body = sent(service, item)
    except InvalidRequest:
        return
    assert faults(service, body) == []
