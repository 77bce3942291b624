# SPDX-License-Identifier: Apache-2.0

"""
One attempt at a run that was taken up, from the first request to the verdict.

What is sent, waited for, asked again and so paid is decided here; whoever makes the attempt says how to send
and how to wait.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.landing import land
from airflow_provider_distribute.bulk.manifest import manifest_of, read_manifest, write_manifest
from airflow_provider_distribute.bulk.verdict import verdict
from airflow_provider_distribute.ledger.requests import RequestWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_distribute.bulk.costs import Budget
    from airflow_provider_distribute.bulk.landing import Landing
    from airflow_provider_distribute.bulk.run import Run, Staged
    from airflow_provider_distribute.bulk.submission import Submitted
    from airflow_provider_distribute.exceptions import InferenceError
    from airflow_provider_distribute.waiting.pool import Logger

__all__ = ["Attempt", "Ended", "Reports"]

log = logging.getLogger(__name__)
_tracer = trace.get_tracer(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """
    How a run ended that was landed.

    :param manifest: What it says of itself.
    :param error: What the task ends with; ``None``: it succeeds.
    """

    manifest: dict[str, Any]
    error: InferenceError | None


class Reports:
    """Who is told how an attempt goes. This one keeps it to itself."""

    def sent(self, run: Run, submitted: Submitted) -> None:
        """Hear how the sending went."""

    def landed(
        self, run: Run, landing: Landing, manifest: Mapping[str, Any], before: Mapping[str, Any]
    ) -> None:
        """
        Hear how the rows ended.

        :param before: The manifest of the landing before this one, or nothing.
        """


class Attempt:
    """
    One attempt at a run that was taken up: send, wait, land, repair.

    :param run: The run.
    :param deadline: Epoch seconds.
    :param submit: Sends what the run asks, as a budget allows; the requests of a folder, if one is named.
    :param wait: Returns once the jobs have ended, or were looked at a last time after the deadline. It may
        leave by an exception instead: then a later process goes on with :meth:`resume`.
    :param before_step: Called before anything is sent and before each row is landed; what it raises ends the
        attempt.
    :param reports: Told how it goes.
    :param logger: Told about progress and trouble.
    """

    def __init__(
        self,
        run: Run,
        *,
        deadline: float,
        submit: Callable[[Budget, str | None], Submitted],
        wait: Callable[[Collection], None],
        before_step: Callable[[], None] = lambda: None,
        reports: Reports | None = None,
        logger: Logger = log,
    ) -> None:
        self._run = run
        self._deadline = deadline
        self._submit = submit
        self._wait = wait
        self._before_step = before_step
        self._reports = reports or Reports()
        self._logger = logger

    def begin(self, staged: Staged) -> Ended:
        """
        Send what is missing, and do the rest as :meth:`resume` does.

        Where an earlier attempt had asked everything and was stopped before it could land that, this one
        lands it, and then asks again what did not succeed, as an attempt after it would.

        :param staged: The input, as :meth:`~airflow_provider_distribute.bulk.run.Run.take_up` returned it.
        :raises LedgerError: the run's record cannot be used.
        """
        landed_only = not self._run.state.open
        ended = self._send_and_resume(staged)
        again = ended.error is not None and ended.error.transient and not ended.manifest["counts"]["expired"]
        if landed_only and again:
            self._logger.info(
                "An earlier attempt had asked everything and could not land it. It is landed now, and the %d "
                "rows that did not succeed are asked again.",
                len(self._run.state.again),
            )
            self._run.begin_again(staged, now=time.time())
            ended = self._send_and_resume(staged)
        return ended

    def _send_and_resume(self, staged: Staged) -> Ended:
        self._send(self._run.budget(staged.costs))
        return self.resume()

    def resume(self) -> Ended:
        """
        Wait for what runs and land it; ask again what is invalid, until nothing is left to ask.

        :raises LedgerError: the run's record cannot be used.
        """
        run, format_ = self._run, format_from(self._run.plan.policy.results_format)
        while True:
            self._wait_for_jobs()
            folder = f"repairs/{run.writer}-{run.state.rounds}"
            repair = RequestWriter(run.directory, folder) if self._may_repair else None
            with _tracer.start_as_current_span("bulk.land", attributes={"rows": run.state.count}):
                landing = land(run, format_, repair=repair, before_row=self._before_step)
                if not landing.repairs:
                    return self._ended(landing, results=format_.file)
            self._logger.info(
                "%d answers do not fit output_type; asking again with the reason.", len(landing.repairs)
            )
            run.ask_again(set(landing.repairs))
            self._send(run.budget(landing.repairs), folder)

    def _send(self, budget: Budget, folder: str | None = None) -> None:
        self._before_step()
        run = self._run
        if not run.state.open:
            return
        with _tracer.start_as_current_span("bulk.send", attributes={"rows": len(run.state.open)}):
            submitted = self._submit(budget, folder)
        run.sent(submitted.stopped)
        self._reports.sent(run, submitted)
        if submitted.stopped is not None and run.state.stopped is None:
            raise submitted.stopped

    def _wait_for_jobs(self) -> None:
        collection = Collection(self._run.directory, self._run.plan.settings, logger=self._logger)
        collection.read()
        if collection.pending:
            self._wait(collection)

    @property
    def _may_repair(self) -> bool:
        state = self._run.state
        return (
            state.rounds <= self._run.plan.policy.repair_attempts
            and state.stopped is None
            and time.time() < self._deadline
        )

    def _ended(self, landing: Landing, *, results: str) -> Ended:
        run = self._run
        before = read_manifest(run.directory)
        manifest = manifest_of(run, landing, results=results, now=time.time())
        write_manifest(run.directory, manifest)
        self._reports.landed(run, landing, manifest, before)
        error = verdict(
            landing.counts,
            run.state.stopped,
            run.plan.policy,
            results=manifest["results"],
            reason=landing.reason,
        )
        return Ended(manifest, error)
