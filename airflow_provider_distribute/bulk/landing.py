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
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.bulk.costs import Costs, Tokens
from airflow_provider_distribute.bulk.formats import STATUSES, Row
from airflow_provider_distribute.bulk.output_types import Mismatch
from airflow_provider_distribute.bulk.run import request_from
from airflow_provider_distribute.ledger.lines import to_json
from airflow_provider_distribute.ledger.rows import Landed, read_rows, result_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from airflow_provider_distribute.bulk.formats import Format
    from airflow_provider_distribute.bulk.run import Run
    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.replay import State
    from airflow_provider_distribute.ledger.requests import RequestWriter

__all__ = ["Landing", "Spool", "land"]

#: Ids of jobs that go on, and of rows that are unknown, that a summary names.
MOST_NAMED = 100


@dataclass(slots=True)
class Landing:
    """
    What landing found.

    :ivar counts: Rows by status.
    :ivar tokens: What the service counted.
    :ivar cost: US dollars, an estimate; ``None``: no row has a price.
    :ivar repairs: The estimate for each invalid row whose repair was written.
    :ivar again: Rows that a later attempt asks again.
    :ivar going_on: Ids of some of the jobs that were still pending.
    :ivar unknown: ``custom_id`` of some of the rows that may run without our knowing.
    """

    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STATUSES, 0)))
    tokens: Tokens = field(default_factory=Tokens)
    cost: float | None = None
    repairs: dict[int, float] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)
    going_on: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unknown_rows: set[int] = field(default_factory=set)

    def count(self, row_number: int, row: Row) -> None:
        """Count a row."""
        self.counts[row.status] += 1
        self.tokens += Tokens.counted(row.usage) or Tokens()
        if row.cost is not None:
            self.cost = (self.cost or 0.0) + row.cost
        if row.status not in ("succeeded", "unknown"):
            self.again.add(row_number)
        if row.status == "expired" and row.job_id and len(self.going_on) < MOST_NAMED:
            self.going_on.append(row.job_id)
        if row.status == "unknown":
            self.unknown_rows.add(row_number)
        if row.status == "unknown" and len(self.unknown) < MOST_NAMED:
            self.unknown.append(row.custom_id)


class Spool:
    """
    What came back, on local disk, by row. Usable as a context manager.

    :param directory: The run's directory.
    :param state: Says which ticket counts for a row.
    """

    def __init__(self, directory: Directory, state: State) -> None:
        self._file = tempfile.TemporaryFile(prefix="bulk-run-")  # noqa: SIM115  closed by __exit__
        self._places = array("q", [-1]) * state.count
        self._lengths = array("l", [0]) * state.count
        place = 0
        for head, text in read_rows(directory):
            if state.tickets.get(head.row) == head.ticket:
                self._places[head.row], self._lengths[head.row] = place, len(text)
                place += self._file.write(text)
        self._file.flush()

    def has(self, row: int) -> bool:
        """Return whether the row's newest job was seen ended."""
        return self._places[row] >= 0

    def line(self, row: int) -> bytes:
        """Return the row's line."""
        return os.pread(self._file.fileno(), self._lengths[row], self._places[row])

    def __enter__(self) -> Spool:
        """Return the spool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file."""
        self._file.close()


def land(run: Run, format_: type[Format], *, repair: RequestWriter | None = None) -> Landing:
    """
    Write the results, one row for each input, in input order; a reader sees all of them or the old ones.

    :param repair: Takes a request for each invalid row that asks for a valid answer.
    :raises LedgerError: the run's record cannot be used.
    """
    landing = Landing()
    costs = Costs(run.plan.settings)
    with Spool(run.directory, run.state) as spool, run.directory.replacing(format_.file) as stream:
        rows = format_(stream)
        for line in run.lines():
            number, primary = line["row"], line.get("same_as", line["row"])
            row, result = _row(run, line, primary, spool, costs)
            if primary != number:
                row = replace(row, usage=None, cost=0.0, attempts=0)
            rows.write(row, result)
            landing.count(number, row)
            if repair and row.status == "invalid" and primary == number:
                request = _repaired(line, row)
                repair.add({**line, "request": request})
                needs = Tokens.estimated({**request["params"], "messages": request["messages"]})
                landing.repairs[number] = costs.of(request["model"], needs) or 0.0
        rows.close()
    if repair:
        repair.flush()
    return landing


def _row(
    run: Run, line: Mapping[str, Any], primary: int, spool: Spool, costs: Costs
) -> tuple[Row, Mapping[str, Any] | None]:
    state = run.state
    asked = line["request"]["model"]
    blank = Row(
        custom_id=line["custom_id"],
        index=run.plan.shard.index(line["row"]),
        status="not_submitted",
        model=asked,
        job_id=state.tickets.get(primary),
        attempts=state.sends[primary],
        submitted_at=_iso(state.accepted_at[primary]),
    )
    if primary in state.refusals:
        refusal = state.refusals[primary]
        error = {"type": "refused", "message": refusal.message}
        return replace(blank, status="failed", error=error, finished_at=_iso(refusal.at)), None
    if spool.has(primary):
        text = spool.line(primary)
        result = result_in(text)
        row = _ended(blank, result, _iso(Landed.head(text).seen_at), run)
        row = replace(row, cost=costs.of(row.model, Tokens.counted(row.usage)))
        if row.cost is None:
            row = replace(row, cost=costs.of(asked, Tokens.counted(row.usage)))
        if row.status == "succeeded" or primary not in state.unknown:
            return row, result
    return _unended(blank, primary, state), None


def _ended(blank: Row, result: Mapping[str, Any], seen_at: str | None, run: Run) -> Row:
    row = replace(
        blank,
        model=result["model"] or blank.model,
        finish_reason=result["finish_reason"],
        usage=result["usage"],
        finished_at=result["finished_at"] or seen_at,
    )
    if result["status"] != "succeeded":
        return replace(row, status="failed", error=result["error"])
    content, wanted = result["content"], run.plan.output_type
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
    what = "the job was still pending at the deadline; it goes on and is billed"
    return replace(blank, status="expired", error=_error("expired", what))


def _repaired(line: Mapping[str, Any], row: Row) -> dict[str, Any]:
    fault = row.error["message"] if row.error else ""
    request = request_from(line)
    order = f"That answer does not fit: {fault}\nAnswer again with the corrected JSON and nothing else."
    messages = [
        *(dict(message) for message in request.messages),
        {"role": "assistant", "content": row.raw_output or ""},
        {"role": "user", "content": order},
    ]
    return {**line["request"], "messages": messages}


def _error(type_: str, message: str) -> dict[str, str]:
    return {"type": type_, "message": message}


def _iso(at: float) -> str | None:
    return datetime.fromtimestamp(at, UTC).isoformat() if at else None
