# SPDX-License-Identifier: Apache-2.0

"""
inference.net's background chat: ``POST /v1/slow/chat/completions``, then ``GET /v1/generation/{id}``.

Source: docs.inference.net, "Async inference" (overview), and the vendor's public sample
context-labs/group-async-inference-example-py for what a 404 on a look means; "Vision" for images.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Required
from urllib.parse import quote

from pydantic import ConfigDict, Field, StrictBool, StrictStr, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from airflow_provider_distribute.models import (
    Job,
    JobError,
    JobState,
    NoBoolean,
    Price,
    Settings,
    problems_in,
)
from airflow_provider_distribute.services.base import Call, Finite, Open, Params, Service
from airflow_provider_distribute.services.reading import (
    clipped,
    completion_fields,
    instant,
    mapping_or_empty,
    mappings_in,
    same_word,
    text_or_none,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_provider_distribute.models import ChatRequest


#: The documented kinds of images.
_IMAGE = re.compile(r"data:image/(?:png|jpe?g|gif|webp)[;,]", re.IGNORECASE)
#: Images of a request, and bytes of a body that holds one ("under 1 MB", read as the larger of its two
#: meanings). Documented for vision input only, on an older page than the rest.
MOST_IMAGES = 2
LARGEST_BODY = 1024 * 1024

#: What may stand in a path segment as it is (RFC 3986): HTTP libraries disagree on whether to unquote it.
PATH_SAFE = "!$&'()*,;=:@"


class InferenceNetSettings(Settings):
    """
    A connection of type ``inference_net``.

    :param async_prefix: Path segment of submissions; ``async`` is a documented alias of ``slow``.
    """

    service: ClassVar[str] = "inference_net"

    base_url: str = "https://api.inference.net"
    dashboard_url: str = "https://inference.net/dashboard"
    async_prefix: Literal["slow", "async"] = "slow"


@with_config(Open)
class _ImageUrl(TypedDict):
    url: StrictStr


@with_config(Open)
class _Part(TypedDict, total=False):
    type: Required[Literal["text", "image_url"]]
    text: StrictStr
    image_url: _ImageUrl


_PARTS = TypeAdapter(list[_Part])


@with_config(Open)
class _JsonSchema(TypedDict, total=False):
    name: StrictStr
    strict: StrictBool
    schema: dict[str, Any]


@with_config(Open)
class _ResponseFormat(TypedDict, total=False):
    type: Required[Literal["text", "json_object", "json_schema"]]
    json_schema: _JsonSchema


class InferenceNetParams(Params):
    """
    Body fields of a chat completion with a documented type or bound.

    The request object is open: the body is that of the synchronous endpoint, so further OpenAI fields pass.
    """

    model_config = ConfigDict(extra="allow")

    max_tokens: Annotated[int | None, Field(ge=1), Finite, NoBoolean] = None
    temperature: Annotated[float | None, NoBoolean] = None
    top_p: Annotated[float | None, NoBoolean] = None
    n: Annotated[int | None, Finite, NoBoolean] = None
    stop: str | list[str] | None = None
    stream: Literal[False] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: _ResponseFormat | None = None


#: Keys of the metadata that the service reads itself.
_METADATA = ("webhook_id", "custom_id")


#: Content that has no parts.
_PLAIN = (str, type(None))


def _problems_in_content(content: object) -> list[str]:
    """Return what is wrong with the shape of content that is not plain, with the place in it."""
    if not isinstance(content, list | tuple):
        return [": the content must be a string or a list of parts"]
    try:
        _PARTS.validate_python(content)
    except ValidationError as error:
        return [f".content.{problem}" for problem in problems_in(error)]
    return []


def _images_in(messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Return each image's URL, with the place of its message."""
    return [
        (place, mapping_or_empty(part.get("image_url")).get("url", ""))
        for place, message in enumerate(messages)
        for part in mappings_in(message.get("content"))
        if part.get("type") == "image_url" or "image_url" in part
    ]


class InferenceNet(Service):
    """inference.net."""

    name: ClassVar[str] = "inference_net"
    title: ClassVar[str] = "inference.net"
    settings: ClassVar[type[Settings]] = InferenceNetSettings
    params: ClassVar[type[Params]] = InferenceNetParams
    takes_response_format: ClassVar[bool] = True
    #: The second one is OpenAI's newer name, which the open request object lets through.
    token_limits: ClassVar[tuple[str, ...]] = ("max_tokens", "max_completion_tokens")
    states: ClassVar[Mapping[str, JobState]] = {
        "queued": JobState.PENDING,
        "in progress": JobState.PENDING,
        "success": JobState.SUCCEEDED,
        "failed": JobState.FAILED,
    }
    #: ``GET /v1/models`` of 2026-09-28 as recorded by a third party, then an older reseller's table. These
    #: are prices of the synchronous API; the asynchronous ones are lower and not published.
    prices_as_of: ClassVar[str] = "2026-09-28"
    prices: ClassVar[Mapping[str, Price]] = {
        "glm-5.2": Price(prompt=1.30, completion=4.40),
        "glm-5.3": Price(prompt=0.90, completion=3.00),
        "glm-5.3-flash": Price(prompt=0.09, completion=0.28),
        "llama-3.3-70b-instruct": Price(prompt=0.13, completion=0.40),
        "deepseek-v3.2": Price(prompt=0.70, completion=2.00),
        "meta-llama/llama-3.1-8b-instruct/fp-16": Price(prompt=0.02, completion=0.03),
        "google/gemma-3-27b-instruct/bf-16": Price(prompt=0.30, completion=0.40),
        "meta-llama/llama-3.2-1b-instruct/fp-16": Price(prompt=0.01, completion=0.01),
    }

    def authorization(self, settings: InferenceNetSettings) -> str:
        """Return the key as a bearer token."""
        return f"Bearer {settings.api_key.get_secret_value()}"

    def describe_submit(self, request: ChatRequest, settings: InferenceNetSettings) -> Call:
        """Describe "Submit a background chat completion"."""
        return self.submission(f"/v1/{settings.async_prefix}/chat/completions", request, settings)

    def describe_look(self, job_id: str, settings: InferenceNetSettings) -> Call:
        """Describe "Read one generation"; it is never below the submission's prefix."""
        return Call("GET", f"/v1/generation/{quote(self.askable(job_id), safe=PATH_SAFE)}")

    def not_found_grace(self, settings: InferenceNetSettings) -> float:
        """The vendor's sample reads every 404 as *not ready, try again*: only the deadline ends that."""
        return math.inf

    def problems_in_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Content is text or parts of two kinds; at most two images, as data URIs, of four kinds."""
        problems = [
            f"messages.{place}{problem}"
            for place, message in enumerate(messages)
            if not isinstance(content := message.get("content"), _PLAIN)
            for problem in _problems_in_content(content)
        ]
        images = [] if problems else _images_in(messages)
        for place, url in images:
            if not url.startswith("data:"):
                problems.append(f"messages.{place}: images must be data URIs, remote links are not accepted")
            elif not _IMAGE.match(url):
                problems.append(f"messages.{place}: images must be png, jpg, gif or webp")
        if len(images) > MOST_IMAGES:
            problems.append(f"messages: {len(images)} images, and a request may have {MOST_IMAGES}")
        return problems

    def problems_in_metadata(self, metadata: Mapping[str, Any]) -> list[str]:
        """What selects a webhook, and what names the request, is text; other keys are the author's."""
        return [
            f"metadata.{name}: must be a string"
            for name in _METADATA
            if not isinstance(metadata.get(name, ""), str)
        ]

    def problems_in_size(self, request: ChatRequest, size: int) -> list[str]:
        """Bodies with images have a limit."""
        if size < LARGEST_BODY or not _images_in(request.messages):
            return []
        return [f"messages: the body has {size} bytes; with images it must have less than 1 MB"]

    def job_from(self, job_id: str, body: Mapping[str, Any]) -> Job:
        """Read a generation: ``response`` may be missing or null, ``stateMessage`` says why it failed."""
        word = text_or_none(body.get("state")) or "(none)"
        state = self.states.get(same_word(word), JobState.PENDING)
        response = mapping_or_empty(body.get("response"))
        request = mapping_or_empty(body.get("request"))
        error = None
        if state is JobState.FAILED:
            said = text_or_none(body.get("stateMessage")) or words_of(response) or words_of(body)
            error = JobError(type="failed", message=clipped(said or "no reason given by the service"))
        fields = completion_fields(response) if state is not JobState.PENDING else {}
        return Job(
            job_id=job_id,
            service=self.name,
            state=state,
            status=clipped(word),
            created_at=instant(response.get("created")),
            finished_at=instant(body.get("finishedAt")),
            error=error,
            **{**fields, "model": fields.get("model") or text_or_none(request.get("model"))},
        )
