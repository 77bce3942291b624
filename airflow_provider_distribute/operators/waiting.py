# SPDX-License-Identifier: Apache-2.0

"""What tasks with jobs at a service share: wait here or defer, fetch the results, say how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_distribute.exceptions import (
    AccessDenied,
    ConnectionInvalid,
    DeadlinePassed,
    JobsFailed,
)
from airflow_provider_distribute.operators.connection import hook_again
from airflow_provider_distribute.operators.deferral import (
    TRIGGER_FAILED,
    defer_to,
    read_event,
    timed_out,
    trigger_failed,
)
from airflow_provider_distribute.operators.errors import airflow_errors
from airflow_provider_distribute.operators.xcom import storable
from airflow_provider_distribute.triggers.chat import AsyncChatTrigger, WaitOutcome
from airflow_provider_distribute.waiting.pool import NOT_FOUND, NOT_SEEN
from airflow_provider_distribute.waiting.results import BRIEF_PATIENCE, LAST_LOOK, PATIENCE, fetch, wait_for

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Job
    from airflow_provider_distribute.waiting.results import Results

__all__ = ["LeavesJobsRunning", "WaitsForJobs"]


class LeavesJobsRunning:
    """Mixin for a task whose jobs outlive it: when it is killed, the log says which."""

    #: The jobs that this process submitted, took over or waits for.
    _left_running: Collection[str] = ()
    #: Whether the worker was told to stop; then nothing more is submitted.
    _killed = False

    def on_kill(self) -> None:
        """Submit nothing more, and say what goes on: neither service can cancel."""
        self._killed = True
        if self._left_running:
            self.log.warning(  # type: ignore[attr-defined]
                "The task was killed. Its jobs cannot be cancelled: those that have not ended go on and are "
                "billed: %s.",
                ", ".join(self._left_running),
            )


class WaitsForJobs(LeavesJobsRunning):
    """
    Mixin for a task that waits for jobs.

    ``_job_ids_to_wait_for`` says which jobs; ``_error_at_deadline`` and ``_error_for_failed_jobs`` say which
    exception ends it; ``_what_a_clear_pays`` says what it costs to start over.
    """

    conn_id: str
    poke_interval: float
    fail_on_error: bool

    def _defer_until_ended(self, job_ids: Sequence[str], deadline: float) -> NoReturn:
        """
        Hand the waiting to the triggerer.

        :param deadline: Seconds since the epoch.
        """
        trigger = AsyncChatTrigger(
            conn_id=self.conn_id,
            job_ids=list(dict.fromkeys(job_ids)),
            deadline=deadline,
            poke_interval=self.poke_interval,
        )
        arguments = {"job_ids": list(job_ids), "deadline": deadline}
        defer_to(trigger, self, deadline, arguments)  # type: ignore[arg-type]

    def execute_complete(
        self,
        context: Context,
        event: Any = None,
        job_ids: Sequence[str] | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Fetch the results once the trigger has seen every job ended, or say why it has not."""
        outcome = read_event(event, WaitOutcome)
        if job_ids is None or deadline is None:
            # dag.test() drops what was handed to defer().
            job_ids, deadline = self._job_ids_to_wait_for(context), time.time()
        if outcome.verdict == "refused":
            raise self._error_as_nobody_waits(outcome.message, job_ids, context)
        with self._waiting_for(job_ids, context):
            hook = self._connected_again(job_ids, context)
            ended: dict[str, Job] = {}
            if outcome.verdict == "deadline":
                ended |= self._look_a_last_time_at(hook, outcome.words, job_ids, context)
            missing = [job_id for job_id in job_ids if job_id not in ended]
            # What cannot be fetched now is waited for again, without a worker, as long as there is time.
            patience = BRIEF_PATIENCE if time.time() < deadline else PATIENCE
            results = self._look_once(hook, missing, patience)
            for job_id in outcome.lost:
                if results.pending.get(job_id) is NOT_FOUND:
                    results.took(hook.client.service.lost(job_id))
            if results.pending:
                if time.time() > deadline:
                    raise self._error_for_pending_jobs(results.pending, job_ids, context)
                self._defer_until_ended(job_ids, deadline)
            ended |= results.ended
        return self._hand_over(context, [ended[job_id] for job_id in job_ids])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """
        Resume. When Airflow itself ended the deferral our arguments are lost: its limit ends in a last look,
        and a trigger that failed in an error which names the jobs.
        """
        if timed_out(next_method, next_kwargs):
            next_method, next_kwargs = "_look_a_last_time", {}
        elif trigger_failed(next_method, next_kwargs, logger=self.log):  # type: ignore[attr-defined]
            job_ids = self._job_ids_to_wait_for(context)
            raise AirflowException(self._nobody_waits(TRIGGER_FAILED, job_ids, context))
        return super().resume_execution(next_method, next_kwargs, context)  # type: ignore[misc]

    def _look_a_last_time(self, context: Context) -> Any:
        """No triggerer kept the deadline, so none ran: what has ended meanwhile is paid for and fetched."""
        job_ids = self._job_ids_to_wait_for(context)
        with self._waiting_for(job_ids, context):
            hook = self._connected_again(job_ids, context)
            ended = self._look_a_last_time_at(hook, dict.fromkeys(job_ids, NOT_SEEN), job_ids, context)
        return self._hand_over(context, [ended[job_id] for job_id in job_ids])

    def _wait_here(
        self, hook: ServiceHook, job_ids: Sequence[str], timeout: float, context: Context
    ) -> list[Job]:
        """
        Wait on the worker.

        :param timeout: Seconds.
        """
        with self._waiting_for(job_ids, context):
            results = asyncio.run(
                wait_for(
                    job_ids,
                    hook.settings,
                    deadline=time.time() + timeout,
                    poke_interval=self.poke_interval,
                    logger=hook.log,
                )
            )
            ended = results.ended | self._look_a_last_time_at(hook, results.pending, job_ids, context)
        return [ended[job_id] for job_id in job_ids]

    def _look_a_last_time_at(
        self, hook: ServiceHook, words: Mapping[str, str], job_ids: Sequence[str], context: Context
    ) -> dict[str, Job]:
        """
        Look once more at what was pending: what has ended is paid for, whoever came too late to see it.

        :param words: The last status words of the pending jobs.
        :returns: These jobs, all of them ended.
        :raises AirflowException: naming those that are pending still.
        """
        looked = self._look_once(hook, words, LAST_LOOK)
        if looked.pending:
            now = {job_id: words[job_id] if it is NOT_SEEN else it for job_id, it in looked.pending.items()}
            raise self._error_for_pending_jobs(now, job_ids, context)
        return looked.ended

    def _look_once(self, hook: ServiceHook, job_ids: Iterable[str], patience: float) -> Results:
        """
        Look at each job once, and again only where a look got no answer.

        :param patience: Seconds without a result after which it ends.
        """
        return asyncio.run(
            fetch(
                job_ids,
                hook.settings,
                patience=patience,
                once=True,
                poke_interval=self.poke_interval,
                logger=hook.log,
            )
        )

    def _error_for_pending_jobs(
        self, pending: Mapping[str, str], job_ids: Sequence[str], context: Context
    ) -> AirflowException:
        return self._error_at_deadline(DeadlinePassed(pending, total=len(set(job_ids))), context)

    @contextlib.contextmanager
    def _waiting_for(self, job_ids: Sequence[str], context: Context) -> Iterator[None]:
        """Where a person has to act before anybody can wait, name the jobs and what starting over costs."""
        self._left_running = job_ids
        with airflow_errors():
            try:
                yield
            except (AccessDenied, ConnectionInvalid) as error:
                raise self._error_as_nobody_waits(str(error), job_ids, context) from error

    def _connected_again(self, job_ids: Sequence[str], context: Context) -> ServiceHook:
        """Return the hook of a connection that this task has used before; see :func:`hook_again`."""
        return hook_again(
            self.conn_id,
            lambda why: (
                f"{why} What has not ended goes on and is billed: {', '.join(dict.fromkeys(job_ids))}. "
                f"{self._what_a_clear_pays(context)}"
            ),
        )

    def _error_as_nobody_waits(
        self, why: str, job_ids: Sequence[str], context: Context
    ) -> AirflowFailException:
        """Return the exception that ends the task when waiting is impossible until somebody acts."""
        return AirflowFailException(self._nobody_waits(why, job_ids, context))

    def _nobody_waits(self, why: str, job_ids: Sequence[str], context: Context) -> str:
        return (
            f"{why.rstrip('.')}. Nobody waits any more for {', '.join(dict.fromkeys(job_ids))}: what has not "
            f"ended goes on and is billed. {self._what_a_clear_pays(context)}"
        )

    def _hand_over(self, context: Context, jobs: Sequence[Job]) -> Any:
        """Return the results for XCom, or fail naming every job that failed."""
        by_id = {job.job_id: job for job in jobs}
        failed = [job for job in by_id.values() if not job.succeeded]
        if failed and self.fail_on_error:
            error = JobsFailed(failed, total=len(by_id))
            raise self._error_for_failed_jobs(error, context) from error
        return [storable(job.result()) for job in jobs]

    def _job_ids_to_wait_for(self, context: Context) -> Sequence[str]:
        """Return the jobs to wait for, known again in a new process."""
        raise NotImplementedError

    def _error_at_deadline(self, error: DeadlinePassed, context: Context) -> AirflowException:
        """Return the exception that ends the task at its deadline."""
        raise NotImplementedError

    def _error_for_failed_jobs(self, error: JobsFailed, context: Context) -> AirflowException:
        """Return the exception that ends the task when jobs failed."""
        raise NotImplementedError

    def _what_a_clear_pays(self, context: Context) -> str:
        """Return a sentence about what starting over costs, here and now."""
        raise NotImplementedError
