# SPDX-License-Identifier: Apache-2.0

"""
From what came back, in whatever order, to one row for each input, in input order, in bounded memory.

What came back is spooled to a local temporary file once, in the order it was seen; then the requests are read
in order and each one's answer is fetched from the spool by its place. Only the places are in memory.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_distribute.bulk.costs import Costs, Tokens
from airflow_provider_distribute.bulk.formats import STATUSES, Row
from airflow_provider_distribute.bulk.kept import request_from
from airflow_provider_distribute.bulk.output_types import Mismatch
from airflow_provider_distribute.ledger.lines import to_json
from airflow_provider_distribute.ledger.rows import Landed, read_rows, result_in
from airflow_provider_distribute.models import UNCLEAR
from airflow_provider_distribute.services.reading import clipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from airflow_provider_distribute.bulk.formats import Format
    from airflow_provider_distribute.bulk.output_types import OutputType
    from airflow_provider_distribute.bulk.run import Run
    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.replay import State
    from airflow_provider_distribute.ledger.requests import RequestWriter

__all__ = ["Landing", "Spool", "land"]

#: Different reasons that are counted; whatever goes wrong most often is among the first.
_MOST_REASONS = 1000
#: An answer is what the run has paid for, so no log or error quotes what is wrong with it.
_MISMATCH = "the answer does not fit output_type; the results say why"


@dataclass(slots=True)
class Landing:
    """
    What landing found.

    :ivar counts: Rows by status.
    :ivar models: Models that were asked.
    :ivar tokens: What the service counted for all jobs that were seen ended, those of older tickets too.
    :ivar cost: US dollars for these jobs, an estimate; ``None``: none has a price.
    :ivar unpriced: Jobs whose tokens the service counted and whose model has no known price.
    :ivar repairs: The estimate for each invalid row whose repair was written.
    :ivar again: Rows that a later attempt asks again.
    :ivar unknown_rows: Rows that may run without our knowing.
    :ivar unknown: ``custom_id`` of each row that is unknown.
    :ivar going_on: Ids of all jobs that were not seen ended.
    :ivar reasons: Rows by the reason for which they did not succeed.
    """

    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STATUSES, 0)))
    models: set[str] = field(default_factory=set)
    tokens: Tokens = field(default_factory=Tokens)
    cost: float | None = None
    unpriced: int = 0
    repairs: dict[int, float] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)
    unknown_rows: set[int] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    going_on: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def count(self, row: Row) -> None:
        """Count a row."""
        self.counts[row.status] += 1
        if row.error:
            reason = clipped(row.error["message"]) if row.raw_output is None else _MISMATCH
            if reason in self.reasons or len(self.reasons) < _MOST_REASONS:
                self.reasons[reason] += 1
        if row.status == "unknown":
            self.unknown.append(row.custom_id)

    @property
    def reason(self) -> str:
        """The reason that most rows have which did not succeed, and how many; empty when all did."""
        most = self.reasons.most_common(1)
        return "".join(f"{reason.rstrip('.')} (rows: {count})" for reason, count in most)

    def settle(self, row_number: int, row: Row) -> None:
        """Sort a row that is asked for itself by what a later attempt does with it."""
        if row.status == "unknown":
            self.unknown_rows.add(row_number)
        elif not row.succeeded:
            self.again.add(row_number)

    def pay(self, usage: Mapping[str, Any] | None, cost: float | None) -> None:
        """Count what a job took."""
        counted = Tokens.counted(usage)
        self.tokens += counted or Tokens()
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        elif counted:
            self.unpriced += 1


class Spool:
    """
    What came back, on local disk, by row. Usable as a context manager.

    :param directory: The run's directory.
    :param state: Says which ticket counts for a row.
    """

    def __init__(self, directory: Directory, state: State) -> None:
        self._state = state
        self._file = tempfile.TemporaryFile(prefix="bulk-run-")  # noqa: SIM115  closed by __exit__
        self._places = array("q", [-1]) * state.count
        self._lengths = array("l", [0]) * state.count
        self._older: dict[tuple[int, str], tuple[int, int]] = {}
        place = 0
        for head, text in read_rows(directory):
            newest, key = state.tickets.get(head.row) == head.ticket, (head.row, head.ticket)
            seen_before = self._places[head.row] >= 0 if newest else key in self._older
            if seen_before and not head.succeeded:
                continue  # Another triggerer looked later, when the service had forgotten the job.
            if newest:
                self._places[head.row], self._lengths[head.row] = place, len(text)
            elif key in state.superseded or key in state.replaced:
                self._older[key] = place, len(text)
            else:
                continue
            place += self._file.write(text)
        self._file.flush()
        self._earlier: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, ticket in state.superseded:
            if (row, ticket) in self._older:
                self._earlier[row].append(self._older[row, ticket])

    def newest(self, row: int) -> bytes | None:
        """Return the line of the row's newest job; ``None``: it was not seen ended."""
        return self._read(self._places[row], self._lengths[row]) if self._places[row] >= 0 else None

    def earlier(self, row: int) -> Iterator[bytes]:
        """Yield the lines of the row's older jobs that were seen ended, the newest of them first."""
        for place in reversed(self._earlier.get(row, ())):
            yield self._read(*place)

    def older(self) -> Iterator[tuple[int, bytes]]:
        """Yield the row and the line of each older job that was seen ended."""
        for (row, _), place in self._older.items():
            yield row, self._read(*place)

    def going_on(self) -> list[str]:
        """Return the tickets, the newest first, whose jobs were not all seen ended."""
        newest = (ticket for row, ticket in self._state.tickets.items() if self._places[row] < 0)
        behind = self._state.superseded.keys() | self._state.replaced
        older = (ticket for row, ticket in sorted(behind - self._older.keys()))
        return list(dict.fromkeys((*newest, *older)))

    def _read(self, place: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, place)

    def __enter__(self) -> Spool:
        """Return the spool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file."""
        self._file.close()


def land(
    run: Run,
    format_: type[Format],
    *,
    repair: RequestWriter | None = None,
    before_row: Callable[[], None] = lambda: None,
) -> Landing:
    """
    Write the results, one row for each input, in input order; a reader sees all of them or the old ones.

    The outcome is settled in the journal first. That fails for an attempt that a newer one has overtaken, so
    its results do not take the place of the newer one's; and whoever is killed from then on has lost nothing.

    :param repair: Takes a request for each invalid row that asks for a valid answer.
    :param before_row: Called before each row; what it raises ends the landing, and leaves the old results.
    :raises LedgerTaken: a newer attempt has begun.
    :raises LedgerError: the run's record cannot be used.
    """
    landing = Landing()
    replacing = run.directory.replacing(
        format_.file, once_complete=lambda: run.settle(landing.again, landing.unknown_rows)
    )
    with Spool(run.directory, run.state) as spool, replacing as stream:
        rows = format_(stream)
        merge = _Merge(run, spool, landing, rows, repair)
        for line in run.lines():
            before_row()
            merge.land_row(line)
        merge.pay_for_older()
        landing.going_on = spool.going_on()
        rows.close()
        if repair:
            repair.flush()
    return landing


class _Merge:
    """Brings requests, in input order, together with what came back for each."""

    def __init__(
        self, run: Run, spool: Spool, landing: Landing, rows: Format, repair: RequestWriter | None
    ) -> None:
        self._run = run
        self._spool = spool
        self._landing = landing
        self._rows = rows
        self._repair = repair
        self._costs = Costs(run.plan.settings)
        self._repeated = {row for row, _ in chain(run.state.superseded, run.state.replaced)}
        self._asked: dict[int, str] = {}

    def land_row(self, line: Mapping[str, Any]) -> None:
        """Write and count a row, and write what asks for a better answer where one is due."""
        number, primary, model = line["row"], line.get("same_as", line["row"]), line["request"]["model"]
        self._landing.models.add(model)
        if number in self._repeated:
            self._asked[number] = model
        text = self._spool.newest(primary)
        newest = None if text is None else _Answer.read(text, model, self._costs)
        earlier = (_Answer.read(text, model, self._costs) for text in self._spool.earlier(primary))
        row, told, repairable = _outcome(self._run, line, primary, newest, earlier)
        if primary != number:
            row = replace(row, usage=None, cost=0.0, attempts=0)
        else:
            self._landing.settle(number, row)
            if newest:
                self._landing.pay(newest.result["usage"], newest.cost)
            if repairable and self._repair:
                self._ask_for_better(self._repair, line, row)
        self._landing.count(row)
        self._rows.write(row, told.result if told else None)

    def _ask_for_better(self, repair: RequestWriter, line: Mapping[str, Any], row: Row) -> None:
        repair.add({**line, "request": _repaired(line, row)})
        needs = self._costs.needs(request_from(line)).repair
        self._landing.repairs[line["row"]] = self._costs.of(line["request"]["model"], needs) or 0.0

    def pay_for_older(self) -> None:
        """Count what jobs took that were seen ended and do not count for their rows any more."""
        for number, text in self._spool.older():
            answer = _Answer.read(text, self._asked.get(number), self._costs)
            self._landing.pay(answer.result["usage"], answer.cost)


@dataclass(frozen=True, slots=True)
class _Answer:
    """A job that was seen ended: when, what it said, and what it cost in US dollars."""

    seen_at: float
    result: Mapping[str, Any]
    cost: float | None

    @classmethod
    def read(cls, text: bytes, asked: str | None, costs: Costs) -> _Answer:
        """Read a line. Where the service's name for the model has no price, the asked one's counts."""
        result = result_in(text)
        used = Tokens.counted(result["usage"])
        cost = costs.of(result["model"], used)
        return cls(Landed.head(text).seen_at, result, costs.of(asked, used) if cost is None else cost)


class _Outcome(NamedTuple):
    """What became of a row, which answer says it, and whether a better one is worth asking for."""

    row: Row
    told: _Answer | None
    repairable: bool = False


def _outcome(
    run: Run, line: Mapping[str, Any], primary: int, answer: _Answer | None, earlier: Iterator[_Answer]
) -> _Outcome:
    """
    Say what became of a row: a good answer counts, else its newest request.

    Where that came to nothing, the newest answer that ended is what the row has: it is paid for.
    """
    state = run.state
    blank = Row(
        custom_id=line["custom_id"],
        index=run.plan.shard.index(line["row"]),
        status="not_submitted",
        model=line["request"]["model"],
        job_id=state.tickets.get(primary),
        attempts=state.sends[primary],
        submitted_at=_iso(state.accepted_at[primary]),
    )
    newest = _newest(blank, answer, primary, run)
    if newest.answered:
        return _Outcome(newest, answer, repairable=not newest.succeeded)
    for older in chain([answer] if answer else [], earlier):
        kept = _ended(blank, older, run.plan.output_type)
        if kept.succeeded:
            return _Outcome(kept, older)
        if kept.answered:
            return _Outcome(_asked_in_vain(kept, newest), older)
    return _Outcome(newest, answer)


def _newest(blank: Row, answer: _Answer | None, primary: int, run: Run) -> Row:
    """Say what a row's newest request came to."""
    state = run.state
    ended = _ended(blank, answer, run.plan.output_type) if answer else None
    if ended and ended.succeeded:
        return ended
    if primary in state.refusals:
        refusal = state.refusals[primary]
        error = _error("refused", refusal.message)
        return replace(blank, status="failed", error=error, finished_at=_iso(refusal.at))
    if ended and (primary not in state.unknown or ended.status == "unknown"):
        return ended
    return _unended(blank, primary, state)


def _asked_in_vain(kept: Row, newest: Row) -> Row:
    """Return an answer that does not fit, and what became of the request for a better one."""
    unknown = newest.status == "unknown"
    fault, fate = _told(kept), _told(newest)
    type_ = fate["type"] if unknown else f"repair_{newest.status}"
    what = f"{fault['message']} (asked again, which ended {newest.status}: {fate['message']})"
    return replace(
        newest,
        status="unknown" if unknown else "invalid",
        raw_output=kept.raw_output,
        error=_error(type_, what),
        model=kept.model,
        finish_reason=kept.finish_reason,
        usage=kept.usage,
        cost=kept.cost,
    )


def _ended(blank: Row, answer: _Answer, wanted: OutputType) -> Row:
    result = answer.result
    row = replace(
        blank,
        model=result["model"] or blank.model,
        finish_reason=result["finish_reason"],
        usage=result["usage"],
        cost=answer.cost,
        finished_at=result["finished_at"] or _iso(answer.seen_at),
    )
    if result["status"] != "succeeded":
        unclear = (result["error"] or {}).get("type") in UNCLEAR
        return replace(row, status="unknown" if unclear else "failed", error=result["error"])
    content = result["content"]
    raw = to_json(result["tool_calls"]) if content is None and result["tool_calls"] else content
    if raw is not content and wanted.schema is None:
        return replace(row, status="succeeded", raw_output=raw)
    try:
        return replace(row, status="succeeded", output=wanted.read(content))
    except Mismatch as error:
        return replace(row, status="invalid", raw_output=raw, error=_error("invalid_output", str(error)))


def _unended(blank: Row, primary: int, state: State) -> Row:
    if primary in state.unknown:
        what = (
            "a request was sent and not answered: it may have been accepted, and then it ran and was billed"
        )
        return replace(blank, status="unknown", error=_error("unknown", what))
    if blank.job_id is None:
        what = "sending stopped before this row"
        return replace(blank, status="not_submitted", error=_error("not_submitted", what))
    what = "not seen ended by the deadline; if it has not ended it goes on, and it is billed"
    return replace(blank, status="expired", error=_error("expired", what))


def _repaired(line: Mapping[str, Any], row: Row) -> dict[str, Any]:
    request, fault = request_from(line), _told(row)["message"]
    order = f"That answer does not fit: {fault}\nAnswer again with the corrected JSON and nothing else."
    messages = [
        *(dict(message) for message in request.messages),
        {"role": "assistant", "content": row.raw_output or ""},
        {"role": "user", "content": order},
    ]
    return {**line["request"], "messages": messages}


def _told(row: Row) -> Mapping[str, str]:
    return row.error or _error(row.status, "")


def _error(type_: str, message: str) -> dict[str, str]:
    return {"type": type_, "message": message}


def _iso(at: float) -> str | None:
    return datetime.fromtimestamp(at, UTC).isoformat() if at else None
