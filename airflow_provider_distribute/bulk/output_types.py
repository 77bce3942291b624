# SPDX-License-Identifier: Apache-2.0

"""What an answer must be: text, or JSON that fits a type or a schema."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
from pydantic import PydanticUserError, TypeAdapter, ValidationError, create_model

from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.models import problems_in

if TYPE_CHECKING:
    from airflow_provider_distribute.models import ChatRequest

__all__ = ["Mismatch", "OutputType", "output_type_from"]

#: Characters of an explanation that are kept: one wrong answer can have thousands of faults.
_LONGEST_EXPLANATION = 2000
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
#: Services want an object at the root, so anything else travels below this name.
_WRAP = "response"


class Mismatch(ValueError):
    """An answer is not what was asked for; says why."""


class OutputType(ABC):
    """
    What answers must be.

    :ivar schema: The JSON schema that is asked for; ``None``: any text will do.
    """

    name = "output"
    schema: Mapping[str, Any] | None = None

    @abstractmethod
    def read(self, content: str | None) -> Any:
        """
        Return an answer's text as plain JSON.

        :raises Mismatch: it is not what was asked for.
        """

    def asked_of(self, request: ChatRequest, *, by_response_format: bool) -> ChatRequest:
        """
        Return the request with the schema asked for.

        :param by_response_format: The service has a field for it. The prompt asks for it all the same, as the
            services' own documentation advises.
        """
        if self.schema is None:
            return request
        order = (
            "Answer with one JSON value and nothing else: no explanation, no code fence. It must match this "
            f"JSON schema: {json.dumps(self.schema, ensure_ascii=False, separators=(',', ':'))}"
        )
        messages = [dict(message) for message in request.messages]
        if messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
            messages[0]["content"] = f"{messages[0]['content']}\n\n{order}"
        else:
            messages.insert(0, {"role": "system", "content": order})
        params = dict(request.params)
        if by_response_format:
            wanted = {"name": self.name, "strict": True, "schema": self.schema}
            params.setdefault("response_format", {"type": "json_schema", "json_schema": wanted})
        return request.model_copy(update={"messages": tuple(messages), "params": params})


class _Text(OutputType):
    def read(self, content: str | None) -> Any:
        if content is None:
            raise Mismatch("the answer has no text")
        return content


class _Typed(OutputType):
    def __init__(self, type_: Any) -> None:
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(type_)
            self.schema = adapter.json_schema()
            self._wrapped = self.schema.get("type") != "object"
            if self._wrapped:
                adapter = TypeAdapter(create_model("Output", response=(type_, ...)))
                self.schema = adapter.json_schema()
        except PydanticUserError as error:
            raise InvalidRequest(
                [f"output_type {type_!r} has no JSON schema: {error.message}"], where="The run"
            ) from error
        self._adapter = adapter
        self.name = re.sub(r"[^a-zA-Z0-9_-]", "_", getattr(type_, "__name__", "output"))[:64]

    def read(self, content: str | None) -> Any:
        try:
            value = self._adapter.validate_json(_json_in(content))
        except ValidationError as error:
            raise Mismatch(_clipped("; ".join(problems_in(error)))) from None
        plain = self._adapter.dump_python(value, mode="json")
        return plain[_WRAP] if self._wrapped else plain


class _Schema(OutputType):
    def __init__(self, schema: Mapping[str, Any]) -> None:
        checker = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            checker.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise InvalidRequest(
                [f"output_type is not a JSON schema: {error.message}"], where="The run"
            ) from error
        self._checker = checker(schema)
        self._wrapped = schema.get("type") != "object"
        self.schema = _wrapping(schema) if self._wrapped else schema

    def read(self, content: str | None) -> Any:
        try:
            value = json.loads(_json_in(content))
        except ValueError as error:
            raise Mismatch(f"not JSON: {error}") from None
        if self._wrapped:
            if not isinstance(value, dict) or _WRAP not in value:
                raise Mismatch(f"not an object with {_WRAP!r}")
            value = value[_WRAP]
        fault = jsonschema.exceptions.best_match(self._checker.iter_errors(value))
        if fault is not None:
            raise Mismatch(_clipped(f"{fault.json_path}: {fault.message}"))
        return value


def _wrapping(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    # References such as "#/$defs/x" are relative to the root, so the definitions move there.
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    inner = {name: value for name, value in schema.items() if name not in definitions}
    return {"type": "object", "properties": {_WRAP: inner}, "required": [_WRAP], **definitions}


def _json_in(content: str | None) -> str:
    """Models put JSON into a code fence, whatever they are told."""
    if content is None:
        raise Mismatch("the answer has no text")
    fenced = _FENCE.match(content)
    return fenced[1] if fenced else content


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
