# SPDX-License-Identifier: Apache-2.0

"""The sensor that waits for chat jobs and returns their results."""

from __future__ import annotations

import ast
import contextlib
import json
import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_distribute.exceptions import DeadlinePassed, JobNotFound, RequestRefused, Unavailable
from airflow_provider_distribute.hooks.base import DEFAULT_POKE_INTERVAL, DEFAULT_TIMEOUT
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.operators.mixins import WaitsForJobs, airflow_errors
from airflow_provider_distribute.waiting.pool import NOT_SEEN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_distribute.exceptions import JobsFailed
    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Job

__all__ = ["AsyncChatSensor"]

#: One sensor waits for at most this many jobs.
MAX_JOBS = 1000
#: Options of Airflow's sensors that have no meaning while deferred: the pool's schedule adapts by itself.
_POKE_ONLY = {"exponential_backoff": False, "max_wait": None, "silent_fail": False}


class AsyncChatSensor(WaitsForJobs, BaseSensorOperator):
    """
    Waits until every job has ended, and returns the results.

    With ``deferrable=True`` the waiting happens on the triggerer, whatever ``mode`` says, and all sensors of
    one triggerer share one connection pool and one schedule per connection. ``mode="poke"`` and
    ``"reschedule"`` with ``deferrable=False`` end the same way.

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
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.conn_id = conn_id
        self.job_id = job_id
        self.deferrable = deferrable
        self.fail_on_error = fail_on_error
        refused = [
            name for name, unset in _POKE_ONLY.items() if deferrable and kwargs.get(name, unset) != unset
        ]
        if refused:
            raise ValueError(
                f"{', '.join(refused)} has no meaning for a deferrable AsyncChatSensor, whose looks are "
                "scheduled adaptively. Leave it out, or set deferrable=False."
            )

    def execute(self, context: Context) -> Any:
        """Defer, or poke."""
        with self._skipping():
            if not self.deferrable:
                return self._poke_until_ended(context)
            job_ids = self.job_ids_to_wait_for(context)
            with airflow_errors():
                self.hook_with_link(context)
            if not job_ids:
                return []
            return self.defer_until_ended(job_ids, time.time() + self.timeout)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; a wait that failed is skipped where the author wants that."""
        with self._skipping():
            return super().resume_execution(next_method, next_kwargs, context)

    @contextlib.contextmanager
    def _skipping(self) -> Iterator[None]:
        """``soft_fail`` and ``never_fail`` skip in every mode; Airflow itself sees to some of it."""
        try:
            yield
        except (AirflowFailException, AirflowSensorTimeout) as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def _poke_until_ended(self, context: Context) -> Any:
        try:
            return super().execute(context)
        except AirflowSensorTimeout as error:
            pending = self._pending(context)
            raise self.deadline_passed(pending) from error

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """
        Look at the jobs in order, up to the first that is still pending.

        All have to end, so the first pending one answers for the rest.
        """
        job_ids = self.job_ids_to_wait_for(context)
        with airflow_errors():
            if not all(self._look(job_id, context).done for job_id in dict.fromkeys(job_ids)):
                return False
        results = self.hand_over(context, [self._seen[job_id] for job_id in job_ids])
        return PokeReturnValue(is_done=True, xcom_value=results)

    @cached_property
    def _seen(self) -> dict[str, Job]:
        return {}

    @cached_property
    def _first_poke(self) -> float:
        return time.time()

    def _look(self, job_id: str, context: Context) -> Job:
        """Look at a job unless it is known to have ended."""
        job = self._seen.get(job_id)
        if job is None or not job.done:
            job = self._seen[job_id] = self._look_at(job_id, self._poking_hook(context), context)
        return job

    def _look_at(self, job_id: str, hook: ServiceHook, context: Context) -> Job:
        service = hook.client.service
        try:
            return hook.get_job(job_id)
        except JobNotFound:
            lost = self._waited(context) >= service.not_found_grace(hook.settings)
            return service.lost(job_id) if lost else service.unseen(job_id, "not found")
        except RequestRefused as error:
            return service.withheld(job_id, error)
        except Unavailable as error:
            self.log.warning(
                "%s. The job goes on; it is looked at again in %.0f s.", error, self.poke_interval
            )
            return service.unseen(job_id, NOT_SEEN)

    def _poking_hook(self, context: Context) -> ServiceHook:
        if "_hook" not in self.__dict__:
            self.__dict__["_hook"] = self.hook_with_link(context)
        hook: ServiceHook = self.__dict__["_hook"]
        return hook

    def _waited(self, context: Context) -> float:
        first = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
        return time.time() - (first.timestamp() if first else self._first_poke)

    def _pending(self, context: Context) -> DeadlinePassed:
        job_ids = dict.fromkeys(self.job_ids_to_wait_for(context))
        with airflow_errors():
            looked = [self._seen.get(job_id) or self._look(job_id, context) for job_id in job_ids]
        return DeadlinePassed({job.job_id: job.status for job in looked if not job.done}, total=len(job_ids))

    def hand_over(self, context: Context, jobs: Sequence[Job]) -> Any:
        """Return one result for one id, a list for a list; or fail naming every job that failed."""
        results = super().hand_over(context, jobs)
        return results if self._several else results[0]

    @property
    def _several(self) -> bool:
        return not isinstance(_given(self.job_id), str)

    def job_ids_to_wait_for(self, context: Context) -> Sequence[str]:
        """Return the jobs, checked."""
        given = _given(self.job_id)
        job_ids = [given] if isinstance(given, str) else given
        if not isinstance(job_ids, Sequence) or not all(isinstance(it, str) and it.strip() for it in job_ids):
            raise AirflowFailException(
                f"job_id must be a job id or a list of them, not {_shape(self.job_id)}. "
                "Nothing is waited for. Check what the upstream task pushed."
            )
        if len(job_ids) > MAX_JOBS:
            raise AirflowFailException(
                f"{len(job_ids)} jobs are more than the {MAX_JOBS} one sensor waits for. "
                "Use AsyncChatBulkOperator, or expand the sensor over smaller lists."
            )
        return list(job_ids)

    def deadline_passed(self, error: DeadlinePassed) -> AirflowSensorTimeout:
        """Return Airflow's own sensor timeout, which it does not retry."""
        return AirflowSensorTimeout(str(error))

    def jobs_failed(self, error: JobsFailed) -> AirflowFailException:
        """Return an exception that Airflow does not retry: a failed job stays failed."""
        return AirflowFailException(str(error))


def _given(job_id: Any) -> Any:
    """Return what was given; a template renders a list as the text of one."""
    if isinstance(job_id, str) and job_id.lstrip().startswith("["):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError):
                return read(job_id)
    return job_id


def _shape(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list with {', '.join(sorted({type(item).__name__ for item in value}))}"
    return repr(value) if value in (None, "") else type(value).__name__
