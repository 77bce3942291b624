# SPDX-License-Identifier: Apache-2.0

"""The sensor that waits for chat jobs and returns their results."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_distribute.hooks import hook_for
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.models import DEFAULT_POKE_INTERVAL, DEFAULT_TIMEOUT
from airflow_provider_distribute.operators.arguments import rendered, seconds
from airflow_provider_distribute.operators.waiting import WaitsForJobs
from airflow_provider_distribute.waiting.pool import NOT_SEEN
from airflow_provider_distribute.waiting.results import Results, look_newest_first

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_distribute.exceptions import DeadlinePassed, JobsFailed
    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Job

__all__ = ["AsyncChatSensor"]

#: One sensor waits for at most this many jobs.
MAX_JOBS = 1000
#: Options of Airflow's sensors that only have a meaning where each look is a process of its own; whoever
#: waits in the pool leaves the schedule to it.
_RESCHEDULE_ONLY = {"exponential_backoff": False, "max_wait": None, "silent_fail": False}


class AsyncChatSensor(WaitsForJobs, BaseSensorOperator):
    """
    Waits until every job has ended, and returns the results.

    With ``deferrable=True`` the waiting happens on the triggerer, whatever ``mode`` says, and all sensors of
    one triggerer share one connection pool and one schedule per connection. With ``deferrable=False`` the
    worker waits, in the same way (``mode="poke"``), or looks every ``poke_interval`` seconds and gives its
    slot back in between (``mode="reschedule"``). All of them end the same way.

    In ``mode="reschedule"`` each look is a new process that knows nothing of those before it: it looks at the
    newest job first, and at the others only once that has ended. For many jobs the other modes send fewer
    looks.

    :param conn_id: Connection of type ``distribute`` or ``inference_net``.
    :param job_id: One job id, or a list of up to 1,000; also an XCom of either.
    :param deferrable: Wait on the triggerer.
    :param poke_interval: Seconds. Deferred, finished jobs are noticed after half of it on average, and single
        jobs are looked at more rarely or more often.
    :param timeout: Seconds from the first look; default the service's 72 hours and one more.
    :param fail_on_error: Fail when a job failed; else its result says so.
    :returns: One result, or for a list a list of results in its order. A result is plain JSON:
        ``job_id, service, status ("succeeded" | "failed"), content, finish_reason, tool_calls, choices,
        usage, model, created_at, finished_at (ISO-8601, UTC), error (None or {type, message})``.
    """

    template_fields: Sequence[str] = ("conn_id", "job_id")
    operator_extra_links = (DashboardLink(),)
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        job_id: str | Sequence[str] | XComArg,
        conn_id: str = "distribute_default",
        deferrable: bool = True,
        poke_interval: float | timedelta = DEFAULT_POKE_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        fail_on_error: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            poke_interval=seconds("poke_interval", poke_interval),
            timeout=seconds("timeout", timeout),
            **kwargs,
        )
        self.conn_id = conn_id
        self.job_id = job_id
        self.deferrable = deferrable
        self.fail_on_error = fail_on_error
        self._hook: ServiceHook | None = None
        self._looked = Results()
        self._until = inf
        refused = [
            name
            for name, unset in _RESCHEDULE_ONLY.items()
            if (deferrable or not self.reschedule) and kwargs.get(name, unset) != unset
        ]
        if refused:
            raise ValueError(
                f"{', '.join(refused)} has no meaning for an AsyncChatSensor whose looks are scheduled "
                "adaptively. Leave it out, or set deferrable=False and mode='reschedule'."
            )

    def execute(self, context: Context) -> Any:
        """Defer, or wait here, or look and come back later."""
        with self._skipping():
            job_ids = self._job_ids_to_wait_for(context)
            if not job_ids:
                return []
            if self.reschedule and not self.deferrable:
                return self._look_or_reschedule(job_ids, context)
            with self._waiting_for(job_ids, context):
                hook = self._connected(job_ids, context)
            if self.deferrable:
                self._defer_until_ended(job_ids, time.time() + self.timeout)
            return self._hand_over(context, self._wait_here(hook, job_ids, self.timeout, context))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; a wait that failed is skipped where the author wants that."""
        with self._skipping(), self._failing():
            return super().resume_execution(next_method, next_kwargs, context)

    @contextlib.contextmanager
    def _skipping(self) -> Iterator[None]:
        """
        Let ``soft_fail`` and ``never_fail`` skip alike in every mode, and say why.

        What another attempt may end better is no reason to skip under ``soft_fail``, as in Airflow's own
        sensors: a connection that cannot be read at the moment, for instance.
        """
        try:
            yield
        except (AirflowSkipException, AirflowRescheduleException):
            raise
        except (Exception, AirflowTaskTimeout) as error:
            over = isinstance(error, AirflowFailException | AirflowSensorTimeout | AirflowTaskTimeout)
            if not (self.never_fail or (self.soft_fail and over)):
                raise
            if isinstance(error, AirflowTaskTimeout):
                self.on_kill()
            option = "never_fail" if self.never_fail else "soft_fail"
            self.log.warning("%s The task is skipped instead of failed, as %s says.", error, option)
            raise AirflowSkipException(str(error)) from error

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Let Airflow's own code fail where it would skip: before our last look, with no word about jobs."""
        options = self.soft_fail, self.never_fail
        self.soft_fail = self.never_fail = False
        try:
            yield
        finally:
            self.soft_fail, self.never_fail = options

    def _connected(self, job_ids: Sequence[str], context: Context) -> ServiceHook:
        if self._hook is None:
            again = self.reschedule and context["ti"].get_first_reschedule_date(context)
            hook = self._connected_again(job_ids, context) if again else hook_for(self.conn_id)
            DashboardLink.remember(context, hook.settings.dashboard_url)
            self._hook = hook
        return self._hook

    def _look_or_reschedule(self, job_ids: Sequence[str], context: Context) -> Any:
        try:
            with self._failing():
                return super().execute(context)
        except AirflowRescheduleException as error:
            if self._hook is not None:
                # Nobody else will remember how long the service asked to be left alone.
                wait = self._hook.limit.take(time.monotonic())
                date = datetime.fromtimestamp(min(time.time() + wait, self._until), tz=UTC)
                error.reschedule_date = max(date, error.reschedule_date)
            raise
        except AirflowSensorTimeout:
            ended = self._looked.ended
            words = {it: self._looked.pending.get(it, NOT_SEEN) for it in job_ids if it not in ended}
            with self._waiting_for(job_ids, context):
                hook = self._connected(job_ids, context)
                ended |= self._look_a_last_time_at(hook, words, job_ids, context)
            return self._hand_over(context, [ended[job_id] for job_id in job_ids])

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Look at the jobs, newest first, up to one that is pending."""
        job_ids = self._job_ids_to_wait_for(context)
        first = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
        since = first.timestamp() if first else time.time()
        self._until = since + self.timeout
        with self._waiting_for(job_ids, context):
            hook = self._connected(job_ids, context)
            self._looked = asyncio.run(
                look_newest_first(
                    job_ids,
                    hook.settings,
                    since=since,
                    until=self._until,
                    poke_interval=self.poke_interval,
                    logger=hook.log,
                )
            )
        if self._looked.pending:
            return False
        jobs = [self._looked.ended[job_id] for job_id in job_ids]
        return PokeReturnValue(is_done=True, xcom_value=self._hand_over(context, jobs))

    def _hand_over(self, context: Context, jobs: Sequence[Job]) -> Any:
        """Return one result for one id, a list for a list; or fail naming every job that failed."""
        results = super()._hand_over(context, jobs)
        return results if self._several else results[0]

    @property
    def _several(self) -> bool:
        return not isinstance(rendered(self.job_id), str)

    def _job_ids_to_wait_for(self, context: Context) -> Sequence[str]:
        """Return the jobs, checked."""
        given = rendered(self.job_id)
        # A list from a mapped upstream task asks Airflow for each item each time.
        job_ids = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
        if not all(isinstance(job_id, str) and job_id.strip() for job_id in job_ids):
            raise AirflowFailException(
                f"job_id must be a job id or a list of them, not {_shape(given)}. "
                "Nothing is waited for. Check what the upstream task pushed."
            )
        if len(job_ids) > MAX_JOBS:
            raise AirflowFailException(
                f"{len(job_ids)} jobs are more than the {MAX_JOBS} one sensor waits for. "
                "Use AsyncChatBulkOperator, or expand the sensor over smaller lists."
            )
        return job_ids

    def _error_at_deadline(self, error: DeadlinePassed, context: Context) -> AirflowSensorTimeout:
        """Return Airflow's own sensor timeout, which it does not retry."""
        return AirflowSensorTimeout(f"{error} {self._what_a_clear_pays(context)}")

    def _error_for_failed_jobs(self, error: JobsFailed, context: Context) -> AirflowFailException:
        """Return an exception that Airflow does not retry: a failed job stays failed."""
        return AirflowFailException(str(error))

    def _what_a_clear_pays(self, context: Context) -> str:
        """Waiting is free."""
        return "Clearing the task waits for the same jobs again, and pays nothing."


def _shape(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list with {', '.join(sorted({type(item).__name__ for item in value}))}"
    return repr(value) if value in (None, "") else type(value).__name__
