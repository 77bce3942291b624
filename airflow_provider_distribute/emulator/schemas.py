# SPDX-License-Identifier: Apache-2.0

"""
JSON values that satisfy a JSON schema, for the simple schemas people ask language models to follow.

Understood: ``type`` (also a list), ``properties``, ``items``, ``prefixItems``, ``enum``, ``const``,
``anyOf``/``oneOf`` (the first branch), ``allOf``, local ``$ref``, bounds of numbers, lengths and counts,
``multipleOf`` and the usual string formats. ``pattern`` is not; a ``default`` is taken for a string that
has one.
"""

from __future__ import annotations

import json
import math
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

DEEPEST = 12
OPTIONAL_UNTIL = 6
LONGEST = 1000
MOST_VALUES = 10_000

SCHEMA_KEYWORDS = frozenset({"properties", "items", "enum", "anyOf", "oneOf", "allOf", "$ref", "$defs"})
TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})

FORMATS = {
    "date": "2025-06-04",
    "time": "18:22:42Z",
    "date-time": "2025-06-04T18:22:42Z",
    "duration": "P1D",
    "email": "person@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
}


def embedded(text: str) -> dict[str, Any] | None:
    """Find a JSON schema written out in ``text``, for services that have no ``response_format``."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if (
                value.get("type") in TYPES
                if isinstance(value.get("type"), str)
                else SCHEMA_KEYWORDS & value.keys()
            ):
                return dict(value)
        start = text.find("{", end)
    return None


def example(schema: Mapping[str, Any], chance: Random, words: Sequence[str]) -> Any:
    """
    Make a value for ``schema``. Strings are made of ``words``; the same ``chance`` makes the same value.

    :param words: at least one.
    :raises ValueError: if the schema makes no sense, or asks for very much.
    """
    try:
        return _Example(schema, chance, words).value(schema, 0)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"cannot follow this schema: {error}") from error


class _Example:
    def __init__(self, root: Mapping[str, Any], chance: Random, words: Sequence[str]) -> None:
        self.root = root
        self.chance = chance
        self.words = words
        self.left = MOST_VALUES
        self.by_type: dict[str, Callable[[Mapping[str, Any], int], Any]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "number": self._number,
            "integer": self._number,
            "boolean": self._boolean,
            "null": self._null,
        }

    def _boolean(self, schema: Mapping[str, Any], depth: int) -> bool:
        return self.chance.random() < 0.5

    def _null(self, schema: Mapping[str, Any], depth: int) -> None:
        return None

    def value(self, schema: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("this schema asks for too much")
        if not isinstance(schema, dict) or depth > DEEPEST:
            return None
        schema = self._flat(schema)
        if "const" in schema:
            return schema["const"]
        if choices := schema.get("enum"):
            return self.chance.choice(choices)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((name for name in kind if name != "null"), "null")
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
        if kind not in self.by_type:
            kind = "string"
        return self.by_type[kind]({**schema, "type": kind}, depth)

    def _flat(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follow references and take one branch of each alternative, until the schema says a type itself."""
        for _ in range(DEEPEST):
            if reference := schema.get("$ref"):
                target = self._resolve(reference)
                schema = {**{k: v for k, v in schema.items() if k != "$ref"}, **target}
            elif branches := schema.get("anyOf") or schema.get("oneOf"):
                rest = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf")}
                schema = _merge(rest, branches[0])
            elif parts := schema.get("allOf"):
                merged = {k: v for k, v in schema.items() if k != "allOf"}
                for part in parts:
                    merged = _merge(merged, self._flat(part))
                schema = merged
            else:
                break
        return schema

    def _resolve(self, reference: str) -> Mapping[str, Any]:
        target: Any = self.root
        for step in reference.removeprefix("#").split("/")[1:]:
            target = (
                target.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(target, dict) else {}
            )
        return target if isinstance(target, dict) else {}

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self.value(part, depth + 1)
            for name, part in schema.get("properties", {}).items()
            if name in required or depth < OPTIONAL_UNTIL
        }

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = [self.value(part, depth + 1) for part in schema.get("prefixItems", ())]
        fewest = schema.get("minItems", 0)
        most = schema.get("maxItems", max(fewest, 2))
        items = schema.get("items")
        usual = 1 if isinstance(items, dict) and depth < OPTIONAL_UNTIL and not first else 0
        length = min(max(fewest, usual), most, LONGEST)
        return first + [self.value(items, depth + 1) for _ in range(length - len(first))]

    def _string(self, schema: Mapping[str, Any], depth: int) -> str:
        if (form := schema.get("format")) == "uuid":
            return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        if form in FORMATS:
            return FORMATS[form]
        if isinstance(default := schema.get("default"), str):
            return default
        text = " ".join(self.chance.choices(self.words, k=3))
        fewest = min(schema.get("minLength", 0), LONGEST)
        while len(text) < fewest:
            text += " " + self.chance.choice(self.words)
        return text[: max(schema.get("maxLength", LONGEST), 0)]

    def _number(self, schema: Mapping[str, Any], depth: int) -> float:
        integer = schema["type"] == "integer"
        smallest = schema.get("multipleOf") or (1 if integer else 0.01)
        low = schema.get("minimum", -math.inf)
        high = schema.get("maximum", math.inf)
        if (above := schema.get("exclusiveMinimum")) is not None:
            low = max(low, above + smallest)
        if (below := schema.get("exclusiveMaximum")) is not None:
            high = min(high, below - smallest)
        if low == -math.inf:
            low = min(0, high) if high < math.inf else 0
        if high == math.inf:
            high = low + 100 * smallest
        first, last = math.ceil(low / smallest), math.floor(high / smallest)
        if first > last:
            return float(low)
        number = self.chance.randint(first, last) * smallest
        return int(number) if integer else round(number, 6)


def _merge(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """``right`` over ``left``; properties and required names are joined."""
    merged = {**left, **right}
    if "properties" in left and "properties" in right:
        merged["properties"] = {**left["properties"], **right["properties"]}
    if "required" in left and "required" in right:
        merged["required"] = [*left["required"], *right["required"]]
    return merged
