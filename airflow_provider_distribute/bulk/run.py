# SPDX-License-Identifier: Apache-2.0

"""Taking up a run: check the input, see what an earlier attempt paid for, record what is asked now."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import uuid
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_distribute.bulk.costs import Budget, Costs, Tokens, spent
from airflow_provider_distribute.bulk.inputs import MOST_PROBLEMS, Defaults, Item, Shard, items_of
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.exceptions import (
    InputChanged,
    InvalidInput,
    InvalidRequest,
    LedgerTaken,
)
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.ledger.lines import to_json
from airflow_provider_distribute.ledger.records import Asking, Opened, Settled
from airflow_provider_distribute.ledger.requests import RequestWriter, read_requests
from airflow_provider_distribute.ledger.spans import spans
from airflow_provider_distribute.models import ChatRequest
from airflow_provider_distribute.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow_provider_distribute.bulk.inputs import Source
    from airflow_provider_distribute.bulk.output_types import OutputType
    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.records import Owner, Record
    from airflow_provider_distribute.models import Settings

__all__ = ["Plan", "Run", "Staged", "new_writer", "request_from", "stage"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How a run is to be done.

    :param settings: The connection.
    :param owner: The task instance.
    :param defaults: What holds for requests that do not say otherwise.
    :param output_type: What answers must be.
    :param shard: Which part of the input this run takes.
    :param dedupe: Send identical requests once.
    :param on_input_change: What to do when a run is recorded for another input.
    :param on_unknown: What to do with requests that were sent and not answered.
    :param max_cost: US dollars that the estimate must not pass; ``None``: no limit.
    :param window: Rows that may be intended and not recorded.
    """

    settings: Settings
    owner: Owner
    defaults: Defaults = field(default_factory=Defaults)
    output_type: OutputType = field(default_factory=lambda: output_type_from(str))
    shard: Shard = field(default_factory=Shard)
    dedupe: bool = False
    on_input_change: Literal["fail", "restart"] = "fail"
    on_unknown: Literal["resubmit", "fail", "leave"] = "resubmit"
    max_cost: float | None = None
    window: int = 64


@dataclass(frozen=True, slots=True)
class Staged:
    """
    An input that was read and found good.

    :param count: Rows.
    :param fingerprint: Of everything that is asked, and of whom.
    :param tokens: An estimate of what asking all of it takes.
    :param costs: An estimate for each row in US dollars; not a number without a price.
    :param copies: Rows that ask the same as an earlier row, which is sent for both.
    """

    count: int
    fingerprint: str
    tokens: Tokens
    costs: array[float]
    copies: Mapping[int, int]

    @property
    def cost(self) -> float | None:
        """The estimate for all rows; ``None``: a row has no price."""
        total = sum(self.costs)
        return None if math.isnan(total) else total


def new_writer(now: float) -> str:
    """Return a name that no other writer has, and that sorts by time."""
    return f"{int(now * 1000):013d}-{uuid.uuid4().hex[:8]}"


def stage(source: Source, plan: Plan, writer: RequestWriter | None = None) -> Staged:
    """
    Read and check a whole input; nothing is sent.

    :param writer: Keeps a copy of the requests.
    :raises InvalidInput: naming every wrong line, up to a hundred.
    """
    service = SERVICES[plan.settings.service]
    by_response_format = "response_format" in service.params.model_fields
    costs = Costs(plan.settings)
    asked = hashlib.sha256(to_json([plan.settings.conn_id, service.name, plan.dedupe]).encode())
    estimates, tokens = array("d"), Tokens()
    named: set[str] = set()
    first_with: dict[str, int] = {}
    copies: dict[int, int] = {}
    problems: list[str] = []
    for row, (where, item) in enumerate(items_of(source, plan.defaults, plan.shard)):
        try:
            line, body = _line(row, item, plan, by_response_format, named)
        except InvalidRequest as error:
            problems.append(f"{where}: {'; '.join(error.problems)}")
            if len(problems) == MOST_PROBLEMS:
                raise InvalidInput(problems, source=source.name, more=True) from None
            continue
        if plan.dedupe:
            question = hashlib.sha256(to_json({**body, "metadata": None}).encode()).hexdigest()[:32]
            if (first := first_with.setdefault(question, row)) != row:
                line["same_as"] = copies[row] = first
        needs = Tokens() if row in copies else Tokens.estimated(body)
        cost = costs.of(body["model"], needs)
        estimates.append(math.nan if cost is None else cost)
        tokens += needs
        asked.update(to_json(line).encode())
        if writer:
            writer.add(line)
    if problems:
        raise InvalidInput(problems, source=source.name)
    if not estimates:
        raise InvalidInput(["it holds no requests"], source=source.name)
    if writer:
        writer.flush()
    if plan.max_cost is not None and math.isnan(sum(estimates)):
        raise InvalidInput(
            ["max_cost is set, and a model has no known price: put it into the connection's prices"],
            source=source.name,
        )
    return Staged(len(estimates), asked.hexdigest()[:32], tokens, estimates, copies)


def _line(
    row: int, item: Item | InvalidRequest, plan: Plan, by_response_format: bool, named: set[str]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return a request as it is kept, and the body the service would get."""
    if isinstance(item, InvalidRequest):
        raise item
    custom_id = item.custom_id or f"row-{plan.shard.index(row)}"
    if custom_id in named:
        raise InvalidRequest([f"custom_id {custom_id!r} is there twice"])
    named.add(custom_id)
    request = plan.output_type.asked_of(item.request, by_response_format=by_response_format)
    call = SERVICES[plan.settings.service].describe_submit(request, plan.settings)
    body = call.body or {}
    line = {"row": row, "custom_id": custom_id, "request": {**request.model_dump(), "model": body["model"]}}
    try:
        to_json(line).encode()
    except (ValueError, TypeError) as error:
        raise InvalidRequest([f"holds something that JSON cannot say ({type(error).__name__})"]) from None
    return line, body


def request_from(line: Mapping[str, Any]) -> ChatRequest:
    """Return a kept request; it was checked when it was written."""
    fields = line["request"]
    return ChatRequest.model_construct(**{**fields, "messages": tuple(fields["messages"])})


class Run:
    """
    One attempt at a run.

    :param directory: The run's directory.
    :param plan: How it is to be done.
    """

    def __init__(self, directory: Directory, plan: Plan) -> None:
        self.directory = directory
        self.plan = plan
        self.writer = new_writer(time.time())
        self.journal = Journal(directory, writer=self.writer)
        self.state = self.journal.read()

    def take_up(self, source: Source, *, now: float) -> Staged:
        """
        Check the input, and record that this attempt begins and what it asks.

        :param now: Epoch seconds.
        :raises InvalidInput: naming every wrong line.
        :raises InputChanged: the run is recorded for another input.
        :raises LedgerTaken: the directory is another task instance's.
        """
        before = self.state.opened
        if before is None:
            folder = f"requests/{self.writer}"
            staged = stage(source, self.plan, RequestWriter(self.directory, folder))
        else:
            staged, folder = self._compare(source, before)
        attempt = before.attempt + 1 if before else 1
        opened = Opened(
            attempt=attempt,
            at=now,
            owner=self.plan.owner,
            conn_id=self.plan.settings.conn_id,
            fingerprint=staged.fingerprint,
            count=staged.count,
            requests=folder,
            window=self.plan.window,
        )
        known = self.state.after(opened)
        asked = known.to_ask(doubtful=self.plan.on_unknown == "resubmit") - staged.copies.keys()
        self._note(opened, Asking.of(asked))
        return staged

    def _compare(self, source: Source, before: Opened) -> tuple[Staged, str]:
        if before.owner != self.plan.owner:
            raise LedgerTaken(
                f"{self.directory.uri!r} is the run of {before.owner}, not of {self.plan.owner}."
            )
        staged = stage(source, self.plan)
        if staged.fingerprint == before.fingerprint:
            return staged, before.requests
        jobs = len(set(self.state.tickets.values()))
        if self.plan.on_input_change == "fail":
            raise InputChanged(
                f"{self.directory.uri!r} records a run for another input: {before.count} rows then, "
                f"{staged.count} now, or other requests, model, output_type or connection. {jobs} jobs were "
                "accepted for it. Restore the input, or set on_input_change='restart' to leave those jobs "
                "behind and pay for the new input."
            )
        log.warning(
            "The input has changed: starting over. %d jobs were accepted for the old input; those that have "
            "not ended go on, and all are billed.",
            jobs,
        )
        folder = f"requests/{self.writer}"
        again = stage(source, self.plan, RequestWriter(self.directory, folder))
        if again.fingerprint != staged.fingerprint:
            raise InputChanged(f"{source.name} changes while it is read. Nothing was sent.")
        return staged, folder

    def ask_again(self, rows: set[int]) -> None:
        """Record that rows are asked once more in this attempt."""
        self._note(Asking.of(rows))

    def settle(self, again: set[int], unknown: set[int]) -> None:
        """Record that the outcome was landed, which rows are asked again later, and which are unknown."""
        self._note(Settled(spans(again), spans(unknown)))

    def budget(self, estimates: Sequence[float] | Mapping[int, float]) -> Budget:
        """
        Return what may still be spent.

        :param estimates: US dollars for each row that may be sent.
        """
        limit = self.plan.max_cost
        so_far = 0.0 if limit is None else spent(self.lines(), self.state, Costs(self.plan.settings))
        return Budget(limit, estimates, so_far)

    def _note(self, *records: Record) -> None:
        self.journal.append(records)
        for record in records:
            self.state = self.state.after(record)

    def requests(self, folder: str | None = None) -> Iterator[tuple[int, ChatRequest]]:
        """
        Yield the requests that are to be asked and have not been, in order.

        :param folder: Where they are, unless it is the run's own folder.
        """
        for line in self.lines(folder):
            if line["row"] in self.state.open:
                yield line["row"], request_from(line)

    def lines(self, folder: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield everything that was kept of the requests, in order."""
        if self.state.opened:
            yield from read_requests(self.directory, folder or self.state.opened.requests)
