# SPDX-License-Identifier: Apache-2.0

"""What a finished job answers: a function of the prompt, its script and the seed."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.emulator import schemas
from airflow_provider_distribute.emulator.chance import digest, generator

if TYPE_CHECKING:
    from airflow_provider_distribute.emulator.contracts.base import Prompt
    from airflow_provider_distribute.emulator.script import Script

MOST_TOKENS = 100_000


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the ``n`` answers. A tool call has an empty content."""

    content: str
    finish_reason: str
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """All answers to one request, and the tokens they are billed for."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """The token counts, as both services name them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def answer(prompt: Prompt, script: Script, seed: int) -> Answer:
    """
    Answer ``prompt``. A word counts as a token.

    The text is a tag that depends on prompt, seed and choice, and the words of the last message again. With a
    schema (or one written out in a system message) it is JSON that follows it; with a required function it
    is a call of it. It is cut at the request's limit of tokens, as a real one would be.
    """
    choices = []
    tokens = 0
    for index in range(prompt.count):
        tag = digest(seed, index, prompt.system, prompt.text, size=4).hex()
        words = prompt.text.split() or ["Hello."]
        if prompt.function is not None:
            choice = _call(prompt.function, tag, words)
            tokens += len(choice.tool_calls[0]["function"]["arguments"].split()) + 1
        else:
            text, cut = _cut(_text(prompt, script, tag, words), prompt.limit)
            tokens += len(text.split())
            choice = Choice(text, "length" if cut else "stop")
        choices.append(choice)
    return Answer(tuple(choices), prompt.words, tokens)


def _text(prompt: Prompt, script: Script, tag: str, words: list[str]) -> str:
    if script.text is not None:
        return script.text
    if script.tokens is not None:
        count = min(script.tokens, MOST_TOKENS)
        return " ".join((words * (count // len(words) + 1))[:count])
    schema = schemas.embedded(prompt.system) if prompt.schema is None else prompt.schema
    if schema is not None:
        # A model that cannot follow a schema talks instead.
        with contextlib.suppress(ValueError):
            return json.dumps(schemas.example(schema, generator(tag), words))
    return f"[{tag}] {' '.join(words)}"


def _cut(text: str, limit: int | None) -> tuple[str, bool]:
    words = text.split(" ")
    if limit is None or len(words) <= limit:
        return text, False
    return " ".join(words[:limit]), True


def _call(function: Any, tag: str, words: list[str]) -> Choice:
    try:
        arguments = schemas.example(function.get("parameters") or {"type": "object"}, generator(tag), words)
    except ValueError:
        arguments = {}
    call = {
        "id": f"call_{tag}",
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": json.dumps(arguments)},
    }
    return Choice("", "tool_calls", (call,))
