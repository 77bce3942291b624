# SPDX-License-Identifier: Apache-2.0

"""What a contract has to say, so that the rest of the emulator need not know which service it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_distribute.emulator.exchange import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_provider_distribute.emulator.answers import Answer
    from airflow_provider_distribute.emulator.contracts.checks import Check
    from airflow_provider_distribute.emulator.exchange import Incoming, Route
    from airflow_provider_distribute.emulator.jobs import Job


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    What an accepted request asks for, in terms both services share.

    :param text: the last message's text, which the answer echoes.
    :param system: the system messages, where a JSON schema may be asked for.
    :param words: number of words in all messages, taken for the number of prompt tokens.
    :param limit: most tokens the answer may have; ``None`` without a limit.
    :param function: the tool that has to be called; ``None`` for an answer in words.
    :param schema: JSON schema of the answer; ``None`` for free text.
    """

    model: str
    text: str
    system: str
    words: int
    limit: int | None
    count: int = 1
    function: Mapping[str, Any] | None = None
    schema: Mapping[str, Any] | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """
    Options of how a service writes, where its documents allow more than one form.

    :param timestamps: ``ms``, ``s`` or ``iso``; only distribute leaves it open.
    :param auth_prefix: what stands before the key; only distribute leaves it open.
    :param errors: form of the error bodies; only inference_net leaves it open.
    """

    timestamps: str = "ms"
    auth_prefix: str = ""
    errors: str = "object"


class Contract(Protocol):
    """One service. All methods are pure."""

    @property
    def name(self) -> str:
        """The service's name, which is also its prefix in paths."""
        ...

    @property
    def routes(self) -> tuple[Route, ...]:
        """The addresses it has."""
        ...

    @property
    def status_field(self) -> str:
        """The field of a result that holds :meth:`status`."""
        ...

    @property
    def prices(self) -> Mapping[str, tuple[float, float]]:
        """US dollars per million prompt and answer tokens, by model; ``""`` is for the rest."""
        ...

    def refuse_key(self, header: str | None, key: str | None, shape: Shape) -> str | None:
        """
        Return why the ``Authorization`` header is not accepted, ``None`` if it is. Without ``key`` any key
        is.
        """
        ...

    def problems(self, kind: str, body: Any) -> Iterator[str]:
        """Yield what is wrong with a submission."""
        ...

    def prompt(self, kind: str, body: dict[str, Any]) -> Prompt:
        """Read an accepted submission."""
        ...

    def job_id(self, seed: bytes) -> str:
        """Make an id in the service's form from 16 bytes."""
        ...

    def looked_at(self, incoming: Incoming) -> str:
        """
        Return the id of the job that is asked about.

        :raises Refused: if the request does not say so as it should.
        """
        ...

    def accepted(self, job: Job) -> dict[str, Any]:
        """Render the answer to a submission."""
        ...

    def status(self, job: Job, now: float) -> str:
        """The service's own word for where the job stands."""
        ...

    def result(self, job: Job, answer: Answer | None, now: float, shape: Shape) -> dict[str, Any]:
        """Render the answer to a look. ``answer`` is ``None`` unless the job ended well."""
        ...

    def completion(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a result that holds ``choices``."""
        ...

    def error(self, status: int, message: str, shape: Shape) -> Any:
        """Render an error body."""
        ...

    def models(self) -> Any:
        """Render the catalogue."""
        ...


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_json(incoming: Incoming) -> Any:
    """
    Parse the body of a request that must be JSON.

    :raises Refused: with status 400 if it is none.
    """
    if incoming.content_type != "application/json":
        raise Refused(400, "Content-Type must be application/json")
    try:
        return json.loads(incoming.body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "The request body is not valid JSON") from None


def refuse_problems(check: Check, body: Any) -> None:
    """
    Raise for the first few problems ``check`` finds.

    :raises Refused: with status 400.
    """
    if problems := list(check(body, "")):
        raise Refused(400, "; ".join(problems[:5]))


def required_function(body: dict[str, Any]) -> dict[str, Any] | None:
    """
    The function a chat request insists on, by ``tool_choice``: ``"required"`` for any, or an object that
    names one.

    :raises Refused: if there is none of that name.
    """
    choice = body.get("tool_choice")
    name = None
    if isinstance(choice, dict) and choice.get("type") == "function":
        named = choice.get("function")
        name = named.get("name") if isinstance(named, dict) else None
    elif choice != "required":
        return None
    for tool in body.get("tools") or ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and name in (None, function.get("name")):
            return function
    raise Refused(400, "tool_choice asks for a function that tools does not hold")
