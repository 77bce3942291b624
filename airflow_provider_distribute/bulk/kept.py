# SPDX-License-Identifier: Apache-2.0

"""A request as a run keeps it: what the author asks, not what a service is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_distribute.models import ChatRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Asked", "kept", "request_from"]


class Asked(NamedTuple):
    """
    One request of a run.

    :param row: Its row.
    :param custom_id: Its name, for people.
    :param request: What is asked.
    """

    row: int
    custom_id: str
    request: ChatRequest

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Asked:
        """Read a kept line."""
        return cls(line["row"], line["custom_id"], request_from(line))


def kept(request: ChatRequest) -> dict[str, Any]:
    """Return a checked request as it is kept, in a line's ``request``."""
    return {
        "messages": [dict(message) for message in request.messages],
        "model": request.model,
        "params": dict(request.params),
        "metadata": dict(request.metadata),
    }


def request_from(line: Mapping[str, Any]) -> ChatRequest:
    """Return a kept line's request; it was checked when it was written."""
    fields = line["request"]
    return ChatRequest.model_construct(**{**fields, "messages": tuple(fields["messages"])})
