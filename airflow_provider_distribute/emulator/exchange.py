# SPDX-License-Identifier: Apache-2.0

"""What comes in and what goes out, as values: the emulator decides on these, the web server carries them."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Operation(enum.StrEnum):
    """What a request asks of a service, whatever its path."""

    SUBMIT = "submit"
    LOOK = "look"
    MODELS = "models"


@dataclass(frozen=True, slots=True)
class Route:
    """One address of a service. ``{id}`` in ``path`` stands for a job id."""

    method: str
    path: str
    operation: Operation
    kind: str = "chat"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the web server received it. ``job_id`` is the one in the path, unquoted, or ``""``."""

    service: str
    route: Route
    authorization: str | None = field(repr=False)
    content_type: str
    body: bytes = field(repr=False)
    job_id: str = ""


class Delivery(enum.Enum):
    """How an answer travels."""

    WHOLE = enum.auto()
    CUT = enum.auto()
    """Half of the announced body, then the connection is reset."""
    RESET = enum.auto()
    """Nothing: the connection is reset."""


@dataclass(frozen=True, slots=True)
class Reply:
    """
    An answer and the way it is delivered.

    :param delay: seconds to wait before the first byte.
    :param padding: number of blanks sent after the body, for answers larger than a client should read.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    delivery: Delivery = Delivery.WHOLE
    padding: int = 0

    @property
    def sent_status(self) -> int | None:
        """The status the client gets to see, ``None`` if it gets none."""
        return None if self.delivery is Delivery.RESET else self.status


def json_reply(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer whose body is ``value`` as JSON."""
    return Reply(status, json.dumps(value, separators=(",", ":")).encode(), headers=headers or {})


class Refused(Exception):
    """A service does not accept a request. ``message`` is what it says in its error body."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}
