# SPDX-License-Identifier: Apache-2.0

"""Taking up a run: check the input, see what an earlier attempt paid for, record what is asked now."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
import uuid
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_distribute.bulk.costs import Budget, Costs, Tokens, spent
from airflow_provider_distribute.bulk.inputs import MOST_PROBLEMS, Defaults, Item, Shard, items_of
from airflow_provider_distribute.bulk.kept import Asked, kept, request_from
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.bulk.policy import Policy
from airflow_provider_distribute.exceptions import (
    AccessDenied,
    BudgetSpent,
    InputChanged,
    InputUnreadable,
    InvalidInput,
    InvalidRequest,
    LedgerCorrupt,
    LedgerTaken,
)
from airflow_provider_distribute.ledger.journal import Journal
from airflow_provider_distribute.ledger.lines import to_json
from airflow_provider_distribute.ledger.records import Asking, Opened, Settled, Stopped
from airflow_provider_distribute.ledger.replay import State
from airflow_provider_distribute.ledger.requests import RequestReader, RequestWriter
from airflow_provider_distribute.ledger.spans import spans
from airflow_provider_distribute.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow_provider_distribute.bulk.inputs import Source
    from airflow_provider_distribute.bulk.output_types import OutputType
    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.records import Owner, Record
    from airflow_provider_distribute.models import ChatRequest, Settings

__all__ = ["Plan", "Run", "Staged", "new_writer", "stage"]

log = logging.getLogger(__name__)

#: What ends the sending without ending the attempt: what was accepted by then is waited for and landed.
_REASONS: Mapping[type, Literal["budget", "deadline", "denied"]] = {
    BudgetSpent: "budget",
    TimeoutError: "deadline",
    AccessDenied: "denied",
}


#: Arguments that decide what the answer to a row is taken for.
_SHAPE_OF_ROWS = frozenset({"output_type", "dedupe", "shard and split"})


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How a run is to be done.

    :param settings: The connection.
    :param owner: The task instance.
    :param defaults: What holds for requests that do not say otherwise.
    :param output_type: What answers must be.
    :param dedupe: Send identical requests once.
    :param policy: What the author chose beside.
    """

    settings: Settings
    owner: Owner
    defaults: Defaults = field(default_factory=Defaults)
    output_type: OutputType = field(default_factory=lambda: output_type_from(str))
    dedupe: bool = False
    policy: Policy = field(default_factory=Policy)

    @property
    def shard(self) -> Shard:
        """Which part of the input this run takes."""
        return Shard(self.policy.shard or 0, self.policy.split)

    @property
    def arguments(self) -> dict[str, str]:
        """A digest of each argument that shapes all requests, by the author's name for it."""
        return _digests(
            {
                "conn_id": [self.settings.conn_id, self.settings.service],
                "model": self.defaults.model,
                "system_prompt": self.defaults.system_prompt,
                "request_params": self.defaults.params,
                "output_type": self.output_type.schema,
                "dedupe": self.dedupe,
                "shard and split": [self.shard.number, self.shard.of],
            }
        )


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


def _digests(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {name: _digest(json.dumps(value, default=str)) for name, value in arguments.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def new_writer(now: float) -> str:
    """Return a name that no other writer has, and that sorts by time."""
    return f"{int(now * 1000):013d}-{uuid.uuid4().hex[:8]}"


def stage(source: Source, plan: Plan, writer: RequestWriter | None = None) -> Staged:
    """
    Read and check a whole input; nothing is sent.

    Whoever takes a part of it checks all of it, so that no part is paid for while another one is refused.

    :param writer: Keeps a copy of the requests.
    :raises InvalidInput: naming every wrong line, up to a hundred.
    """
    check, tally, shard = _Check(plan), _Tally(plan), plan.shard
    asked = hashlib.sha256(to_json([plan.settings.conn_id, plan.settings.service, plan.dedupe]).encode())
    first_with: dict[str, int] = {}
    problems: list[str] = []
    place = -1
    for place, (where, item) in enumerate(items_of(source, plan.defaults)):
        try:
            custom_id, request = check(place, item)
        except InvalidRequest as error:
            problems.append(f"{where}: {'; '.join(error.problems)}")
            if len(problems) == MOST_PROBLEMS:
                raise InvalidInput(problems, source=source.name, more=True) from None
            continue
        if problems or place % shard.of != shard.number:
            continue
        row = place // shard.of
        line: dict[str, Any] = {"row": row, "custom_id": custom_id, "request": kept(request)}
        if plan.dedupe:
            question = _digest(json.dumps({**line["request"], "metadata": None}, sort_keys=True))
            if (first := first_with.setdefault(question, row)) != row:
                line["same_as"] = first
        tally.add(request, line.get("same_as"))
        text = to_json(line).encode()
        asked.update(text)
        if writer:
            writer.add_json(text)
    if problems:
        raise InvalidInput(problems, source=source.name)
    if place < 0:
        raise InvalidInput(["it holds no requests"], source=source.name)
    if writer:
        writer.flush()
    return tally.staged(asked.hexdigest()[:32])


class _Check:
    """Checks an input's requests one after the other."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._service = SERVICES[plan.settings.service]
        self._costs = Costs(plan.settings)
        self._names: dict[str, bool] = {}

    def __call__(self, place: int, item: Item | InvalidRequest) -> tuple[str, ChatRequest]:
        """
        Return a request's name, and the request with everything that the run adds to it.

        :raises InvalidRequest: saying what is wrong with it.
        """
        if isinstance(item, InvalidRequest):
            raise item
        custom_id = self._name(place, item.custom_id)
        asked = self._plan.output_type.asked_of(
            item.request, by_response_format=self._service.takes_response_format
        )
        request = self._service.checked(asked, self._plan.settings)
        if self._plan.policy.max_cost is not None and not self._costs.knows(request.model):
            raise InvalidRequest([_no_price(request.model)])
        return custom_id, request

    def _name(self, place: int, custom_id: str | None) -> str:
        name = f"row-{place}" if custom_id is None else custom_id
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest([f"holds something that JSON cannot say ({type(error).__name__})"]) from None
        given = custom_id is not None
        if name in self._names:
            if given and self._names[name]:
                raise InvalidRequest([f"custom_id {name!r} is there twice"])
            raise InvalidRequest(
                [f"custom_id {name!r} is what a request without one is called: name every request, or none"]
            )
        self._names[name] = given
        return name


def _no_price(model: str | None) -> str:
    return f"max_cost is set, and model {model!r} has no known price: put it into the connection's prices"


class _Tally:
    """Sums up what kept requests take."""

    def __init__(self, plan: Plan) -> None:
        self._costs = Costs(plan.settings)
        self._estimates = array("d")
        self._tokens = Tokens()
        self._copies: dict[int, int] = {}

    def add(self, request: ChatRequest, same_as: int | None) -> None:
        """Count the next row's, which costs nothing where an earlier row asks the same."""
        needs = Tokens()
        if same_as is None:
            needs = self._costs.needs(request)
            self._tokens += needs
        else:
            self._copies[len(self._estimates)] = same_as
        cost = self._costs.of(request.model, needs)
        self._estimates.append(math.nan if cost is None else cost)

    @property
    def priced(self) -> bool:
        """Whether the newest row has a price."""
        return not math.isnan(self._estimates[-1])

    def staged(self, fingerprint: str) -> Staged:
        """Return the sum."""
        return Staged(len(self._estimates), fingerprint, self._tokens, self._estimates, self._copies)


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
        self._arguments = plan.arguments

    def check_resumed(self) -> None:
        """
        Check that what is landed was asked as this plan asks: a Dag may change while its task waits.

        :raises InputChanged: it was not, and ``on_input_change`` does not allow that.
        """
        opened, tolerated = self.state.opened, self.plan.policy.on_input_change == "restart"
        if opened and not tolerated and _SHAPE_OF_ROWS.intersection(self._other_arguments(opened)):
            raise self._changed(opened, "it changed while the task waited")

    def take_up(self, source: Source, *, now: float) -> Staged:
        """
        Check the input, and record that this attempt begins and what it asks.

        An older attempt that still sends finds that at its next write, and stops.

        :param now: Epoch seconds.
        :raises InvalidInput: naming every wrong line.
        :raises InputChanged: the run is recorded for another input.
        :raises LedgerTaken: the directory is another task instance's, or a newer attempt has begun.
        :raises LedgerForbidden: the storage does not allow what a run needs.
        """
        self._arguments |= _digests(source.arguments)
        if not self.directory.try_out():
            log.warning(
                "The storage of %r does not notice when an object is created that exists already. Should "
                "two attempts of this task ever run at once, as after a lost heartbeat, they overwrite each "
                "other's records, and jobs are paid twice and forgotten. Use another storage, or a newer "
                "release of its filesystem package.",
                self.directory.uri,
            )
        before = self.state.opened
        if before is None:
            staged, folder = stage(source, self.plan, RequestWriter(self.directory, self._own)), self._own
        else:
            staged, folder = self._stage_again(source, before), before.requests
        while True:
            if before is not None:
                folder = self._agreed(before, source, staged, folder)
            try:
                self._begin(staged, folder, now)
            except LedgerTaken:
                self.state = self.journal.read_on(self.state)
                there, before = before, self.state.opened
                if before is not None and before != there and before.at > now:
                    raise
                log.warning("An earlier attempt of this task still writes; this one takes the run over.")
            else:
                return staged

    def begin_again(self, staged: Staged, *, now: float) -> None:
        """
        Record another attempt at what was taken up and landed.

        :param now: Epoch seconds.
        """
        folder = self.state.opened.requests if self.state.opened else self._own
        self._begin(staged, folder, now)

    def _begin(self, staged: Staged, folder: str, now: float) -> None:
        before = self.state.opened
        opened = Opened(
            attempt=before.attempt + 1 if before else 1,
            at=now,
            owner=self.plan.owner,
            conn_id=self.plan.settings.conn_id,
            fingerprint=staged.fingerprint,
            count=staged.count,
            requests=folder,
            window=self.plan.policy.window,
            arguments=self._arguments,
            service=self.plan.settings.service,
            shard=self.plan.shard.number,
            split=self.plan.shard.of,
        )
        goes_on = before is not None and before.fingerprint == staged.fingerprint
        known = self.state if goes_on else State().after(opened)
        asked = known.to_ask(doubtful=self.plan.policy.on_unknown == "resubmit") - staged.copies.keys()
        self._note(opened, Asking.of(asked))

    def _agreed(self, before: Opened, source: Source, staged: Staged, folder: str) -> str:
        """
        Return where the requests are kept, if they may be asked after what was asked before.

        :param folder: Where they are kept, unless they are others than before.
        """
        if before.owner != self.plan.owner:
            raise LedgerTaken(
                f"{self.directory.uri!r} is the bulk run of {before.owner}, not of {self.plan.owner}. "
                "Nothing was sent. Give this one a result_path of its own, then clear the task."
            )
        if staged.fingerprint == before.fingerprint:
            return folder
        if self.plan.policy.on_input_change == "fail":
            raise self._changed(before, f"{before.count} rows then, {staged.count} now")
        log.warning(
            "The input has changed: starting over. %d jobs were accepted for the old input; those that have "
            "not ended go on, and all are billed.",
            self._jobs,
        )
        if folder != self._own:
            again = stage(source, self.plan, RequestWriter(self.directory, self._own))
            if again.fingerprint != staged.fingerprint:
                raise InputChanged(
                    f"{source.name} changes while it is read. Nothing was sent. Wait until it is "
                    "written, then clear the task."
                )
        return self._own

    def _stage_again(self, source: Source, before: Opened) -> Staged:
        """Check the input of a run that keeps a copy of what it was."""
        try:
            return stage(source, self.plan)
        except InputUnreadable as error:
            if self._other_arguments(before):
                if self.plan.policy.on_input_change == "restart":
                    raise
                raise self._changed(before, "; ".join(error.problems)) from error
            log.warning(
                "%s cannot be read any more: %s. The run goes on with its own copy in %r.",
                source.name,
                "; ".join(error.problems),
                self.directory.below(before.requests),
            )
        except InvalidInput as error:
            if self.plan.policy.on_input_change == "restart" or self._is_unchanged(source, before):
                raise
            wrong = f"now it has wrong lines, such as {error.problems[0]}"
            raise self._changed(before, wrong) from error
        tally = _Tally(self.plan)
        for line in self.lines():
            tally.add(request_from(line), line.get("same_as"))
            if self.plan.policy.max_cost is not None and not tally.priced:
                raise InvalidInput([_no_price(line["request"]["model"])], source=source.name)
        return tally.staged(before.fingerprint)

    def _is_unchanged(self, source: Source, before: Opened) -> bool:
        """Return whether what is refused now is what was asked before: then only the checks are others."""
        unlimited = replace(self.plan, policy=self.plan.policy.model_copy(update={"max_cost": None}))
        anything = self.plan.settings.model_copy(update={"allow_undocumented_params": True})
        for plan in (unlimited, replace(unlimited, settings=anything)):
            with contextlib.suppress(InvalidInput):
                if stage(source, plan).fingerprint == before.fingerprint:
                    return True
        return False

    def _changed(self, before: Opened, how: str) -> InputChanged:
        what = ", ".join(self._other_arguments(before)) or "the requests themselves"
        return InputChanged(
            f"{self.directory.uri!r} records a run for another input. What differs: {what} ({how}). "
            f"{self._jobs} jobs were accepted for it. Restore it, or set on_input_change='restart' to leave "
            "those jobs behind and pay for the new input."
        )

    def _other_arguments(self, before: Opened) -> list[str]:
        now = self._arguments
        return [name for name, digest in before.arguments.items() if now.get(name, digest) != digest]

    @property
    def _own(self) -> str:
        return f"requests/{self.writer}"

    @property
    def _jobs(self) -> int:
        return len(set(self.state.tickets.values()))

    def sent(self, stopped: Exception | None) -> None:
        """
        Take up what was recorded while the run was sent, and record why that ended early.

        :param stopped: Why it ended before the last row; ``None``: it did not. Only what lets the attempt go
            on is recorded.
        """
        reason = _REASONS.get(type(stopped))
        if reason:
            self.journal.append([Stopped(reason, str(stopped))])
        self.state = self.journal.read()

    def ask_again(self, rows: set[int]) -> None:
        """Record that rows are asked once more in this attempt."""
        self._note(Asking.of(rows))

    def settle(self, again: set[int], unknown: set[int]) -> None:
        """Record that the outcome was landed, what a later attempt asks again, and what is unknown."""
        self._note(Settled(spans(again), spans(unknown)))

    def budget(self, estimates: Sequence[float] | Mapping[int, float]) -> Budget:
        """
        Return what may still be spent.

        :param estimates: US dollars for each row that may be sent.
        """
        limit = self.plan.policy.share_of_max_cost
        so_far = 0.0 if limit is None else spent(self.lines(), self.state, Costs(self.plan.settings))
        return Budget(limit, estimates, so_far)

    def _note(self, *records: Record) -> None:
        self.journal.append(records)
        for record in records:
            self.state = self.state.after(record)

    def requests(self, folder: str | None = None) -> Iterator[Asked]:
        """
        Yield the requests that are to be asked and have not been, in order.

        After a :class:`~airflow_provider_distribute.exceptions.LedgerUnavailable` it can be asked again, and
        goes on where it was.

        :param folder: Where they are, unless it is the run's own folder.
        """
        # What filter and map return, unlike a generator, outlives an exception.
        wanted = filter(lambda line: line["row"] in self.state.open, self._kept(folder))
        return map(Asked.of, wanted)

    def lines(self) -> Iterator[dict[str, Any]]:
        """
        Yield everything that was kept of the requests, in order.

        :raises LedgerCorrupt: some are missing.
        """
        rows = 0
        for rows, line in enumerate(self._kept(None), 1):  # noqa: B007  counts beyond the loop
            yield line
        if self.state.opened and rows != self.state.count:
            where = self.directory.below(self.state.opened.requests)
            raise LedgerCorrupt(where, f"holds {rows} requests of {self.state.count}")

    def _kept(self, folder: str | None) -> Iterator[dict[str, Any]]:
        if self.state.opened is None:
            return iter(())
        return RequestReader(self.directory, folder or self.state.opened.requests)
