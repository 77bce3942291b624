# SPDX-License-Identifier: Apache-2.0

"""
Distribute.AI: ``POST /async/<kind>/create`` and ``POST /async/<kind>/result``.

Source: https://docs.distribute.ai/distribute-for-enterprise/enterprise-inference-api/async-api/chat
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.emulator.contracts.base import (
    Prompt,
    Shape,
    read_json,
    refuse_problems,
    required_function,
)
from airflow_provider_distribute.emulator.contracts.checks import Either, ListOf, Number, Record, Text, flag
from airflow_provider_distribute.emulator.exchange import Operation, Refused, Route
from airflow_provider_distribute.emulator.jobs import stage
from airflow_provider_distribute.emulator.script import iso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_distribute.emulator.answers import Answer
    from airflow_provider_distribute.emulator.exchange import Incoming
    from airflow_provider_distribute.emulator.jobs import Job

JOB_ID = re.compile(r"[a-fA-F0-9]{8}-[a-fA-F0-9]{4}-4[a-fA-F0-9]{3}-[89abAB][a-fA-F0-9]{3}-[a-fA-F0-9]{12}")

STRAIGHT = ((0.0, "CREATED"), (0.05, "QUEUED"), (0.7, "ASSIGNED_CONNECTIONS"), (0.75, "PROCESSING"))
POSTPONED = (
    (0.0, "CREATED"),
    (0.05, "QUEUED"),
    (0.3, "POSTPONED"),
    (0.5, "QUEUED"),
    (0.7, "ASSIGNED_CONNECTIONS"),
    (0.75, "PROCESSING"),
)
POSTPONE_EVERY = 5

DEFAULT_TOKENS = 128

FUNCTION = Record(
    {"name": Text(), "description": Text(), "parameters": Record(), "strict": flag}, required=("name",)
)

CHAT = Record(
    {
        "model": Text(),
        "messages": ListOf(
            Record(
                {
                    "role": Text(("system", "user", "assistant", "tool")),
                    "content": Text(),
                    "name": Text(),
                },
                required=("role", "content"),
            )
        ),
        "reasoning_effort": Text(),
        "metadata": Record(values=Text()),
        "frequency_penalty": Number(-2, 2),
        "presence_penalty": Number(-2, 2),
        "max_completion_tokens": Number(-1, 600),
        "n": Number(choices=(1, 2)),
        "modalities": ListOf(Text()),
        "seed": Number(),
        "service_tier": Text(),
        "stop": ListOf(Text()),
        "stream": flag,
        "stream_options": Record({"include_usage": flag}),
        "temperature": Number(0, 2),
        "top_p": Number(0, 1),
        "tools": ListOf(
            Record({"type": Text(("function",)), "function": FUNCTION}, required=("type", "function"))
        ),
        "tool_choice": Either((Record(), Text())),
        "parallel_tool_calls": flag,
    },
    required=("model", "messages"),
    closed=True,
)

LOOK = Record({"id": Text()}, required=("id",), closed=True)

TIMESTAMPS: dict[str, Callable[[float], int | str]] = {
    "ms": lambda seconds: int(seconds * 1000),
    "s": int,
    "iso": iso,
}


class Distribute:
    """Raw key, closed requests, ids in the body, errors as ``{"message": ...}``."""

    name = "distribute"
    status_field = "status"
    routes = (
        Route("POST", "/async/chat/create", Operation.SUBMIT),
        Route("POST", "/async/chat/result", Operation.LOOK),
    )
    prices = {"Llama-3.1 8B": (0.10, 0.16), "Llama-3.3 70B": (0.70, 0.80), "": (0.70, 0.80)}

    def refuse_key(self, header: str | None, key: str | None, shape: Shape) -> str | None:
        """See :meth:`Contract.refuse_key`."""
        if not header:
            return "The authorization header is missing"
        given = header.removeprefix(shape.auth_prefix)
        if not header.startswith(shape.auth_prefix) or given.lower().startswith("bearer "):
            return "The authorization header must hold the key as it is"
        return None if given == (key or given) else "Invalid API key"

    def problems(self, kind: str, body: Any) -> Iterator[str]:
        """See :meth:`Contract.problems`."""
        return CHAT(body, "")

    def prompt(self, kind: str, body: dict[str, Any]) -> Prompt:
        """See :meth:`Contract.prompt`."""
        messages = body["messages"]
        limit = int(body.get("max_completion_tokens", DEFAULT_TOKENS))
        return Prompt(
            model=body["model"],
            text=messages[-1]["content"] if messages else "",
            system="\n".join(message["content"] for message in messages if message["role"] == "system"),
            words=sum(len(message["content"].split()) for message in messages),
            limit=None if limit < 0 else limit,
            count=int(body.get("n", 1)),
            function=required_function(body),
            metadata=body.get("metadata"),
        )

    def job_id(self, seed: bytes) -> str:
        """See :meth:`Contract.job_id`."""
        return str(uuid.UUID(bytes=seed, version=4))

    def looked_at(self, incoming: Incoming) -> str:
        """See :meth:`Contract.looked_at`. The documents list no 400 here, so a malformed id is a 404."""
        body = read_json(incoming)
        refuse_problems(LOOK, body)
        if not JOB_ID.fullmatch(body["id"]):
            raise Refused(404, "Task not found")
        return str(body["id"]).lower()

    def accepted(self, job: Job) -> dict[str, Any]:
        """See :meth:`Contract.accepted`."""
        return {"id": job.id}

    def status(self, job: Job, now: float) -> str:
        """See :meth:`Contract.status`. Every fifth job is postponed for a while and queued again."""
        if job.done(now):
            return "ERROR" if job.failed(now) else "COMPLETED"
        if job.script.status and now >= job.due:
            return job.script.status
        return stage(job.progress(now), STRAIGHT if job.number % POSTPONE_EVERY else POSTPONED)

    def result(self, job: Job, answer: Answer | None, now: float, shape: Shape) -> dict[str, Any]:
        """See :meth:`Contract.result`. An ``ERROR`` has no reason, as documented."""
        timestamp = TIMESTAMPS[shape.timestamps]
        result: dict[str, Any] = {
            "id": job.id,
            "status": self.status(job, now),
            "created": timestamp(job.submitted),
            "model": job.model,
            "service_tier": "default",
            "choices": [],
        }
        if job.done(now):
            result["finished"] = timestamp(job.due)
        if answer is not None:
            result["usage"] = answer.usage
            result["choices"] = [
                {
                    "finish_reason": "tool_calls" if choice.tool_calls else "stop",
                    "index": index,
                    "message": {
                        "role": "assistant",
                        "content": choice.content,
                        **({"tool_calls": choice.tool_calls} if choice.tool_calls else {}),
                    },
                }
                for index, choice in enumerate(answer.choices)
            ]
        return result

    def completion(self, result: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Contract.completion`."""
        return result

    def error(self, status: int, message: str, shape: Shape) -> Any:
        """See :meth:`Contract.error`."""
        return {"message": message}

    def models(self) -> Any:
        """See :meth:`Contract.models`. No address of this service shows it."""
        raise NotImplementedError
