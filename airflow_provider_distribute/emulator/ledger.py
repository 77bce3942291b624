# SPDX-License-Identifier: Apache-2.0

"""What the emulator was asked: all of it in counts, the newest one by one. Keys are not kept."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

RATE_WINDOW_SECONDS = 1.0


class Entry(NamedTuple):
    """
    One request.

    :param sequence: 1 for the first request, then counting.
    :param time: when it came, seconds since the epoch.
    :param job_id: the job it made or asked about, ``None`` if there is none.
    :param status: the HTTP status that was sent, ``None`` if the connection was reset instead.
    :param fault: the kind of fault that struck it.
    :param paid: how many jobs it made, each of which is paid.
    :param metadata: of a submission, as JSON text, when it is short.
    :param authorized: whether it carried a key the service accepts, or any where there is no service.
    :param prompt: of a submission, if the emulator was told to keep prompts.
    """

    sequence: int
    time: float
    service: str
    operation: str
    job_id: str | None
    status: int | None
    fault: str | None
    paid: int
    metadata: str | None
    authorized: bool
    prompt: str | None


@dataclass(slots=True)
class Busiest:
    """The most requests in any one second."""

    peak: int = 0
    _recent: deque[float] = field(default_factory=deque)

    def count(self, now: float) -> None:
        """Take note of a request."""
        self._recent.append(now)
        while self._recent[0] <= now - RATE_WINDOW_SECONDS:
            self._recent.popleft()
        self.peak = max(self.peak, len(self._recent))


class Ledger:
    """
    The record of all requests to the services.

    :param newest: how many entries are kept; the counts cover all there ever were.
    """

    def __init__(self, newest: int) -> None:
        self.entries: deque[Entry] = deque(maxlen=newest)
        self.sequence = 0
        self.answers: Counter[tuple[str, str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.busiest: dict[tuple[str, str], Busiest] = {}

    def record(
        self,
        time: float,
        service: str,
        operation: str,
        *,
        status: int | None,
        authorized: bool,
        job_id: str | None = None,
        fault: str | None = None,
        paid: int = 0,
        metadata: str | None = None,
        prompt: str | None = None,
    ) -> None:
        """Write down one request; the parameters are those of :class:`Entry`."""
        self.sequence += 1
        self.entries.append(
            Entry(
                self.sequence,
                time,
                service,
                operation,
                job_id,
                status,
                fault,
                paid,
                metadata,
                authorized,
                prompt,
            )
        )
        self.answers[service, operation, str(status or "reset")] += 1
        if fault:
            self.faults[fault] += 1
        if paid:
            self.paid[service] += paid
        if (busiest := self.busiest.get((service, operation))) is None:
            busiest = self.busiest[service, operation] = Busiest()
        busiest.count(time)

    def page(self, after: int, limit: int, **wanted: Any) -> tuple[list[Entry], int | None]:
        """
        Return at most ``limit`` entries that came after sequence number ``after``, and where to go on.

        :param wanted: values by field name, for instance ``operation="submit"``.
        """

        def matching() -> Iterator[Entry]:
            for entry in self.entries:
                if entry.sequence > after and all(
                    getattr(entry, name) == value for name, value in wanted.items()
                ):
                    yield entry

        found = list(islice(matching(), limit + 1))
        return found[:limit], found[limit - 1].sequence if len(found) > limit else None

    def stats(self) -> dict[str, Any]:
        """Return the counts: answers by service, operation and status; faults; jobs paid; busiest second."""
        requests: dict[str, dict[str, dict[str, int]]] = {}
        for (service, operation, status), count in sorted(self.answers.items()):
            requests.setdefault(service, {}).setdefault(operation, {})[status] = count
        peaks: dict[str, dict[str, int]] = {}
        for (service, operation), busiest in sorted(self.busiest.items()):
            peaks.setdefault(service, {})[operation] = busiest.peak
        return {
            "requests": requests,
            "faults": dict(self.faults),
            "paid": dict(self.paid),
            "peak_requests_in_a_second": peaks,
        }
