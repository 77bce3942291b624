# SPDX-License-Identifier: Apache-2.0

"""inference.net: bearer key, looks by GET with the id in the path, open request objects."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.models import ChatRequest, JobState
from airflow_provider_distribute.services.base import Call
from airflow_provider_distribute.services.reading import usable_job_id
from tests.unit.contracts import INFERENCE_NET, KEY, answered, sample

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = INFERENCE_NET.service
ID = "N2mZQjrvh-k_m8nMMN7Jn"
USER = {"role": "user", "content": "Hi"}


def submitted(item: object = "x", **fields: Any) -> dict[str, Any]:
    body = SERVICE.describe_submit(ChatRequest.parse(item), INFERENCE_NET.settings(**fields)).body
    assert body is not None
    return dict(body)


def read(name: str, **fields: Any) -> Any:
    return SERVICE.read_job(ID, answered(200, {**sample(f"inference_net.{name}"), **fields}))


def test_the_key_is_a_bearer_token() -> None:
    """As every documented sample has it."""
    assert SERVICE.authorization(INFERENCE_NET.settings()) == f"Bearer {KEY}"


def test_what_a_submission_says() -> None:
    """Method, path and the whole body; metadata keeps its types, nothing is added."""
    request = ChatRequest.parse({"messages": [USER], "params": {"max_tokens": 5}, "metadata": {"row": 7}})
    assert SERVICE.describe_submit(request, INFERENCE_NET.settings(model="m")) == Call(
        "POST",
        "/v1/slow/chat/completions",
        {"model": "m", "messages": [USER], "max_tokens": 5, "metadata": {"row": 7}},
    )


def test_the_alias_of_the_prefix() -> None:
    """``async`` is met in the vendor's samples; looks are never below it."""
    settings = INFERENCE_NET.settings(async_prefix="async")
    assert SERVICE.describe_submit(ChatRequest.parse("x"), settings).path == "/v1/async/chat/completions"
    assert SERVICE.describe_look(ID, settings) == Call("GET", f"/v1/generation/{ID}")


@pytest.mark.parametrize(
    ("job_id", "segment"),
    [
        ("a/b", "a%2Fb"),
        ("../v1/models", "..%2Fv1%2Fmodels"),
        ("a?b=c#d", "a%3Fb=c%23d"),
        ("50%", "50%25"),
        ("%2e%2e", "%252e%252e"),
        ("a b", "a%20b"),
        ("a+b", "a%2Bb"),
        ("ключ", "%D0%BA%D0%BB%D1%8E%D1%87"),
        ("a:b@c;d,e!f$g&h'i(j)k*l=m~n", "a:b@c;d,e!f$g&h'i(j)k*l=m~n"),
    ],
)
def test_ids_are_quoted(job_id: str, segment: str) -> None:
    """An id is one segment of the path, whatever is in it."""
    assert SERVICE.describe_look(job_id, INFERENCE_NET.settings()).path == f"/v1/generation/{segment}"


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30).filter(usable_job_id))
def test_every_http_library_asks_for_the_same_path(job_id: str) -> None:
    """Libraries normalise URLs in their own ways: httpx and yarl both leave a quoted id alone."""
    path = SERVICE.describe_look(job_id, INFERENCE_NET.settings()).path
    url = httpx.URL(f"https://host{path}")
    assert url.raw_path.decode() == path
    assert URL(str(url)).raw_path_qs == path


def test_further_fields_pass() -> None:
    """The body is that of the synchronous endpoint, whose fields are OpenAI's."""
    params = {"logprobs": True, "seed": 7, "response_format": {"type": "json_object"}, "stop": "x"}
    body = submitted({"prompt": "x", "params": params})
    assert {name: body[name] for name in params} == params


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 0), ("max_tokens", "many"), ("stream", True), ("n", "two"), ("tools", {}), ("stop", 5)],
)
def test_documented_types_are_checked(name: str, value: object) -> None:
    """What has a documented type or bound is held to it."""
    with pytest.raises(InvalidRequest, match=rf"params\.{name}"):
        submitted({"prompt": "x", "params": {name: value}})
    assert submitted({"prompt": "x", "params": {name: value}}, allow_undocumented_params=True)[name] == value


@pytest.mark.parametrize("parts", [list, tuple])
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://host/cat.png"}},
        {"type": "text", "image_url": {"url": "https://host/cat.png"}},
        {"type": "image_url", "image_url": {"url": ""}},
        {"type": "image_url"},
    ],
)
def test_images_travel_as_data(part: dict[str, Any], parts: Callable[[Any], Any]) -> None:
    """Remote links are not accepted by the service, so they are not sent."""
    message = {"role": "user", "content": parts([{"type": "text", "text": "x"}, part])}
    with pytest.raises(InvalidRequest, match=r"messages\.1: images must be data URIs"):
        submitted([USER, message])


def test_data_uris_are_images() -> None:
    """The documented form of an image passes."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert submitted([{"role": "user", "content": [part]}])["messages"][0]["content"] == [part]


def image(kind: str = "png", size: int = 4) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64," + "A" * size}}


@pytest.mark.parametrize(
    ("kind", "documented"),
    [("png", True), ("jpg", True), ("jpeg", True), ("GIF", True), ("webp", True), ("svg+xml", False)],
)
def test_images_are_of_four_kinds(kind: str, documented: bool) -> None:
    """Others are refused before anything is paid."""
    asked = [{"role": "user", "content": [image(kind)]}]
    if documented:
        submitted(asked)
    else:
        with pytest.raises(InvalidRequest, match=r"messages\.0: images must be png, jpg, gif or webp"):
            submitted(asked)


def test_a_request_has_two_images() -> None:
    """In all of its messages together; the setting lets more through."""
    two = {"role": "user", "content": [image(), image()]}
    submitted([two])
    with pytest.raises(InvalidRequest, match=r"4 images, and a request may have 2.*allow_undocumented"):
        submitted([two, two])
    submitted([two, two], allow_undocumented_params=True)


def test_a_body_with_images_is_under_a_megabyte() -> None:
    """Of a body without any, no limit is documented."""
    asked = [{"role": "user", "content": [image(size=0)]}]
    rest = len(json.dumps(submitted(asked), separators=(",", ":")))
    fits, too_large = (
        [{"role": "user", "content": [image(size=2**20 - rest - 1 + more)]}] for more in (0, 1)
    )
    submitted(fits)
    with pytest.raises(InvalidRequest, match=r"1048576 bytes; with images .* less than 1 MB.*allow_undoc"):
        submitted(too_large)
    submitted(too_large, allow_undocumented_params=True)
    submitted("x" * 2**20)


def test_a_successful_job() -> None:
    """The recorded answer: ``created`` in seconds inside the response, ``finishedAt`` in ISO-8601 outside."""
    assert read("succeeded").result() == {
        "job_id": ID,
        "service": "inference_net",
        "status": "succeeded",
        "content": "Paris.",
        "finish_reason": "stop",
        "tool_calls": [],
        "choices": sample("inference_net.succeeded")["response"]["choices"],
        "usage": sample("inference_net.succeeded")["response"]["usage"],
        "model": "meta-llama/llama-3.1-8b-instruct/fp-16",
        "created_at": "2025-06-04T18:22:42+00:00",
        "finished_at": "2025-06-04T18:22:45.512000+00:00",
        "error": None,
    }


def test_a_tool_call() -> None:
    """A null content beside the calls."""
    job = read("tool-call")
    assert (job.content, job.finish_reason) == (None, "tool_calls")
    assert job.tool_calls[0]["function"]["name"] == "weather"


@pytest.mark.parametrize("word", ["Queued", "In Progress"])
def test_two_words_mean_pending(word: str) -> None:
    """The word is kept; the model is known from the echoed request."""
    job = read("pending", state=word)
    assert (job.state, job.status, job.choices) == (JobState.PENDING, word, ())
    assert job.model == "meta-llama/llama-3.1-8b-instruct/fp-16"


@pytest.mark.parametrize(
    "response", [None, {}, [], "text", {"choices": None}, {"choices": [], "created": "x"}]
)
def test_a_success_without_a_response(response: object) -> None:
    """An empty answer is still an answer: the service says that it is done."""
    job = read("succeeded", response=response)
    assert (job.state, job.content, job.choices, job.created_at) == (JobState.SUCCEEDED, None, (), None)


def test_a_success_with_nothing_else() -> None:
    """The state alone is enough."""
    job = SERVICE.read_job(ID, answered(200, {"state": "Success"}))
    assert job.succeeded
    assert job.model is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "Model ran out of memory"),
        ({"stateMessage": None}, "no reason given by the service"),
        ({"stateMessage": "", "response": {"error": {"message": "too long"}}}, "too long"),
        ({"stateMessage": None, "message": "expired"}, "expired"),
    ],
)
def test_a_failed_job(fields: dict[str, Any], reason: str) -> None:
    """``stateMessage`` first, then whatever words there are."""
    job = read("failed", **fields)
    assert (job.state, job.status, job.reason) == (JobState.FAILED, "Failed", reason)


def test_not_found_is_always_not_yet() -> None:
    """The vendor's own sample waits on 404: only the deadline ends that."""
    assert SERVICE.not_found_grace(INFERENCE_NET.settings()) == math.inf


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, 1000),
        ({"max_tokens": 50}, 50),
        ({"max_tokens": 50, "n": 2}, 100),
        ({"max_completion_tokens": 70}, 70),
        ({"max_tokens": 50, "max_completion_tokens": 70}, 70),
        ({"max_tokens": 0}, 1000),
    ],
    ids=str,
)
def test_the_tokens_of_the_answers(params: dict[str, Any], tokens: int) -> None:
    """All of them, by either name of the limit; of two the higher one."""
    assert SERVICE.answer_tokens(ChatRequest.parse("x", params=params), unlimited=1000) == tokens
