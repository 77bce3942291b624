# SPDX-License-Identifier: Apache-2.0

"""What the sensor and the operator that waits share: defer, fetch the results, say how it ended."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic import ValidationError

from airflow_provider_distribute.exceptions import DeadlinePassed, InferenceError, JobsFailed
from airflow_provider_distribute.hooks import hook_for
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.models import problems_in
from airflow_provider_distribute.triggers.chat import AsyncChatTrigger, WaitOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import NoReturn

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Job

#: Airflow's own limit on a deferral lies this many seconds behind the trigger's deadline, as a net.
NET = 300.0
#: Seconds the worker tries to fetch results that the trigger has seen; then the triggerer waits again.
_FETCH_WITHIN = 120.0


@contextlib.contextmanager
def airflow_errors() -> Iterator[None]:
    """Fail the task for good where no retry can help; leave the rest to Airflow's ``retries``."""
    try:
        yield
    except InferenceError as error:
        raise (AirflowException if error.transient else AirflowFailException)(str(error)) from error


def labels_of(task: Any) -> dict[str, Any]:
    """Return where a request comes from, so that a duplicate can be recognised at the service."""
    return {
        "airflow_dag_id": task.dag_id,
        "airflow_run_id": task.run_id,
        "airflow_task_id": task.task_id,
        "airflow_map_index": task.map_index,
    }


def seconds(duration: float | timedelta) -> float:
    """Return a duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


class WaitsForJobs:
    """
    Mixin for a task that waits for jobs.

    ``job_ids_to_wait_for`` says which jobs; ``deadline_passed`` and ``jobs_failed`` say which exception ends
    it.
    """

    conn_id: str
    poke_interval: float
    fail_on_error: bool

    def hook_with_link(self, context: Context) -> ServiceHook:
        """Return the connection's hook, and leave the dashboard's link."""
        hook = hook_for(self.conn_id)
        DashboardLink.remember(context, hook.settings.dashboard_url)
        return hook

    def defer_until_ended(self, job_ids: Sequence[str], deadline: float) -> NoReturn:
        """
        Hand the waiting to the triggerer.

        :param deadline: Seconds since the epoch.
        """
        self.defer(  # type: ignore[attr-defined]
            trigger=AsyncChatTrigger(
                conn_id=self.conn_id,
                job_ids=list(dict.fromkeys(job_ids)),
                deadline=deadline,
                poke_interval=self.poke_interval,
            ),
            method_name="execute_complete",
            kwargs={"job_ids": list(job_ids), "deadline": deadline},
            timeout=timedelta(seconds=max(0.0, deadline - time.time()) + NET),
        )
        raise AssertionError("unreachable: defer raises")

    def execute_complete(
        self,
        context: Context,
        event: Any = None,
        job_ids: Sequence[str] | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Fetch the results once the trigger has seen every job ended, or say why it has not."""
        outcome = read_event(event)
        if outcome.verdict == "refused":
            raise AirflowFailException(outcome.message)
        if job_ids is None or deadline is None:
            # dag.test() drops what was handed to defer().
            job_ids, deadline = self.job_ids_to_wait_for(context), time.time()
        if outcome.verdict == "deadline":
            error = DeadlinePassed(outcome.words, total=len(set(job_ids)))
            raise self.deadline_passed(error) from error
        with airflow_errors():
            hook = self.hook_with_link(context)
            lost = {job_id: hook.client.service.lost(job_id) for job_id in outcome.lost}
            try:
                jobs = self._fetch(hook, job_ids, lost)
            except DeadlinePassed as error:
                if time.time() > deadline:
                    raise self.deadline_passed(error) from error
                self.defer_until_ended(job_ids, deadline)
        return self.hand_over(context, jobs)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; Airflow's own limit on the deferral, which drops our arguments, ends in a last look."""
        if next_method == "__fail__" and (next_kwargs or {}).get("error") == "Trigger timeout":
            next_method, next_kwargs = "look_a_last_time", {}
        return super().resume_execution(next_method, next_kwargs, context)  # type: ignore[misc]

    def look_a_last_time(self, context: Context) -> Any:
        """No triggerer kept the deadline, so none ran: what has ended meanwhile is paid for and fetched."""
        job_ids = self.job_ids_to_wait_for(context)
        with airflow_errors():
            try:
                jobs = self._fetch(self.hook_with_link(context), job_ids, {})
            except DeadlinePassed as error:
                raise self.deadline_passed(error) from error
        return self.hand_over(context, jobs)

    def _fetch(self, hook: ServiceHook, job_ids: Sequence[str], lost: Mapping[str, Job]) -> list[Job]:
        asked = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in lost]
        jobs = hook.wait(asked, timeout=_FETCH_WITHIN, poke_interval=self.poke_interval, look_now=True)
        ended = {**lost, **{job.job_id: job for job in jobs}}
        return [ended[job_id] for job_id in job_ids]

    def hand_over(self, context: Context, jobs: Sequence[Job]) -> Any:
        """Return the results for XCom, or fail naming every job that failed."""
        by_id = {job.job_id: job for job in jobs}
        failed = [job for job in by_id.values() if not job.succeeded]
        if failed and self.fail_on_error:
            error = JobsFailed(failed, total=len(by_id))
            raise self.jobs_failed(error) from error
        return [job.result() for job in jobs]

    def job_ids_to_wait_for(self, context: Context) -> Sequence[str]:
        """Return the jobs to wait for, known again in a new process."""
        raise NotImplementedError

    def deadline_passed(self, error: DeadlinePassed) -> AirflowException:
        """Return the exception that ends the task at its deadline."""
        raise NotImplementedError

    def jobs_failed(self, error: JobsFailed) -> AirflowException:
        """Return the exception that ends the task when jobs failed."""
        raise NotImplementedError


def read_event(event: Any) -> WaitOutcome:
    """
    Read the event that resumed the task.

    :raises AirflowException: when it is not one of ours; a retry waits again.
    """
    try:
        return WaitOutcome.model_validate(event)
    except ValidationError as error:
        problems = "; ".join(problems_in(error))
        raise AirflowException(
            f"The trigger's event cannot be read: {problems}. The jobs are not touched by that. Worker and "
            "triggerer may run different releases of this provider: restart the older one and retry."
        ) from None
