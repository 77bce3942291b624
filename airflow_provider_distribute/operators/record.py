# SPDX-License-Identifier: Apache-2.0

"""What a task instance has submitted, kept where its retries find it: the task state store (Airflow 3.3)."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_provider_distribute.models import ChatRequest, Settings

__all__ = ["SubmissionRecord"]

log = logging.getLogger(__name__)

#: Entries to one page, which is what one key holds: what is written for one more request stays small however
#: many there are.
_PER_PAGE = 100
_IN_DOUBT = ""
_UNCLEAR = "unclear"


class _Entry(NamedTuple):
    """
    One request.

    :param fingerprint: Of the request and where it was sent.
    :param job_id: What it became; empty: it was about to be sent, and nobody knows whether it was.
    :param mark: Says of a job that the service did not know or show it.
    """

    fingerprint: str
    job_id: str
    mark: str = ""


class SubmissionRecord:
    """
    One entry for each request that was sent, or was about to be.

    An entry counts for the same request sent to the same place; where the request stands in the input does
    not matter. Entries that count for none of an attempt's requests stay, until the results are handed over.

    The store's errors pass through: a record that cannot be read is not the same as no record. What is named
    ``write`` writes at once; what is only noted goes with the next write.

    :param store: Airflow's task state store; ``None`` before Airflow 3.3, and then nothing is kept.
    :param size: How many requests the task has: pages that should be there are read although one before them
        is missing.
    """

    def __init__(self, store: Any, *, size: int = 0) -> None:
        self._store = store
        self._entries: dict[int, _Entry] = {}
        self._wanted: list[str] = []
        self._slots: list[int] = []
        self._pages: set[int] = set()
        for page in count() if store is not None else ():
            entries = store.get(_key(page))
            if entries is not None:
                self._pages.add(page)
                read = enumerate(entries, page * _PER_PAGE)
                self._entries |= {slot: _Entry(*entry) for slot, entry in read if entry}
            elif page * _PER_PAGE >= size:
                break
        # A record that was being dropped is all in one page.
        self._unwritten = {_page_of(slot) for slot in self._entries} - self._pages

    @property
    def kept(self) -> bool:
        """Whether a retry will find anything."""
        return self._store is not None

    # What earlier attempts have left ----------------------------------------------------------------

    def match(self, requests: Sequence[ChatRequest], settings: Settings) -> None:
        """
        Find the entry of each request: jobs before what is in doubt, its own place before any other.

        Whatever is said of a request from now on is said by its index.
        """
        wanted = [_fingerprint(request, settings) for request in requests]
        slots: dict[int, int] = {}
        for jobs in (True, False):
            free = {slot for slot, entry in self._entries.items() if bool(entry.job_id) is jobs}
            free -= set(slots.values())
            for index, fingerprint in enumerate(wanted):
                if index not in slots and index in free and self._entries[index].fingerprint == fingerprint:
                    slots[index] = index
                    free.remove(index)
            others = defaultdict(list)
            for slot in sorted(free, reverse=True):
                others[self._entries[slot].fingerprint].append(slot)
            for index, fingerprint in enumerate(wanted):
                if index not in slots and others[fingerprint]:
                    slots[index] = others[fingerprint].pop()
        unused = (slot for slot in count() if slot not in self._entries)
        self._wanted = wanted
        self._slots = [slots[index] if index in slots else next(unused) for index in range(len(wanted))]

    def job_id(self, index: int) -> str | None:
        """Return the job that this very request became, if it is known to have become one."""
        entry = self._entries.get(self._slots[index])
        return entry.job_id or None if entry else None

    def in_doubt(self, index: int) -> bool:
        """Return whether an earlier attempt was about to send this very request, or did."""
        entry = self._entries.get(self._slots[index])
        return entry is not None and entry.job_id == _IN_DOUBT

    def others(self) -> list[str]:
        """Return the jobs of requests that are not asked any more; they go on, and nobody waits for them."""
        matched = set(self._slots)
        return [entry.job_id for slot, entry in self._entries.items() if entry.job_id and slot not in matched]

    def unclear(self) -> list[str]:
        """Return the jobs of this attempt's requests of which nobody knows what became of them."""
        matched = [self._entries[slot] for slot in self._slots if slot in self._entries]
        return [entry.job_id for entry in matched if entry.mark == _UNCLEAR]

    # What this attempt does -------------------------------------------------------------------------

    def write_sending(self, index: int) -> None:
        """Write, before a request is sent, that it is about to be."""
        self._note(self._slots[index], _Entry(self._wanted[index], _IN_DOUBT))
        self.write()

    def note_accepted(self, index: int, job_id: str) -> None:
        """Note that a request became a job; the next write carries it."""
        self._note(self._slots[index], _Entry(self._wanted[index], job_id))

    def write_refused(self, index: int) -> None:
        """Write that a request became no job."""
        self._write_without([self._slots[index]])

    def write_unclear(self, job_ids: Iterable[str]) -> None:
        """Write that nobody knows what became of jobs: the next attempt looks at them before it submits."""
        self._write_marked(job_ids, _UNCLEAR)

    def write_found(self, job_ids: Iterable[str]) -> None:
        """Write that jobs are known again."""
        self._write_marked(job_ids, "")

    def write_forgotten(self, job_ids: Iterable[str]) -> None:
        """Write that jobs do not count: the next attempt submits their requests again."""
        self._write_without(list(self._slots_of(job_ids)))

    def write(self) -> None:
        """Write what has changed."""
        # Backwards, because the first page may hold what the others shall.
        for page in sorted(self._unwritten, reverse=True):
            self._write_page(page, [slot for slot in self._entries if _page_of(slot) == page])
        self._unwritten.clear()

    def write_last(self) -> None:
        """Write what has changed when every request has its job: a store that fails then fails nothing."""
        try:
            self.write()
        except Exception as error:
            log.warning(
                "All requests were accepted, but the record of the last one could not be written (%s: %s). "
                "The task goes on with its job. If it is retried, it sends, and pays, that request again.",
                type(error).__name__,
                error,
            )

    def _slots_of(self, job_ids: Iterable[str]) -> Iterator[int]:
        named = set(job_ids)
        return (slot for slot, entry in self._entries.items() if entry.job_id in named)

    def _note(self, slot: int, entry: _Entry) -> None:
        self._entries[slot] = entry
        self._unwritten.add(_page_of(slot))

    def _write_marked(self, job_ids: Iterable[str], mark: str) -> None:
        for slot in self._slots_of(job_ids):
            self._note(slot, self._entries[slot]._replace(mark=mark))
        self.write()

    def _write_without(self, slots: Iterable[int]) -> None:
        for slot in slots:
            del self._entries[slot]
            self._unwritten.add(_page_of(slot))
        self.write()

    def _write_page(self, page: int, slots: Sequence[int]) -> None:
        if self._store is not None:
            first = page * _PER_PAGE
            last = max(slots, default=first - 1)
            self._store.set(_key(page), [_stored(self._entries.get(slot)) for slot in range(first, last + 1)])
            self._pages.add(page)

    def clear(self) -> None:
        """
        Drop everything: the results are handed over, and clearing the task asks, and pays, anew.

        The first page takes over what the others hold and goes last, so that a process which dies here leaves
        the whole record or nothing. The results are stored by now, so a store that fails fails nothing.
        """
        try:
            if len(self._pages) > 1:
                self._write_page(0, list(self._entries))
            for page in sorted(self._pages, reverse=True):
                self._store.delete(_key(page))
        except Exception as error:
            log.warning(
                "The results are handed over, but the record of what was submitted could not be dropped (%s: "
                "%s). If this task is cleared, it waits for the same jobs again instead of asking anew.",
                type(error).__name__,
                error,
            )


def _fingerprint(request: ChatRequest, settings: Settings) -> str:
    """16 hex digits that are the same for the same question to the same place."""
    told = "\n".join([settings.conn_id, settings.service, settings.base_url, request.fingerprint])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _stored(entry: _Entry | None) -> list[str]:
    """Nothing for a slot that is free, and no mark where there is none."""
    return [] if entry is None else [*entry][: 3 if entry.mark else 2]


def _page_of(slot: int) -> int:
    return slot // _PER_PAGE


def _key(page: int) -> str:
    return f"distribute.submitted.{page * _PER_PAGE}"
