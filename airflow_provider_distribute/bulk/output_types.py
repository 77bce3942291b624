# SPDX-License-Identifier: Apache-2.0

"""What an answer must be: text, or JSON that fits a type or a schema."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from referencing import Registry
from referencing.jsonschema import specification_with

from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.ledger.lines import to_json
from airflow_provider_distribute.models import problems_in
from airflow_provider_distribute.services.reading import DEEPEST, Unreadable, storable

if TYPE_CHECKING:
    from airflow_provider_distribute.models import ChatRequest

__all__ = ["Mismatch", "OutputType", "output_type_from"]

#: Characters of an explanation that are kept: one wrong answer can have thousands of faults.
_LONGEST_EXPLANATION = 2000
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
#: Services want an object at the root, so anything else travels below this name.
_WRAP = "response"
#: What may be an integer beyond 64 bits. pandas reads nothing at all of a file that holds one.
_LONG_INTEGER = re.compile(r"[0-9]{19}")
#: What every strict mode knows of JSON Schema. A strict service may refuse all requests for one word more.
_STRICT_KEYWORDS = frozenset(
    {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "anyOf"}
    | {"$ref", "$defs", "definitions", "title", "description"}
)


class Mismatch(ValueError):
    """An answer is not what was asked for; says why."""


class OutputType(ABC):
    """
    What answers must be.

    :ivar schema: The JSON schema that is asked for; ``None``: any text will do.
    """

    name = "output"
    schema: Mapping[str, Any] | None = None

    def read(self, content: str | None) -> Any:
        """
        Return an answer's text as plain JSON that every format can write and every reader can take.

        :raises Mismatch: it is not what was asked for.
        """
        try:
            return _writable(self._value(content))
        except Exception as error:
            # Not only what we raise: an author's validators may raise anything, and the row is paid for.
            raise Mismatch(_explained(error)) from None

    @abstractmethod
    def _value(self, content: str | None) -> Any:
        """Return what an answer's text says; any exception means that it is not what was asked for."""

    def asked_of(self, request: ChatRequest, *, by_response_format: bool) -> ChatRequest:
        """
        Return the request with the schema asked for.

        :param by_response_format: The service has a field for it. The prompt asks for it all the same, as the
            services' own documentation advises.
        """
        if self.schema is None:
            return request
        first, *rest = request.messages
        if first["role"] == "system" and isinstance(first.get("content"), str):
            messages = ({**first, "content": f"{first['content']}\n\n{self._order}"}, *rest)
        else:
            messages = ({"role": "system", "content": self._order}, first, *rest)
        params = request.params
        if by_response_format:
            params = {"response_format": self._response_format, **params}
        return request.model_copy(update={"messages": messages, "params": params})

    @cached_property
    def _order(self) -> str:
        return (
            "Answer with one JSON value and nothing else: no explanation, no code fence. It must match this "
            f"JSON schema: {to_json(self.schema)}"
        )

    @cached_property
    def _response_format(self) -> dict[str, Any]:
        wanted = {"name": self.name, "strict": _fits_strict_mode(self.schema), "schema": self.schema}
        return {"type": "json_schema", "json_schema": wanted}


class _Text(OutputType):
    def _value(self, content: str | None) -> Any:
        return _text_of(content)


class _Typed(OutputType):
    def __init__(self, type_: Any) -> None:
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(type_)
            self.schema = adapter.json_schema()
            self._wrapped = self.schema.get("type") != "object"
            if self._wrapped:
                closed = ConfigDict(json_schema_extra={"additionalProperties": False})
                adapter = TypeAdapter(create_model("Output", __config__=closed, response=(type_, ...)))
                self.schema = adapter.json_schema()
            to_json(self.schema).encode()
        except Exception as error:
            raise _unusable(type_, error) from error
        self._adapter = adapter
        self.name = re.sub(r"[^a-zA-Z0-9_-]", "_", getattr(type_, "__name__", "output"))[:64]

    def _value(self, content: str | None) -> Any:
        value = self._adapter.validate_json(_json_in(content))
        plain = self._adapter.dump_python(value, mode="json")
        return plain[_WRAP] if self._wrapped else plain


class _Schema(OutputType):
    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            own = json.loads(to_json(dict(schema)).encode())
            checker = jsonschema.validators.validator_for(own, default=jsonschema.Draft202012Validator)
            checker.check_schema(own)
            _follow_references(own, checker)
        except Exception as error:
            raise _unusable(schema, error) from error
        # A registry of our own, because the default one fetches from the network.
        self._checker = checker(own, registry=Registry())
        self._wrapped = own.get("type") != "object"
        self.schema = _wrapping(own) if self._wrapped else own

    def _value(self, content: str | None) -> Any:
        try:
            value = json.loads(_json_in(content))
        except (ValueError, RecursionError) as error:
            raise Mismatch(f"not JSON: {error}") from None
        if self._wrapped:
            if not isinstance(value, dict) or _WRAP not in value:
                raise Mismatch(f"not an object with {_WRAP!r}")
            value = value[_WRAP]
        fault = jsonschema.exceptions.best_match(self._checker.iter_errors(value))
        if fault is not None:
            raise Mismatch(f"{fault.json_path}: {fault.message}")
        return value


def _unusable(spec: object, error: Exception) -> InvalidRequest:
    reason = f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return InvalidRequest(
        [f"output_type {_clipped(repr(spec))} has no usable JSON schema ({_clipped(reason)})"],
        where="The run",
    )


def _follow_references(schema: Mapping[str, Any], checker: Any) -> None:
    """
    Follow each reference once: a validator does so only when an answer leads it there.

    :raises referencing.exceptions.Unresolvable: it leads nowhere.
    """
    root = specification_with(checker.ID_OF(checker.META_SCHEMA)).create_resource(schema)
    left = [(root, Registry().resolver_with_root(root))]
    while left:
        resource, resolver = left.pop()
        if isinstance(resource.contents, Mapping) and "$ref" in resource.contents:
            resolver.lookup(resource.contents["$ref"])
        left += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]


def _wrapping(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    # References such as "#/$defs/x" are relative to the root, so the definitions move there.
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    inner = {name: value for name, value in schema.items() if name not in definitions}
    return {
        "type": "object",
        "properties": {_WRAP: inner},
        "required": [_WRAP],
        "additionalProperties": False,
        **definitions,
    }


def _fits_strict_mode(schema: Any) -> bool:
    """Return whether every object is closed and requires all it may hold, and nothing else is odd."""
    if not isinstance(schema, Mapping) or not schema.keys() <= _STRICT_KEYWORDS:
        return False
    properties = schema.get("properties", {})
    if schema.get("type") == "object" or properties:
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != properties.keys():
            return False
    elif schema.keys().isdisjoint({"type", "$ref", "anyOf"}):
        return False
    inner = [*properties.values(), *schema.get("anyOf", ())]
    inner += [schema["items"]] if "items" in schema else []
    inner += [*schema.get("$defs", {}).values(), *schema.get("definitions", {}).values()]
    return all(map(_fits_strict_mode, inner))


def _text_of(content: str | None) -> str:
    if content is None:
        raise Mismatch("the answer has no text")
    return content


def _json_in(content: str | None) -> str:
    """Models put JSON into a code fence, whatever they are told."""
    text = _text_of(content)
    fenced = _FENCE.match(text)
    return fenced[1] if fenced else text


def _writable(value: Any) -> Any:
    plain = storable(value, DEEPEST)
    if isinstance(plain, str):
        return plain
    try:
        text = to_json(plain)
        if _LONG_INTEGER.search(text):
            json.loads(text, parse_int=_in_64_bits)
    except ValueError:
        raise Mismatch("holds a number that is not finite, or an integer beyond 64 bits") from None
    text.encode()
    return plain


def _in_64_bits(digits: str) -> None:
    if not -(2**63) <= int(digits) < 2**64:
        raise ValueError(digits)


def _explained(error: Exception) -> str:
    match error:
        case ValidationError():
            why = "; ".join(problems_in(error))
        case Mismatch() | Unreadable():
            why = str(error)
        case _:
            why = f"cannot be read ({type(error).__name__})"
    return _clipped(storable(why, 0))


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_EXPLANATION else text[: _LONGEST_EXPLANATION - 1] + "…"


def output_type_from(spec: Any) -> OutputType:
    """
    Read what an author gave as ``output_type``.

    :param spec: ``str``, a pydantic model, any type that ``pydantic.TypeAdapter`` takes, or a JSON schema.
    :raises InvalidRequest: it is none of these.
    """
    if spec is str:
        return _Text()
    if isinstance(spec, Mapping):
        return _Schema(spec)
    return _Typed(spec)
