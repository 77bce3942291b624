# SPDX-License-Identifier: Apache-2.0

"""Reading what a service, or whatever stands between, sends: JSON, words, times and headers of any shape."""

from __future__ import annotations

import email.utils
import functools
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard, cast

if TYPE_CHECKING:
    import httpx

#: Characters of the service's own words that errors and logs quote.
QUOTED_CHARACTERS = 500
#: Characters of an error body that are searched for those words.
READ_CHARACTERS = 65536
#: Ids are opaque, but they go into paths, XComs and trigger rows.
LONGEST_JOB_ID = 512
#: What is shorter is no secret, and turns up by chance.
_SHORTEST_KEY = 8
#: Levels of lists and objects in an answer. Whoever stores a result walks it recursively.
DEEPEST = 100
#: Numbers from here on are milliseconds, below are seconds: 1e11 s is the year 5138, 1e11 ms is 1973.
MILLISECONDS_FROM = 1e11


class Unreadable(ValueError):
    """An answer's body is not the JSON object it should be."""


def parse_object(content: bytes) -> Mapping[str, Any]:
    """
    Parse a JSON object that may come from anywhere.

    The result can be stored: numbers are finite, and strings hold neither NUL nor lone surrogates, which
    PostgreSQL refuses.

    :raises Unreadable: saying what it is instead.
    """
    text = content.decode("utf-8-sig", "replace")
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise Unreadable(
            f"something that is not JSON ({len(content)} bytes, {type(error).__name__})"
        ) from None
    if not isinstance(value, dict):
        raise Unreadable(f"a JSON {type(value).__name__} instead of an object")
    # A walk through all of it takes seconds where each token comes with its log probabilities.
    if _SUSPECT.search(text) and not _is_storable(value):
        cleaned: Mapping[str, Any] = storable(value, DEEPEST)
        return cleaned
    if text.count("[") + text.count("{") > DEEPEST and _is_deeper(value, DEEPEST):
        raise Unreadable(_TOO_DEEP)
    return value


def _is_storable(value: object) -> bool:
    """Return whether its strings are; a NUL that is spelt out counts as one."""
    try:
        return b"\\u0000" not in json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False


def _is_deeper(value: object, levels: int) -> bool:
    holders = [value]
    for _ in range(levels + 1):
        holders = [
            item
            for holder in holders
            for item in (holder.values() if isinstance(holder, dict) else cast("list[Any]", holder))
            if isinstance(item, dict | list)
        ]
        if not holders:
            return False
    return True


def is_page(answer: httpx.Response) -> bool:
    """Return whether an answer is for people: a firewall's, say, that takes us for a robot for a while."""
    return "html" in answer.headers.get("content-type", "").lower()


def is_object(content: bytes) -> bool:
    """Return whether bytes are a JSON object, as every answer of a service is."""
    try:
        parse_object(content)
    except Unreadable:
        return False
    return True


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
#: An escape that may stand for one of them, or for half of another character.
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_TOO_DEEP = f"JSON nested more than {DEEPEST} levels deep"


def storable(value: Any, levels: int) -> Any:
    """
    Return parsed JSON whose strings everything can store.

    :param levels: Of lists and objects that may stand in it.
    :raises Unreadable: it is nested deeper.
    """
    if levels < 0:
        raise Unreadable(_TOO_DEEP)
    match value:
        case str():
            # Most text is ASCII, and asking whether it is takes a hundredth of what a search takes.
            return value if value.isascii() and "\0" not in value else _UNSTORABLE.sub("\ufffd", value)
        case dict():
            return {storable(key, levels): storable(item, levels - 1) for key, item in value.items()}
        case list():
            return [storable(item, levels - 1) for item in value]
    return value


def usable_job_id(value: object) -> TypeGuard[str]:
    """Return whether a value can be a job id: it has to survive a path, a log line and a database."""
    return (
        isinstance(value, str)
        and len(value) <= LONGEST_JOB_ID
        and value.isprintable()
        and value.strip() not in _NO_SEGMENT
        and "\ufffd" not in value
    )


#: A path segment of dots means a place, not a name, however it is quoted.
_NO_SEGMENT = frozenset({"", ".", ".."})


def text_or_none(value: object) -> str | None:
    """Return a string that says something, else ``None``."""
    return value if isinstance(value, str) and value.strip() else None


def mapping_or_empty(value: object) -> Mapping[str, Any]:
    """Return a mapping, whatever came."""
    return value if isinstance(value, Mapping) else {}


def mappings_in(value: object) -> tuple[Mapping[str, Any], ...]:
    """Return the mappings of a list, or of a tuple, which JSON writes as one; whatever came."""
    return tuple(item for item in value if isinstance(item, Mapping)) if isinstance(value, _LIST) else ()


_LIST = (list, tuple)


def instant(value: object) -> datetime | None:
    """Read ISO-8601 text, or a number of seconds or milliseconds since 1970, as a UTC instant."""
    try:
        match value:
            case bool():
                return None
            case int() | float():
                seconds = value / 1000 if abs(value) >= MILLISECONDS_FROM else value
                return datetime.fromtimestamp(seconds, tz=UTC)
            case str() if _NUMBER.fullmatch(value.strip()):
                return instant(float(value))
            case str():
                read = datetime.fromisoformat(value.strip())
                return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


#: ``fromisoformat`` would read some numbers of seconds as a date.
_NUMBER = re.compile(r"-?[0-9]{9,}(\.[0-9]*)?")


def same_word(word: str) -> str:
    """Fold a status word so that case, ``_``, ``-`` and spaces do not matter."""
    return re.sub(r"[\s_-]+", " ", word).strip().casefold()


def completion_fields(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Read an OpenAI-shaped completion into the fields of a :class:`Job`."""
    choices = mappings_in(completion.get("choices"))
    first = choices[0] if choices else {}
    message = mapping_or_empty(first.get("message"))
    usage = completion.get("usage")
    return {
        "choices": choices,
        "content": _content_of(message.get("content")),
        "finish_reason": text_or_none(first.get("finish_reason")),
        "tool_calls": mappings_in(message.get("tool_calls")),
        "usage": usage if isinstance(usage, Mapping) else None,
        "model": text_or_none(completion.get("model")),
    }


def _content_of(content: object) -> str | None:
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in mappings_in(content)]
    return "".join(part for part in parts if isinstance(part, str)) if parts else None


def words_of(body: object) -> str | None:
    """Find the service's own words in an error body, wherever it put them."""
    fields = mapping_or_empty(body)
    error, detail = fields.get("error"), fields.get("detail")
    texts = (mapping_or_empty(error).get("message"), error, fields.get("message"), detail)
    lists = (told for told in (error, detail, fields.get("errors")) if isinstance(told, dict | list) and told)
    return next(filter(None, map(text_or_none, texts)), None) or next(map(_listed, lists), None)


def _listed(told: object) -> str:
    """Return what a validator found wrong, without the input that it repeats; anything else as it is."""
    faults = [
        f"{'.'.join(map(str, where))}: {words}" if isinstance(where := fault.get("loc"), list) else words
        for fault in mappings_in(told)
        if (words := text_or_none(fault.get("msg")))
    ]
    return "; ".join(faults) or compact(told)


def compact(value: object) -> str:
    """Return parsed JSON as text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def clipped(words: str) -> str:
    """Return words on one line and short enough to quote."""
    line = " ".join(words[:READ_CHARACTERS].split())
    return line if len(line) <= QUOTED_CHARACTERS else line[: QUOTED_CHARACTERS - 1] + "…"


def quoted(answer: httpx.Response) -> str:
    """Return ``: "the service's words"`` for a message, or nothing when it said nothing readable."""
    content = without_key(answer)
    try:
        body = parse_object(content)
        words = words_of(body) or (compact(body) if body else "")
    except Unreadable:
        words = content[:READ_CHARACTERS].decode("utf-8", "replace")
    return f': "{clipped(words)}"' if words.strip() else ""


def without_key(answer: httpx.Response) -> bytes:
    """Return an answer's body; where it repeats the key that was sent, however spelt, there are stars."""
    key = answer.request.headers.get("authorization", "").rpartition(" ")[2].encode()
    if len(key) < _SHORTEST_KEY:
        return answer.content
    content = answer.content.replace(key, b"***")
    return _escaped(key).sub(b"***", content) if _ASCII_ESCAPE.search(content) else content


#: JSON may spell any character as an escape; PHP does so for "/", .NET for "+".
_ASCII_ESCAPE = re.compile(rb"\\(?:/|u00[2-7])")


@functools.cache
def _escaped(key: bytes) -> re.Pattern[bytes]:
    spellings = (rb"(?:\\?%b|\\u00(?i:%02x))" % (re.escape(bytes([byte])), byte) for byte in key)
    return re.compile(b"".join(spellings))


def retry_after_of(answer: httpx.Response) -> float | None:
    """Return the seconds of a ``Retry-After`` header, given in seconds or as a date; ``None`` without one."""
    header = answer.headers.get("retry-after", "").strip()
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        return _seconds_until(header, answer.headers.get("date"))
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str, sent: str | None) -> float | None:
    """Measure from the answer's own date, where it has one: the two clocks need not agree."""
    try:
        until = email.utils.parsedate_to_datetime(date)
        since = email.utils.parsedate_to_datetime(sent) if sent else datetime.now(UTC)
        return max(0.0, (_in_utc(until) - _in_utc(since)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _in_utc(date: datetime) -> datetime:
    """One of HTTP's three forms of a date names no zone; all are in UTC."""
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def reset_of(answer: httpx.Response) -> float | None:
    """
    Return the seconds until a used-up ``x-ratelimit-*`` limit is reset; ``None`` when no header says so.

    Neither service documents them; these are OpenAI's and the usual gateways' spellings: ``1.5``, ``6m0s``,
    ``20ms``, or an epoch second.
    """
    waits = [
        wait
        for limit in ("", "-requests", "-tokens")
        if answer.headers.get(f"x-ratelimit-remaining{limit}", "0").strip() == "0"
        and (wait := _duration(answer.headers.get(f"x-ratelimit-reset{limit}", ""))) is not None
    ]
    return max(waits, default=None)


def _duration(text: str) -> float | None:
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return max(0.0, float(text) - datetime.now(UTC).timestamp())
    parts = _DURATION.fullmatch(text)
    if parts is None or not text:
        return None
    return sum(float(part or 0) * seconds for part, seconds in zip(parts.groups(), _UNITS, strict=True))


#: Hours, minutes, seconds and milliseconds; a bare number is seconds.
_DURATION = re.compile(
    r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{0,9})?)(?:s|\Z))?(?:(\d{1,6})ms)?", re.ASCII
)
_UNITS = (3600.0, 60.0, 1.0, 0.001)
