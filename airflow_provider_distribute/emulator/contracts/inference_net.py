# SPDX-License-Identifier: Apache-2.0

"""
inference.net: ``POST /v1/slow/chat/completions`` and ``GET /v1/generation/{id}``.

Source: https://docs.inference.net/api/async-inference/overview.md
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.emulator.contracts.base import Prompt, Shape, required_function
from airflow_provider_distribute.emulator.contracts.checks import (
    Either,
    ListOf,
    Nullable,
    Number,
    Record,
    Text,
    flag,
)
from airflow_provider_distribute.emulator.exchange import Operation, Route
from airflow_provider_distribute.emulator.jobs import stage
from airflow_provider_distribute.emulator.script import iso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_distribute.emulator.answers import Answer
    from airflow_provider_distribute.emulator.exchange import Incoming
    from airflow_provider_distribute.emulator.jobs import Job

STAGES = ((0.0, "Queued"), (0.5, "In Progress"))
"""Words by progress."""


def _image_url(value: Any, path: str) -> Iterator[str]:
    """A data URI: the documents accept no remote links."""
    yield from (problems := list(Text()(value, path)))
    if not problems and value.lower().startswith(("http://", "https://")):
        yield f"{path} must be a data URI"


PART = Record(
    {
        "type": Text(("text", "image_url")),
        "text": Text(),
        "image_url": Record({"url": _image_url}, required=("url",)),
    },
    required=("type",),
)

CHAT = Record(
    {
        "model": Text(),
        "messages": ListOf(
            Record(
                {"role": Text(), "content": Nullable(Either((ListOf(PART), Text())))},
                required=("role",),
            )
        ),
        "max_tokens": Nullable(Number(minimum=1, integer=True)),
        "temperature": Nullable(Number()),
        "top_p": Nullable(Number()),
        "n": Nullable(Number(integer=True)),
        "stop": Nullable(Either((ListOf(Text()), Text()))),
        "stream": flag,
        "tools": ListOf(Record()),
        "response_format": Record(
            {
                "type": Text(("text", "json_object", "json_schema")),
                "json_schema": Record({"name": Text(), "strict": flag, "schema": Record()}),
            },
            required=("type",),
        ),
        "metadata": Record({"webhook_id": Text(), "custom_id": Text()}),
    },
    required=("model", "messages"),
)

MOST_CHOICES = 16

ERRORS: dict[str, Callable[[int, str], Any]] = {
    "object": lambda status, message: {"error": {"message": message, "type": "error", "code": status}},
    "string": lambda status, message: {"error": message},
    "message": lambda status, message: {"message": message},
    "detail": lambda status, message: {"detail": message},
}

MODELS = (
    "meta-llama/llama-3.1-8b-instruct/fp-16",
    "google/gemma-3-27b-instruct/bf-16",
    "llama-3.3-70b-instruct",
)


class InferenceNet:
    """Bearer key, OpenAI's fields, an acknowledgement without choices, 404 for what is not ready."""

    name = "inference_net"
    status_field = "state"
    routes = (
        Route("POST", "/v1/slow/chat/completions", Operation.SUBMIT),
        Route("POST", "/v1/async/chat/completions", Operation.SUBMIT),
        Route("GET", "/v1/generation/{id}", Operation.LOOK),
        Route("GET", "/v1/models", Operation.MODELS),
    )
    prices = {
        "meta-llama/llama-3.1-8b-instruct/fp-16": (0.02, 0.03),
        "google/gemma-3-27b-instruct/bf-16": (0.30, 0.40),
        "llama-3.3-70b-instruct": (0.13, 0.40),
        "": (0.30, 0.40),
    }

    def refuse_key(self, header: str | None, key: str | None, shape: Shape) -> str | None:
        """See :meth:`Contract.refuse_key`."""
        scheme, _, given = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            return "Missing bearer token in the Authorization header"
        return None if given == (key or given) else "Invalid API key"

    def problems(self, kind: str, body: Any) -> Iterator[str]:
        """See :meth:`Contract.problems`."""
        return CHAT(body, "")

    def prompt(self, kind: str, body: dict[str, Any]) -> Prompt:
        """See :meth:`Contract.prompt`."""
        texts = [(message["role"], _text(message.get("content"))) for message in body["messages"]]
        response_format = body.get("response_format") or {}
        schema = (response_format.get("json_schema") or {}).get("schema")
        if response_format.get("type") == "json_object":
            schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
        return Prompt(
            model=body["model"],
            text=texts[-1][1] if texts else "",
            system="\n".join(text for role, text in texts if role == "system"),
            words=sum(len(text.split()) for _, text in texts),
            limit=body.get("max_tokens"),
            count=min(max(int(body.get("n") or 1), 1), MOST_CHOICES),
            function=required_function(body),
            schema=schema,
            metadata=body.get("metadata"),
        )

    def job_id(self, seed: bytes) -> str:
        """See :meth:`Contract.job_id`: 21 URL-safe characters."""
        return base64.urlsafe_b64encode(seed)[:21].decode()

    def looked_at(self, incoming: Incoming) -> str:
        """See :meth:`Contract.looked_at`."""
        return incoming.job_id

    def accepted(self, job: Job) -> dict[str, Any]:
        """See :meth:`Contract.accepted`. ``created`` is in milliseconds here, in seconds in the result."""
        return {
            "id": job.id,
            "object": "chat.completion",
            "choices": [],
            "created": int(job.submitted * 1000),
            "model": job.model,
        }

    def status(self, job: Job, now: float) -> str:
        """See :meth:`Contract.status`."""
        if job.done(now):
            return "Failed" if job.failed(now) else "Success"
        if job.script.status and now >= job.due:
            return job.script.status
        return stage(job.progress(now), STAGES)

    def result(self, job: Job, answer: Answer | None, now: float, shape: Shape) -> dict[str, Any]:
        """See :meth:`Contract.result`."""
        result: dict[str, Any] = {
            "request": {"stream": False, **json.loads(job.request)},
            "state": self.status(job, now),
        }
        if job.done(now):
            result["stateMessage"] = "Generation successful"
            result["finishedAt"] = iso(job.due)
        if job.failed(now):
            result["stateMessage"] = job.script.error or "Generation failed"
            result["response"] = None
        if answer is not None:
            result["response"] = {
                "id": job.id,
                "object": "chat.completion",
                "created": int(job.submitted),
                "model": job.model,
                "choices": [
                    {
                        "index": index,
                        "message": {
                            "role": "assistant",
                            "content": None if choice.tool_calls else choice.content,
                            "reasoning_content": None,
                            "tool_calls": list(choice.tool_calls) or None,
                        },
                        "logprobs": None,
                        "finish_reason": choice.finish_reason,
                        "matched_stop": None,
                    }
                    for index, choice in enumerate(answer.choices)
                ],
                "usage": {**answer.usage, "prompt_tokens_details": None},
                "system_fingerprint": None,
            }
        return result

    def completion(self, result: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Contract.completion`."""
        completion: dict[str, Any] = result["response"]
        return completion

    def error(self, status: int, message: str, shape: Shape) -> Any:
        """See :meth:`Contract.error`."""
        return ERRORS[shape.errors](status, message)

    def models(self) -> Any:
        """See :meth:`Contract.models`."""
        return {
            "object": "list",
            "data": [
                {
                    "id": model,
                    "object": "model",
                    "context_length": 131072,
                    "max_completion_tokens": None,
                    "pricing": dict(zip(("input", "output"), self.prices[model], strict=True)),
                    "input_modalities": ["text"],
                    "supported_endpoints": ["chat"],
                }
                for model in MODELS
            ],
        }


def _text(content: str | list[dict[str, Any]] | None) -> str:
    """The words of a message's content, which may be a string, a list of parts, or nothing."""
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content)
    return content or ""
