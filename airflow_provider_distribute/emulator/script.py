# SPDX-License-Identifier: Apache-2.0

"""
What one request may ask of its own job, for tests that need a certain outcome.

Put the words into the request's ``metadata`` (``{"emulate": "error=model overloaded"}``) or, where there
is none, into the last message (``Say hello. [emulate: latency=3; null_content]``), separated by ``;``.

===================  ===================================================================================
word                 the job
===================  ===================================================================================
``error=TEXT``       ends as failed; TEXT is its reason where the service gives one (may be left out)
``never``            is never finished
``latency=SECONDS``  takes that long, whatever the latency distribution says
``status=WORD``      reports WORD, which no contract knows, instead of its final status, for ever
``text=TEXT``        answers TEXT
``tokens=N``         answers N tokens, if the request's limit allows
``null_content``     answers with ``content: null``
``empty_choices``    answers with ``choices: []``
``no_choices``       answers without ``choices``
``missing_fields``   answers without usage, model, times, index, role and finish reason
``extra_fields``     answers with fields that no contract knows
``iso_times``        answers with ISO-8601 strings where numbers of seconds or milliseconds are usual
===================  ===================================================================================

The same words work as fault kinds (``--faults error:rate=0.02``), to hit some jobs of many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MARKER = re.compile(r"\[emulate:([^\]]*)\]")

MILLISECONDS_FROM = 1e11


@dataclass(frozen=True, slots=True)
class Script:
    """What a job was told to do. The default is an ordinary job."""

    error: str | None = None
    never: bool = False
    latency: float | None = None
    status: str | None = None
    text: str | None = None
    tokens: int | None = None
    oddities: frozenset[str] = frozenset()

    @property
    def endless(self) -> bool:
        """Whether the job never reaches a final status."""
        return self.never or self.status is not None


PLAIN = Script()


def _each_message(completion: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    for choice in completion.get("choices", ()):
        change(choice["message"])


def _missing_fields(completion: dict[str, Any]) -> None:
    for name in ("usage", "model", "created", "finished", "id", "object"):
        completion.pop(name, None)
    for choice in completion.get("choices", ()):
        for name in ("index", "finish_reason"):
            choice.pop(name, None)
        choice["message"].pop("role", None)


def _extra_fields(completion: dict[str, Any]) -> None:
    completion.update(surprise={"nested": [1, None, "x"]}, warnings=None)
    _each_message(completion, lambda message: message.update(annotations=[], refusal=None))


def _iso_times(completion: dict[str, Any]) -> None:
    for name in ("created", "finished"):
        if isinstance(moment := completion.get(name), int):
            seconds = moment / 1000 if moment >= MILLISECONDS_FROM else moment
            completion[name] = iso(seconds)


ODDITIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "null_content": lambda completion: _each_message(
        completion, lambda message: message.update(content=None)
    ),
    "empty_choices": lambda completion: completion.update(choices=[]),
    "no_choices": lambda completion: completion.pop("choices"),
    "missing_fields": _missing_fields,
    "extra_fields": _extra_fields,
    "iso_times": _iso_times,
}

WORDS: dict[str, Callable[[Script, str], Script]] = {
    "error": lambda script, value: replace(script, error=value),
    "never": lambda script, value: replace(script, never=True),
    "latency": lambda script, value: replace(script, latency=float(value)),
    "status": lambda script, value: replace(script, status=value or "REVIEWING"),
    "text": lambda script, value: replace(script, text=value),
    "tokens": lambda script, value: replace(script, tokens=int(value)),
    **{
        # `word=word` binds the loop's variable; a bare closure would see the last one only.
        word: lambda script, value, word=word: replace(script, oddities=script.oddities | {word})  # type: ignore[misc]
        for word in ODDITIES
    },
}


def iso(seconds: float) -> str:
    """ISO-8601 in UTC with milliseconds, as both services write it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read(text: str, script: Script = PLAIN) -> Script:
    """
    Add the words of ``text`` to ``script``.

    :raises ValueError: if a word is unknown or its value cannot be read.
    """
    for item in filter(None, map(str.strip, text.split(";"))):
        word, _, value = item.partition("=")
        try:
            script = WORDS[word.strip()](script, value.strip())
        except KeyError:
            raise ValueError(f"emulate: no word {word.strip()!r}; there are {', '.join(WORDS)}") from None
        except ValueError:
            raise ValueError(f"emulate: cannot read {item!r}") from None
    return script


def of_request(metadata: object, prompt: str) -> Script:
    """
    The script of a request: its metadata's, then that of the markers in its last message.

    :raises ValueError: see :func:`read`.
    """
    script = PLAIN
    if isinstance(metadata, dict) and isinstance(words := metadata.get("emulate"), str):
        script = read(words)
    for words in MARKER.findall(prompt):
        script = read(words, script)
    return script
