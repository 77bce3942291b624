# SPDX-License-Identifier: Apache-2.0

"""The facts a journal holds. Rows are numbered from 0 in the order of the run's requests."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from airflow_provider_distribute.ledger.spans import rows_in, spans

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FORMAT",
    "Accepted",
    "Asking",
    "Intended",
    "Opened",
    "Owner",
    "Record",
    "Refusal",
    "Refused",
    "Settled",
    "Stopped",
    "Ticket",
    "Unanswered",
    "Unsent",
    "record_from",
]

#: Version of the journal's format.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Owner:
    """
    The task instance a run belongs to; its retries and clears own the same run.

    :param map_index: ``-1`` for a task that is not mapped.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @classmethod
    def of(cls, ti: Any) -> Owner:
        """Return Airflow's task instance as an owner."""
        return cls(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)

    def __str__(self) -> str:
        """Return it as people name it."""
        of_map = f", map index {self.map_index}" if self.map_index >= 0 else ""
        return f"task {self.dag_id}.{self.task_id} in run {self.run_id!r}{of_map}"

    @property
    def directory(self) -> str:
        """
        A directory name that is readable, safe in every store, and no other task instance's.

        The names in it are shortened and cleaned, so a digest of the full ones ends it.
        """
        parts = [self.dag_id, self.task_id, self.run_id] + [str(self.map_index)] * (self.map_index >= 0)
        full = "\0".join([self.dag_id, self.run_id, self.task_id, str(self.map_index)])
        digest = hashlib.sha256(full.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return "__".join([*(re.sub(r"[^A-Za-z0-9._-]+", "-", part)[:48] for part in parts), digest])


@dataclass(frozen=True, slots=True)
class Ticket:
    """
    What a service handed back for a submission.

    :param id: The service's id.
    :param rows: Spans of the rows it covers; a single job covers one row.
    :param at: Epoch seconds of the answer.
    """

    id: str
    rows: str
    at: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    Why the service did not take a row's request.

    :param row: The row.
    :param message: The service's words.
    :param at: Epoch seconds of the answer.
    """

    row: int
    message: str
    at: float


@dataclass(frozen=True, slots=True)
class Opened:
    """
    An attempt begins. With another fingerprint than before, everything before it is of another input.

    :param attempt: Counts from 1.
    :param at: Epoch seconds.
    :param owner: Whose run this is.
    :param conn_id: The connection the jobs belong to.
    :param fingerprint: Of everything that is asked, and of the connection.
    :param count: Rows of the run.
    :param requests: Folder of the requests.
    :param window: Rows that may be intended and not recorded.
    :param arguments: A digest of each argument that shapes all requests, by name, to say what has changed.
    :param service: Whose jobs they are.
    :param shard: Which part of the input the run takes, from 0.
    :param split: How many parts there are.
    """

    name: ClassVar[str] = "opened"

    attempt: int
    at: float
    owner: Owner
    conn_id: str
    fingerprint: str
    count: int
    requests: str
    window: int
    arguments: Mapping[str, str] = field(default_factory=dict)
    service: str = ""
    shard: int = 0
    split: int = 1
    format: int = FORMAT

    def as_json(self) -> object:
        """Return the record as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Opened:
        """Read the record."""
        return cls(**{**fields, "owner": Owner(**fields["owner"])})


@dataclass(frozen=True, slots=True)
class _Rows:
    """A record that says one thing about some rows."""

    name: ClassVar[str]

    rows: str

    @classmethod
    def of(cls, rows: Any) -> Any:
        """Make a record from row numbers."""
        return cls(spans(rows))

    def __iter__(self) -> Any:
        """Yield the row numbers, ascending."""
        return rows_in(self.rows)

    def as_json(self) -> object:
        """Return the record as plain JSON."""
        return self.rows

    @classmethod
    def from_json(cls, fields: Any) -> Any:
        """Read the record."""
        return cls(fields)


class Asking(_Rows):
    """From here on these rows are asked, in this order; what was recorded of them before is superseded."""

    name: ClassVar[str] = "asking"


class Intended(_Rows):
    """These rows may have been sent once this is written."""

    name: ClassVar[str] = "intended"


class Unanswered(_Rows):
    """These were sent and not answered."""

    name: ClassVar[str] = "unanswered"


class Unsent(_Rows):
    """These were intended and surely not taken."""

    name: ClassVar[str] = "unsent"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service took requests and handed back these tickets."""

    name: ClassVar[str] = "accepted"

    tickets: tuple[Ticket, ...]

    def as_json(self) -> object:
        """Return the record as plain JSON."""
        return [[ticket.id, ticket.rows, ticket.at] for ticket in self.tickets]

    @classmethod
    def from_json(cls, fields: Any) -> Accepted:
        """Read the record."""
        return cls(tuple(Ticket(*entry) for entry in fields))


@dataclass(frozen=True, slots=True)
class Refused:
    """The service will not have these rows' requests; they are not billed."""

    name: ClassVar[str] = "refused"

    refusals: tuple[Refusal, ...]

    def as_json(self) -> object:
        """Return the record as plain JSON."""
        return [[refusal.row, refusal.message, refusal.at] for refusal in self.refusals]

    @classmethod
    def from_json(cls, fields: Any) -> Refused:
        """Read the record."""
        return cls(tuple(Refusal(*entry) for entry in fields))


@dataclass(frozen=True, slots=True)
class Stopped:
    """
    Sending ended before the last row; it begins again with the next :class:`Asking`.

    :param reason: ``budget``: the next request might have passed the author's cost limit; ``deadline``: the
        time was up; ``denied``: the key, the balance or the permission does not allow it.
    :param message: For people.
    """

    name: ClassVar[str] = "stopped"

    reason: Literal["budget", "deadline", "denied"]
    message: str

    def as_json(self) -> object:
        """Return the record as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> Stopped:
        """Read the record."""
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Settled:
    """
    The outcome was landed. What is in neither span has ended well.

    :param again: Rows that a later attempt asks again.
    :param unknown: Rows of which nobody knows whether their newest request was taken.
    """

    name: ClassVar[str] = "settled"

    again: str
    unknown: str

    def as_json(self) -> object:
        """Return the record as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> Settled:
        """Read the record."""
        return cls(**fields)


Record: TypeAlias = Opened | Asking | Intended | Accepted | Unanswered | Unsent | Refused | Stopped | Settled

_KINDS: Mapping[str, Any] = {
    kind.name: kind
    for kind in (Opened, Asking, Intended, Accepted, Unanswered, Unsent, Refused, Stopped, Settled)
}


def record_from(line: Mapping[str, Any]) -> Record:
    """
    Read one line of a journal.

    :raises ValueError: this version does not know the record.
    """
    try:
        ((name, fields),) = line.items()
        record: Record = _KINDS[name].from_json(fields)
        if isinstance(record, Opened) and record.format != FORMAT:
            raise ValueError(f"format {record.format}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"holds a record that this version cannot read ({error})") from error
    return record
