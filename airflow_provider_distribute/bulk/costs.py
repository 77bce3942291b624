# SPDX-License-Identifier: Apache-2.0

"""
What requests cost: an estimate before they are sent, and a better one from the tokens the service counted.

Neither is a bill. Prices are the connection's, else the service's published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.bulk.kept import request_from
from airflow_provider_distribute.exceptions import BudgetSpent
from airflow_provider_distribute.ledger.lines import to_json
from airflow_provider_distribute.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_provider_distribute.ledger.replay import State
    from airflow_provider_distribute.models import ChatRequest, Price, Settings

__all__ = ["Budget", "Costs", "Tokens", "spent"]

#: Text has about this many bytes of UTF-8 to a token, in most scripts.
_BYTES_PER_TOKEN = 4
#: Tokens that the frame of one message takes.
_PER_MESSAGE = 4
#: Tokens an answer is taken to have at most when the request sets no limit.
_UNLIMITED_ANSWER = 1024
#: Tokens that say what is wrong with an answer, when a better one is asked for.
_COMPLAINT = 256
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """
    How many tokens.

    :param prompt: Read.
    :param completion: Written.
    """

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        """Return the sum."""
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    @classmethod
    def counted(cls, usage: Mapping[str, Any] | None) -> Tokens | None:
        """Read what a service counted; ``None``: it did not say."""
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if usage else []
        if not counts or not all(isinstance(count, int | float) and count >= 0 for count in counts):
            return None
        return cls(*(int(count) for count in counts if count is not None))

    @property
    def repair(self) -> Tokens:
        """What asking for a better answer takes, which reads the first one again, however long it was."""
        return Tokens(self.prompt + self.completion + _COMPLAINT, self.completion)


def _bytes(content: object) -> int:
    if isinstance(content, str):
        return len(content.encode())
    if isinstance(content, list):
        return sum(_bytes(part.get("text")) for part in content if isinstance(part, Mapping))
    return 0


class Costs:
    """
    One connection's prices.

    :param settings: The connection.
    """

    def __init__(self, settings: Settings) -> None:
        self._service = SERVICES[settings.service]
        own = dict(settings.prices)
        self._prices: Mapping[str, Price] = {**self._service.prices, **own}
        self.source = "the connection" if own else f"published prices of {self._service.prices_as_of}"

    def needs(self, request: ChatRequest) -> Tokens:
        """Guess what a checked request takes, before it is sent: the longest answers it allows."""
        read = sum(_bytes(message.get("content")) for message in request.messages)
        # Tools and schemas are read by the model as well.
        shapes = [value for value in request.params.values() if isinstance(value, Mapping | list)]
        read += sum(len(to_json(shape).encode()) for shape in shapes)
        return Tokens(
            read // _BYTES_PER_TOKEN + _PER_MESSAGE * len(request.messages),
            self._service.answer_tokens(request, unlimited=_UNLIMITED_ANSWER),
        )

    def knows(self, model: str | None) -> bool:
        """Return whether there is a price for a model."""
        return model in self._prices

    def of(self, model: str | None, tokens: Tokens | None) -> float | None:
        """Return US dollars, or ``None`` without a price or without a count."""
        price = self._prices.get(model or "")
        if price is None or tokens is None:
            return None
        return (tokens.prompt * price.prompt + tokens.completion * price.completion) / _MILLION


def spent(lines: Iterable[Mapping[str, Any]], state: State, costs: Costs) -> float:
    """
    Return what everything that was sent so far is estimated to cost, in US dollars.

    :param lines: The run's requests, as they were kept.
    :param state: How often each of them was sent.
    """
    total = 0.0
    for line in lines if any(state.sends) else ():
        row = line["row"]
        if state.sends[row]:
            request, repairs = request_from(line), state.repairs[row]
            needs = costs.needs(request)
            total += (state.sends[row] - repairs) * (costs.of(request.model, needs) or 0.0)
            total += repairs * (costs.of(request.model, needs.repair) or 0.0)
    return total


class Budget:
    """
    Keeps the estimate of what was sent below a limit.

    :param limit: US dollars; ``None``: no limit.
    :param costs: The estimate for each row.
    :param spent: US dollars that are spent already.
    """

    def __init__(
        self, limit: float | None, costs: Sequence[float] | Mapping[int, float], spent: float = 0.0
    ) -> None:
        self._limit = limit
        self._costs = costs
        self._sum = spent

    def allows(self, row: int) -> bool:
        """Return whether a row may be sent once; it is counted then."""
        if self._limit is None:
            return True
        if self._sum + self._costs[row] > self._limit:
            return False
        self._sum += self._costs[row]
        return True

    def spent(self) -> BudgetSpent:
        """Return the error that says so."""
        return BudgetSpent(
            f"Sending stopped at max_cost, of which this run may spend ${self._limit or 0:.4f}: about "
            f"${self._sum:.4f} are spent by estimate, and the next request might pass it, because it is "
            "taken to use its whole token limit."
        )
