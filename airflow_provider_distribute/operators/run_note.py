# SPDX-License-Identifier: Apache-2.0

"""Where a task instance's bulk run is recorded, noted where its retries find it: the task state store."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["RunNote"]

log = logging.getLogger(__name__)

_KEY = "distribute.run"


class RunNote:
    """
    The URI of the run that a task instance has taken up and not yet delivered.

    The store's errors pass through: a note that cannot be read is not the same as no note.

    :param store: Airflow's task state store; ``None`` before Airflow 3.3, and then nothing is kept.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    @property
    def kept(self) -> bool:
        """Whether a retry will find anything."""
        return self._store is not None

    def read(self) -> str | None:
        """Return the run's URI; ``None``: no earlier attempt has left one."""
        uri: str | None = None if self._store is None else self._store.get(_KEY)
        return uri

    def write(self, uri: str) -> None:
        """Note a run that has been taken up."""
        if self._store is not None:
            self._store.set(_KEY, uri)

    def drop(self) -> None:
        """Drop the note: the run is delivered. A store that fails fails nothing then."""
        try:
            if self._store is not None:
                self._store.delete(_KEY)
        except Exception as error:
            log.warning(
                "The results are delivered, but the note of where the run is recorded could not be dropped "
                "(%s: %s). If this task is cleared, it looks for the run there.",
                type(error).__name__,
                error,
            )
