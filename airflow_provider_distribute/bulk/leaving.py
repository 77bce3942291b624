# SPDX-License-Identifier: Apache-2.0

"""What goes on when an attempt ends before it could land, said in the log and in the manifest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.bulk.manifest import manifest_of_stopped, read_manifest, write_manifest
from airflow_provider_distribute.exceptions import LedgerError
from airflow_provider_distribute.ledger.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.waiting.pool import Logger

__all__ = ["leave_behind", "some"]


def leave_behind(
    directory: Directory,
    *,
    attempt: int | None,
    why: str,
    pending: Iterable[str] | None = None,
    logger: Logger | None = None,
) -> bool:
    """
    Say what an attempt leaves: in the manifest and, to whom a logger is given, in the log. Blocks.

    Where a newer attempt has begun, the run is that one's, and what goes on is its to say.

    :param directory: The run's directory.
    :param attempt: The attempt that ends; ``None``: whichever is the newest.
    :param why: Why it ends: a sentence for people.
    :param pending: The jobs that were not seen ended, as far as known.
    :returns: Whether the next attempt will find the run.
    """
    try:
        state = Journal(directory, writer="").read()
        if state.opened is None:
            return False
        if attempt in (None, state.opened.attempt):
            before = read_manifest(directory)
            manifest = manifest_of_stopped(
                directory, state, before, pending=pending, why=why, now=time.time()
            )
            if logger:
                _tell(logger, manifest["stopped"])
            write_manifest(directory, manifest)
    except LedgerError:
        if logger:
            logger.warning(
                "The attempt ends here: %s What was accepted goes on and is billed; %r lists it.",
                why,
                directory.below("journal"),
            )
        return False
    return True


def _tell(logger: Logger, stopped: Mapping[str, Any]) -> None:
    accepted, unknown = stopped["accepted"], stopped["unknown"]
    logger.warning(
        "The attempt ends here: %s %d jobs were accepted since anything was landed; they cannot be "
        "cancelled: those that have not ended go on, and all are billed%s. %d rows are unknown: their "
        "requests may have been accepted%s. %d rows were not sent. The next attempt waits for the jobs and "
        "sends only what is missing.",
        stopped["why"],
        accepted["jobs"],
        _colon(some(accepted["job_ids"], accepted["jobs"])),
        unknown["rows"],
        _colon(some([f"index {index}" for index in unknown["indexes"]], unknown["rows"])),
        stopped["not_sent"],
    )


def some(names: Sequence[str], count: int) -> str:
    """Return names of which there may be more."""
    return ", ".join(names) + (" …" if count > len(names) else "")


def _colon(names: str) -> str:
    return f": {names}" if names else ""
