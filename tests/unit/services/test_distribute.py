# SPDX-License-Identifier: Apache-2.0

"""Distribute.AI: raw key, both calls POST, closed request objects, 600 tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest

from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.models import ChatRequest, JobState
from airflow_provider_distribute.services.base import Call
from tests.unit.contracts import DISTRIBUTE, KEY, answered, sample

SERVICE = DISTRIBUTE.service
ID = "0b7e2a52-7c1d-4f7e-9a0d-3c9b6f1f2a11"


def submitted(item: object = "x", **fields: Any) -> dict[str, Any]:
    body = SERVICE.describe_submit(ChatRequest.parse(item), DISTRIBUTE.settings(**fields)).body
    assert body is not None
    return dict(body)


def read(name: str, **fields: Any) -> Any:
    return SERVICE.read_job(ID, answered(200, {**sample(f"distribute.{name}"), **fields}))


def test_the_key_is_sent_raw() -> None:
    """The documented samples have no scheme in front of the key."""
    assert SERVICE.authorization(DISTRIBUTE.settings()) == KEY
    assert SERVICE.authorization(DISTRIBUTE.settings(auth_prefix="Bearer ")) == f"Bearer {KEY}"


def test_what_a_submission_says() -> None:
    """Method, path and the whole body, the token limit always in it: left out it would be 128."""
    request = ChatRequest.parse({"prompt": "Hi", "params": {"temperature": 0.5}, "metadata": {"row": 7}})
    assert SERVICE.describe_submit(request, DISTRIBUTE.settings(model="m")) == Call(
        "POST",
        "/async/chat/create",
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "max_completion_tokens": 600,
            "metadata": {"row": "7"},
        },
    )


def test_what_a_look_says() -> None:
    """The id travels in the body of a closed object."""
    assert SERVICE.describe_look(ID, DISTRIBUTE.settings()) == Call("POST", "/async/chat/result", {"id": ID})


def test_the_authors_token_limit_wins() -> None:
    """600 is only what is sent in place of the service's silent default."""
    assert submitted({"prompt": "x", "params": {"max_completion_tokens": 50}})["max_completion_tokens"] == 50
    assert (
        submitted({"prompt": "x", "params": {"max_completion_tokens": None}})["max_completion_tokens"] == 600
    )


def test_metadata_values_are_strings() -> None:
    """The documented sample shows strings only."""
    metadata = {"map_index": -1, "dag_id": "d", "flag": True, "none": None}
    assert submitted({"prompt": "x", "metadata": metadata})["metadata"] == {
        "map_index": "-1",
        "dag_id": "d",
        "flag": "True",
        "none": "None",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_completion_tokens", 601),
        ("max_completion_tokens", -2),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 1.1),
        ("frequency_penalty", -2.1),
        ("presence_penalty", 2.1),
        ("n", 3),
        ("n", 0),
        ("stop", "bare string"),
        ("stream", True),
        ("tools", "hammer"),
        ("response_format", {"type": "json_object"}),
        ("max_tokens", 5),
        ("logprobs", True),
    ],
)
def test_what_the_documentation_forbids_is_not_sent(name: str, value: object) -> None:
    """Bounds and the closed list of fields are checked here, where a mistake costs nothing."""
    with pytest.raises(InvalidRequest, match=rf"params\.{name}: ") as caught:
        submitted({"prompt": "x", "params": {name: value}})
    assert "Distribute.AI documents the params frequency_penalty, max_completion_tokens" in str(caught.value)
    assert "allow_undocumented_params" in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        {"max_completion_tokens": 600, "n": 2, "temperature": 2, "top_p": 1, "seed": 591256},
        {"max_completion_tokens": -1, "n": 1, "temperature": 0, "top_p": 0, "seed": 1.5},
        {"reasoning_effort": "medium", "service_tier": "default", "modalities": ["text"], "stop": ["a", "b"]},
        {"stream": False, "stream_options": {"include_usage": True}, "parallel_tool_calls": False},
        {"tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": {"type": "function"}, "frequency_penalty": -2, "presence_penalty": 2},
    ],
)
def test_documented_params_are_sent_as_they_are(params: dict[str, Any]) -> None:
    """Every documented field, at its bounds."""
    body = submitted({"prompt": "x", "params": params})
    assert {name: body[name] for name in params} == params


def test_a_setting_lets_anything_through() -> None:
    """Documentation ages: the connection can say that the author knows better."""
    params = {"max_completion_tokens": 601, "response_format": {"type": "json_object"}}
    messages = [{"role": "developer", "content": [{"type": "text", "text": "x"}]}]
    body = submitted({"messages": messages, "params": params}, allow_undocumented_params=True)
    assert {name: body[name] for name in params} == params
    assert body["messages"] == messages


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            {"role": "developer", "content": "x"},
            "messages.1: the role is not one of system, user, assistant, tool",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.1: the content must be a plain string"),
        ({"role": "user", "content": None}, "messages.1: the content must be a plain string"),
        ({"role": "user"}, "messages.1: the content must be a plain string"),
    ],
)
def test_messages_are_plain(message: dict[str, Any], reason: str) -> None:
    """Content parts are shown nowhere, and the schema lists four roles."""
    with pytest.raises(InvalidRequest) as caught:
        submitted([{"role": "user", "content": "x"}, message])
    assert reason in str(caught.value)


def test_problems_of_messages_and_params_come_together() -> None:
    """One message for all of them."""
    with pytest.raises(InvalidRequest) as caught:
        submitted(
            {"messages": [{"role": "user"}, {"role": "x", "content": ""}], "params": {"n": 9}}, model=None
        )
    assert [problem.partition(":")[0] for problem in caught.value.problems[:4]] == [
        "model",
        "messages.0",
        "messages.1",
        "params.n",
    ]


def test_a_completed_job() -> None:
    """The recorded answer, read into the result that goes to XCom."""
    assert read("succeeded").result() == {
        "job_id": ID,
        "service": "distribute",
        "status": "succeeded",
        "content": "Paris.",
        "finish_reason": "stop",
        "tool_calls": [],
        "choices": sample("distribute.succeeded")["choices"],
        "usage": {"completion_tokens": 2, "prompt_tokens": 9, "total_tokens": 11},
        "model": "Llama-3.1 8B",
        "created_at": "2025-06-15T15:06:40.123000+00:00",
        "finished_at": "2025-06-15T15:07:40.123000+00:00",
        "error": None,
    }


def test_a_tool_call() -> None:
    """The content is empty, the calls are there, and the id is the one that was asked for."""
    job = read("tool-call")
    assert (job.job_id, job.content, job.finish_reason) == (ID, "", "tool_calls")
    assert job.tool_calls[0]["function"]["name"] == "weather"


def test_times_of_an_older_generation() -> None:
    """ISO-8601 with any offset, where newer pages have numbers."""
    job = read("iso-times")
    assert job.created_at == job.finished_at
    assert job.created_at.isoformat() == "2025-05-14T09:30:00.125000+00:00"


@pytest.mark.parametrize("word", ["CREATED", "QUEUED", "POSTPONED", "ASSIGNED_CONNECTIONS", "PROCESSING"])
def test_five_words_mean_pending(word: str) -> None:
    """The word is kept for people; a pending job has no answer yet, whatever the body holds."""
    job = read("succeeded", status=word)
    assert (job.state, job.status, job.content, job.choices) == (JobState.PENDING, word, None, ())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no reason given by the service"),
        ({"message": "out of memory"}, "out of memory"),
        ({"error": {"message": "out of memory"}}, "out of memory"),
        ({"error": None, "message": " "}, "no reason given by the service"),
        ({"message": "a\nb" + "x" * 600}, None),
    ],
)
def test_a_failed_job(fields: dict[str, Any], reason: str | None) -> None:
    """No reason is documented; one is shown if it comes, cut to what a log line takes."""
    job = read("failed", **fields)
    assert (job.state, job.status, job.error.type) == (JobState.FAILED, "ERROR", "failed")
    assert job.reason == reason if reason else (len(job.reason) == 500 and job.reason.startswith("a bx"))


def test_grace_is_the_connections() -> None:
    """Right after the submission a 404 means *not yet*; for how long is a setting."""
    assert SERVICE.not_found_grace(DISTRIBUTE.settings()) == 30.0
    assert SERVICE.not_found_grace(DISTRIBUTE.settings(not_found_grace="5")) == 5.0


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, 600),
        ({"max_completion_tokens": 50}, 50),
        ({"max_completion_tokens": 50, "n": 2}, 100),
        ({"max_completion_tokens": -1}, 1000),
        ({"max_completion_tokens": -1, "n": 2}, 2000),
        ({"max_completion_tokens": "50", "n": "two"}, 1000),
        ({"max_completion_tokens": math.inf}, 1000),
        ({"max_tokens": 50}, 600),
    ],
    ids=str,
)
def test_the_tokens_of_the_answers(params: dict[str, Any], tokens: int) -> None:
    """All of them; what is sent where nothing is said counts, and -1 is no limit."""
    assert SERVICE.answer_tokens(ChatRequest.parse("x", params=params), unlimited=1000) == tokens
