# SPDX-License-Identifier: Apache-2.0

"""What a task instance has submitted, kept where its retries find it: the task state store (Airflow 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_provider_distribute.models import ChatRequest

__all__ = ["SubmissionRecord"]

#: Requests to one key: what is written for one more request stays small however many there are.
_PER_KEY = 100
_IN_DOUBT = ""


class SubmissionRecord:
    """
    One entry for each request, by its place in the input: the request's fingerprint and its job id.

    An entry without a job id was about to be sent, and nobody knows whether it was. An entry only counts for
    the request it was made for; when the input changed, the request is a new one.

    The store's errors pass through: a record that cannot be read is not the same as no record.

    :param store: Airflow's task state store; ``None`` before Airflow 3.3, and then nothing is kept.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._entries: dict[int, tuple[str, str]] = {}
        self._keys: set[str] = set()
        self._unwritten: set[str] = set()
        first = 0
        while store is not None and (entries := store.get(_key(first))) is not None:
            self._keys.add(_key(first))
            self._entries |= {place: tuple(entry) for place, entry in enumerate(entries, first) if entry}
            first += _PER_KEY

    @property
    def kept(self) -> bool:
        """Whether a retry will find anything."""
        return self._store is not None

    def job_id(self, index: int, request: ChatRequest) -> str | None:
        """Return the job that this very request became, if it is known to have become one."""
        return self._entry(index, request) or None

    def in_doubt(self, index: int, request: ChatRequest) -> bool:
        """Return whether an earlier attempt was about to send this very request, or did."""
        return self._entry(index, request) == _IN_DOUBT

    def _entry(self, index: int, request: ChatRequest) -> str | None:
        fingerprint, job_id = self._entries.get(index, (None, None))
        return job_id if fingerprint == request.fingerprint else None

    def others(self, requests: Sequence[ChatRequest]) -> list[str]:
        """Return the jobs of requests that have changed since; they go on, and nobody waits for them."""
        return [
            job_id
            for index, (_, job_id) in self._entries.items()
            if job_id and not (index < len(requests) and self.job_id(index, requests[index]))
        ]

    def sending(self, index: int, request: ChatRequest) -> None:
        """Write, before a request is sent, that it is about to be."""
        self._enter(index, request, _IN_DOUBT)
        self.write()

    def accepted(self, index: int, request: ChatRequest, job_id: str) -> None:
        """Note that a request became a job; the next write carries it."""
        self._enter(index, request, job_id)

    def _enter(self, index: int, request: ChatRequest, job_id: str) -> None:
        self._entries[index] = (request.fingerprint, job_id)
        self._unwritten.add(_key(index))

    def refused(self, index: int) -> None:
        """Write that a request became no job."""
        self._drop([index])

    def forget(self, job_ids: Iterable[str]) -> None:
        """Drop jobs, so that the next attempt submits their requests again."""
        unwanted = set(job_ids)
        self._drop([index for index, (_, job_id) in self._entries.items() if job_id in unwanted])

    def _drop(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            del self._entries[index]
            self._unwritten.add(_key(index))
        self.write()

    def write(self) -> None:
        """Write what has changed."""
        if self._store is not None:
            for key in sorted(self._unwritten):
                first = _first(key)
                places = [place for place in self._entries if first <= place < first + _PER_KEY]
                last = max(places, default=first - 1)
                self._store.set(key, [list(self._entries.get(place, ())) for place in range(first, last + 1)])
        self._keys |= self._unwritten
        self._unwritten.clear()

    def clear(self) -> None:
        """Drop everything: the results are handed over, and clearing the task asks, and pays, anew."""
        if self._store is not None:
            for key in sorted(self._keys):
                self._store.delete(key)


def _key(index: int) -> str:
    return f"distribute.submitted.{index - index % _PER_KEY}"


def _first(key: str) -> int:
    return int(key.rpartition(".")[2])
