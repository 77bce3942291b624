# SPDX-License-Identifier: Apache-2.0

"""What tasks that wait for jobs share: defer or stay, fetch the results, say how it ended."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from pydantic import ValidationError

from airflow_provider_distribute.exceptions import (
    AccessDenied,
    ConnectionInvalid,
    DeadlinePassed,
    InferenceError,
    JobsFailed,
)
from airflow_provider_distribute.hooks import hook_for
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.models import LONGEST, Value, problems_in
from airflow_provider_distribute.triggers.chat import AsyncChatTrigger, WaitOutcome
from airflow_provider_distribute.waiting.pool import NOT_FOUND, NOT_SEEN
from airflow_provider_distribute.waiting.results import BRIEF_PATIENCE, LAST_LOOK, PATIENCE, fetch, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import NoReturn

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Job
    from airflow_provider_distribute.waiting.results import Results

_Outcome = TypeVar("_Outcome", bound=Value)

#: Airflow's own limit on a deferral lies this many seconds behind the trigger's deadline, as a net.
NET = 300.0
#: Seconds between look-ups of a connection that cannot be read although it was before.
_LOOK_UPS_APART = (2.0, 5.0, 10.0)


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


def timed_out(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Return whether a task is resumed because Airflow's own limit on its deferral has passed."""
    reason = (next_kwargs or {}).get("error")
    return next_method == TRIGGER_FAIL_REPR and reason == TriggerFailureReason.TRIGGER_TIMEOUT


def checked_seconds(**durations: float | timedelta) -> list[float]:
    """
    Return durations in seconds, while the Dag is parsed and nothing is paid.

    :raises ValueError: one is not above zero, or is longer than a year.
    """
    for name, duration in durations.items():
        if not 0 < seconds(duration) <= LONGEST:
            raise ValueError(f"{name} must be more than 0 and at most a year of seconds, not {duration!r}.")
    return [seconds(duration) for duration in durations.values()]


def rendered(value: Any) -> Any:
    """Return what a template stands for: unless it renders natively, a list or mapping comes as its text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "(", "{")):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                meant = read(value.strip())
                return meant if isinstance(meant, list | tuple | dict) else value
    return value


#: Keys by which Airflow knows its own values in an XCom: it refuses to store a mapping with one of the first
#: two, and reads one with the others as something else.
_RESERVED = frozenset({"__classname__", "__id__", "__type", "__var"})


def storable(value: Any) -> Any:
    """Return JSON as Airflow can store it: a key that it keeps for itself gets ``reserved:`` in front."""
    if isinstance(value, Mapping):
        return {f"reserved:{key}" if key in _RESERVED else key: storable(it) for key, it in value.items()}
    return [storable(it) for it in value] if isinstance(value, list | tuple) else value


def hook_with_link(conn_id: str, context: Context) -> ServiceHook:
    """
    Return a connection's hook, and leave the link to its dashboard.

    :raises ConnectionInvalid: naming every missing or wrong field.
    """
    hook = hook_for(conn_id)
    DashboardLink.remember(context, hook.settings.dashboard_url)
    return hook


def hook_again(conn_id: str, tell: Callable[[str], str]) -> ServiceHook:
    """
    Return the hook of a connection that a task has used before.

    :param tell: Adds to the reason, a sentence, what goes on all the same.
    :raises ConnectionInvalid: naming every missing or wrong field.
    :raises AirflowException: it cannot be read, which need not last: Airflow also says that a connection is
        not defined when its secrets backend or its API server does not answer.
    """
    waits = iter(_LOOK_UPS_APART)
    while True:
        try:
            return hook_for(conn_id)
        except InferenceError:
            raise
        except Exception as error:
            wait = next(waits, None)
            if wait is None:
                why = (
                    f"Connection {conn_id!r}, which this task has used before, cannot be read now: "
                    f"{type(error).__name__}: {str(error).rstrip('.')}."
                )
                raise AirflowException(tell(why)) from error
        time.sleep(wait)


class LeavesJobsRunning:
    """Mixin for a task whose jobs outlive it: when it is killed, the log says which."""

    #: The jobs that this process submitted, took over or waits for.
    left_running: Collection[str] = ()
    #: Whether the worker was told to stop; then nothing more is submitted.
    killed = False

    def on_kill(self) -> None:
        """Submit nothing more, and say what goes on: neither service can cancel."""
        self.killed = True
        if self.left_running:
            self.log.warning(  # type: ignore[attr-defined]
                "The task was killed. Its jobs cannot be cancelled: those that have not ended go on and are "
                "billed: %s.",
                ", ".join(self.left_running),
            )


class WaitsForJobs(LeavesJobsRunning):
    """
    Mixin for a task that waits for jobs.

    ``job_ids_to_wait_for`` says which jobs; ``deadline_passed`` and ``jobs_failed`` say which exception ends
    it; ``what_a_clear_pays`` says what it costs to start over.
    """

    conn_id: str
    poke_interval: float
    fail_on_error: bool

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
        outcome = read_event(event, WaitOutcome)
        if job_ids is None or deadline is None:
            # dag.test() drops what was handed to defer().
            job_ids, deadline = self.job_ids_to_wait_for(context), time.time()
        if outcome.verdict == "refused":
            raise self.cannot_wait(outcome.message, job_ids, context)
        with self.waiting_for(job_ids, context):
            hook = self.connected_again(job_ids, context)
            ended: dict[str, Job] = {}
            if outcome.verdict == "deadline":
                ended |= self.look_a_last_time_at(hook, outcome.words, job_ids, context)
            missing = [job_id for job_id in job_ids if job_id not in ended]
            # What cannot be fetched now is waited for again, without a worker, as long as there is time.
            patience = BRIEF_PATIENCE if time.time() < deadline else PATIENCE
            results = self.look_once(hook, missing, patience)
            for job_id in outcome.lost:
                if results.pending.get(job_id) is NOT_FOUND:
                    results.took(hook.client.service.lost(job_id))
            if results.pending:
                if time.time() > deadline:
                    raise self._too_late(results.pending, job_ids, context)
                self.defer_until_ended(job_ids, deadline)
            ended |= results.ended
        return self.hand_over(context, [ended[job_id] for job_id in job_ids])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; Airflow's own limit on the deferral, which drops our arguments, ends in a last look."""
        if timed_out(next_method, next_kwargs):
            next_method, next_kwargs = "look_a_last_time", {}
        return super().resume_execution(next_method, next_kwargs, context)  # type: ignore[misc]

    def look_a_last_time(self, context: Context) -> Any:
        """No triggerer kept the deadline, so none ran: what has ended meanwhile is paid for and fetched."""
        job_ids = self.job_ids_to_wait_for(context)
        with self.waiting_for(job_ids, context):
            hook = self.connected_again(job_ids, context)
            ended = self.look_a_last_time_at(hook, dict.fromkeys(job_ids, NOT_SEEN), job_ids, context)
        return self.hand_over(context, [ended[job_id] for job_id in job_ids])

    def wait_here(
        self, hook: ServiceHook, job_ids: Sequence[str], timeout: float, context: Context
    ) -> list[Job]:
        """
        Wait on the worker.

        :param timeout: Seconds.
        """
        with self.waiting_for(job_ids, context):
            results = asyncio.run(
                wait_for(
                    job_ids,
                    hook.settings,
                    deadline=time.time() + timeout,
                    poke_interval=self.poke_interval,
                    logger=hook.log,
                )
            )
            ended = results.ended | self.look_a_last_time_at(hook, results.pending, job_ids, context)
        return [ended[job_id] for job_id in job_ids]

    def look_a_last_time_at(
        self, hook: ServiceHook, words: Mapping[str, str], job_ids: Sequence[str], context: Context
    ) -> dict[str, Job]:
        """
        Look once more at what was pending: what has ended is paid for, whoever came too late to see it.

        :param words: The last status words of the pending jobs.
        :returns: These jobs, all of them ended.
        :raises AirflowException: naming those that are pending still.
        """
        looked = self.look_once(hook, words, LAST_LOOK)
        if looked.pending:
            now = {job_id: words[job_id] if it is NOT_SEEN else it for job_id, it in looked.pending.items()}
            raise self._too_late(now, job_ids, context)
        return looked.ended

    def look_once(self, hook: ServiceHook, job_ids: Iterable[str], patience: float) -> Results:
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

    def _too_late(
        self, pending: Mapping[str, str], job_ids: Sequence[str], context: Context
    ) -> AirflowException:
        return self.deadline_passed(DeadlinePassed(pending, total=len(set(job_ids))), context)

    @contextlib.contextmanager
    def waiting_for(self, job_ids: Sequence[str], context: Context) -> Iterator[None]:
        """Where a person has to act before anybody can wait, name the jobs and what starting over costs."""
        self.left_running = job_ids
        with airflow_errors():
            try:
                yield
            except (AccessDenied, ConnectionInvalid) as error:
                raise self.cannot_wait(str(error), job_ids, context) from error

    def connected_again(self, job_ids: Sequence[str], context: Context) -> ServiceHook:
        """Return the hook of a connection that this task has used before; see :func:`hook_again`."""
        return hook_again(
            self.conn_id,
            lambda why: (
                f"{why} What has not ended goes on and is billed: {', '.join(dict.fromkeys(job_ids))}. "
                f"{self.what_a_clear_pays(context)}"
            ),
        )

    def cannot_wait(self, why: str, job_ids: Sequence[str], context: Context) -> AirflowFailException:
        """Return the exception that ends the task when waiting is impossible until somebody acts."""
        return AirflowFailException(
            f"{why.rstrip('.')}. Nobody waits any more for {', '.join(dict.fromkeys(job_ids))}: what has not "
            f"ended goes on and is billed. {self.what_a_clear_pays(context)}"
        )

    def hand_over(self, context: Context, jobs: Sequence[Job]) -> Any:
        """Return the results for XCom, or fail naming every job that failed."""
        by_id = {job.job_id: job for job in jobs}
        failed = [job for job in by_id.values() if not job.succeeded]
        if failed and self.fail_on_error:
            error = JobsFailed(failed, total=len(by_id))
            raise self.jobs_failed(error, context) from error
        return [storable(job.result()) for job in jobs]

    def job_ids_to_wait_for(self, context: Context) -> Sequence[str]:
        """Return the jobs to wait for, known again in a new process."""
        raise NotImplementedError

    def deadline_passed(self, error: DeadlinePassed, context: Context) -> AirflowException:
        """Return the exception that ends the task at its deadline."""
        raise NotImplementedError

    def jobs_failed(self, error: JobsFailed, context: Context) -> AirflowException:
        """Return the exception that ends the task when jobs failed."""
        raise NotImplementedError

    def what_a_clear_pays(self, context: Context) -> str:
        """Return a sentence about what starting over costs, here and now."""
        raise NotImplementedError


def read_event(event: Any, outcome: type[_Outcome]) -> _Outcome:
    """
    Read the event that resumed the task.

    :param outcome: What the trigger yields.
    :raises AirflowException: when it is not one of ours; a retry waits again.
    """
    try:
        return outcome.model_validate(event)
    except ValidationError as error:
        problems = "; ".join(problems_in(error))
        raise AirflowException(
            f"The trigger's event cannot be read: {problems}. The jobs are not touched by that. Worker and "
            "triggerer may run different releases of this provider: restart the older one and retry."
        ) from None
