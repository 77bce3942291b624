# SPDX-License-Identifier: Apache-2.0

"""Operators that submit chat requests, and optionally wait for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator, XCom

from airflow_provider_distribute.client import RESEND_WINDOW
from airflow_provider_distribute.exceptions import (
    InferenceError,
    InvalidRequest,
    JobsFailed,
    OutcomeUnknown,
    SubmissionIncomplete,
    WorkerStopped,
)
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.models import DEFAULT_POKE_INTERVAL, DEFAULT_TIMEOUT, ChatRequest
from airflow_provider_distribute.operators.arguments import rendered, seconds
from airflow_provider_distribute.operators.connection import hook_with_link
from airflow_provider_distribute.operators.errors import airflow_errors
from airflow_provider_distribute.operators.labels import labels_of
from airflow_provider_distribute.operators.record import SubmissionRecord
from airflow_provider_distribute.operators.waiting import LeavesJobsRunning, WaitsForJobs
from airflow_provider_distribute.waiting.pool import NOT_FOUND, NOT_SEEN
from airflow_provider_distribute.waiting.results import LAST_LOOK

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_distribute.exceptions import DeadlinePassed
    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Job

__all__ = ["AsyncChatOperator", "SubmitAsyncChatOperator"]

#: One task submits at most this many requests.
MAX_REQUESTS = 1000
#: Problems that one message lists.
_SHOWN = 100
_JOB_IDS = "job_ids"


class SubmitAsyncChatOperator(LeavesJobsRunning, BaseOperator):
    """
    Submits chat requests and pushes their job ids.

    The service follows from the connection's type. Exactly one of ``prompt``, ``messages`` and ``requests``
    is needed. Requests are checked, all of them, before the first is sent; then they are sent one by one.

    On Airflow 3.3 and later a retry submits only what has no job id yet.

    :param conn_id: Connection of type ``distribute`` or ``inference_net``.
    :param model: Model; default the connection's.
    :param prompt: One question.
    :param messages: One conversation, as OpenAI-style messages.
    :param requests: Several: each a prompt, a message list, or a mapping with ``prompt`` or ``messages`` and
        optionally ``model``, ``params``, ``metadata`` and ``system_prompt``. At most 1,000.
    :param system_prompt: Goes in front of conversations without a system message.
    :param request_params: Further body fields, such as ``temperature``, by the names the service documents.
        What it does not allow is refused before anything is sent, unless the connection's
        ``allow_undocumented_params`` is set.
    :param metadata: Travels with each request, beside the dag, run, task, map index and input index, which
        the connection's ``airflow_metadata`` switches off.
    :param resend_for: Seconds for which a request is sent again while the service surely does not accept it:
        no connection, 429, or 503 with ``Retry-After``.
    :returns: The job id; for ``requests`` the list of them in input order.
    """

    template_fields: Sequence[str] = (
        "conn_id",
        "model",
        "prompt",
        "messages",
        "requests",
        "system_prompt",
        "request_params",
        "metadata",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "prompt": "md",
        "system_prompt": "md",
        "messages": "json",
        "requests": "json",
        "request_params": "json",
        "metadata": "json",
    }
    operator_extra_links = (DashboardLink(),)
    ui_color = "#e8f0fe"
    #: Epoch seconds after which nothing is sent again, however long ``resend_for`` is.
    _resend_until = inf

    def __init__(
        self,
        *,
        conn_id: str = "distribute_default",
        model: str | None = None,
        prompt: str | XComArg | None = None,
        messages: Sequence[Mapping[str, Any]] | XComArg | None = None,
        requests: Sequence[Any] | XComArg | None = None,
        system_prompt: str | None = None,
        request_params: Mapping[str, Any] | XComArg | None = None,
        metadata: Mapping[str, Any] | None = None,
        resend_for: float | timedelta = RESEND_WINDOW,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.resend_for = seconds("resend_for", resend_for)
        self.conn_id = conn_id
        self.model = model
        self.prompt = prompt
        self.messages = messages
        self.requests = requests
        self.system_prompt = system_prompt
        self.request_params = request_params
        self.metadata = metadata

    def execute(self, context: Context) -> Any:
        """Submit, and return the job ids."""
        with airflow_errors():
            hook = hook_with_link(self.conn_id, context)
            requests = self._requests(hook, context)
            record = self._record(context, hook, requests)
            job_ids = self._submit(hook, requests, record)
        return self._deliver(context, record, job_ids if self._several else job_ids[0])

    def _deliver(self, context: Context, record: SubmissionRecord, result: Any) -> Any:
        """
        Store the result, then drop the record.

        Airflow stores what a task returns only afterwards: if that failed, nothing would be left for the
        retry to go on with.
        """
        if record.kept and self.do_xcom_push:
            outputs = result if self.multiple_outputs else {}
            for key, value in {**outputs, XCom.XCOM_RETURN_KEY: result}.items():
                context["ti"].xcom_push(key=key, value=value)
        record.clear()
        return result

    @property
    def _several(self) -> bool:
        return self.requests is not None

    def _record(
        self, context: Context, hook: ServiceHook, requests: Sequence[ChatRequest]
    ) -> SubmissionRecord:
        record = SubmissionRecord(context.get("task_state_store"), size=len(requests))
        record.match(requests, hook.settings)
        if not record.kept:
            self.log.info("This Airflow keeps no task state (3.3 does): a retry submits, and pays, again.")
        if others := record.others():
            self.log.warning(
                "The requests, the connection or its host have changed since an earlier attempt. Its jobs go "
                "on and are billed: %s.",
                ", ".join(others),
            )
        return record

    def _requests(self, hook: ServiceHook, context: Context) -> list[ChatRequest]:
        """Read and check every request, so that nothing is paid for an input that is wrong further down."""
        items = self._items()
        if not self._several:
            names = ["The request"]
        else:
            names = [f"Request {place} of {len(items)}" for place in range(1, len(items) + 1)]
        labels = labels_of(context["ti"]) if hook.settings.airflow_metadata else {}
        requests, problems = [], []
        for index, (item, name) in enumerate(zip(items, names, strict=True)):
            try:
                request = ChatRequest.parse(
                    item,
                    model=self.model or hook.settings.model,
                    system_prompt=self.system_prompt,
                    params=rendered(self.request_params),
                    metadata=rendered(self.metadata),
                )
                request = request.labelled({**labels, "airflow_index": index} if labels else {})
                hook.client.service.describe_submit(request, hook.settings)
                requests.append(request)
            except InvalidRequest as error:
                problems += [f"{name}: {problem}" if self._several else problem for problem in error.problems]
        if problems:
            all_of_it = f"Nothing was paid, and the list of {len(items)} requests"
            raise InvalidRequest(problems[:_SHOWN], where=all_of_it if self._several else "The request")
        return requests

    def _items(self) -> Sequence[Any]:
        given = {
            "prompt": self.prompt,
            "messages": rendered(self.messages),
            "requests": rendered(self.requests),
        }
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise InvalidRequest(
                [f"exactly one of prompt, messages and requests is needed, not {named or 'none'}"]
            )
        if self.multiple_outputs and not self._returns_mapping:
            raise InvalidRequest(["multiple_outputs takes a mapping apart, and this task returns none"])
        if not self._several:
            return [{name: given[name] for name in named}]
        requests = given["requests"]
        if isinstance(requests, str | Mapping) or not isinstance(requests, Sequence):
            raise InvalidRequest([f"requests must be a list, not {type(requests).__name__}"])
        if len(requests) > MAX_REQUESTS:
            raise InvalidRequest(
                [
                    f"{len(requests)} requests are more than the {MAX_REQUESTS} one task submits",
                    "use AsyncChatBulkOperator, or expand the task over smaller lists",
                ]
            )
        return list(requests)

    @property
    def _returns_mapping(self) -> bool:
        return False

    def _submit(
        self, hook: ServiceHook, requests: Sequence[ChatRequest], record: SubmissionRecord
    ) -> list[str]:
        accepted: dict[int, str] = {}
        self._left_running = accepted.values()
        try:
            for index, request in enumerate(requests):
                accepted[index] = self._job_of(request, index, hook, record, len(requests))
        except Exception as error:
            if len(requests) == 1 and not accepted:
                raise
            failure = SubmissionIncomplete(
                error,
                index=len(accepted),
                total=len(requests),
                accepted=accepted,
                follows=_after_a_failure(error, record),
            )
            self.log.error("%s", failure)
            raise failure from error
        record.write_last()
        return list(accepted.values())

    def _job_of(
        self, request: ChatRequest, index: int, hook: ServiceHook, record: SubmissionRecord, total: int
    ) -> str:
        if job_id := record.job_id(index):
            self.log.info("Re-attached to job %s, which an earlier attempt submitted.", job_id)
            return job_id
        doubtful = record.in_doubt(index)
        if doubtful:
            self.log.warning(
                "An earlier attempt was sending request %d of %d when it ended. Whether the service accepted "
                "it is unknown: it is sent again, and may be paid twice.",
                index + 1,
                total,
            )
        record.write_sending(index)
        deadline = min(time.time() + self.resend_for, self._resend_until)
        try:
            job_id = hook.client.submit(request, deadline=deadline, before_sending=self._refuse_if_killed)
        except InferenceError as error:
            # What becomes of this sending says nothing of the earlier one.
            if not doubtful and not isinstance(error, OutcomeUnknown):
                record.write_refused(index)
            raise
        record.note_accepted(index, job_id)
        self.log.info("Submitted request %d of %d: job %s.", index + 1, total, job_id)
        return job_id

    def _refuse_if_killed(self) -> None:
        if self._killed:
            raise WorkerStopped("The worker was told to stop, so nothing more was sent")


def _after_a_failure(error: Exception, record: SubmissionRecord) -> str:
    if not record.kept:
        return "A retry submits all of them again."
    if isinstance(error, InferenceError):
        return "A retry submits only the rest."
    return "A retry submits what the task state store has not kept."


class AsyncChatOperator(WaitsForJobs, SubmitAsyncChatOperator):
    """
    Submits chat requests, waits on the triggerer, and returns the results: submit and sensor in one task.

    Takes what :class:`SubmitAsyncChatOperator` takes and returns what
    :class:`~airflow_provider_distribute.sensors.chat.AsyncChatSensor` returns.

    On Airflow 3.3 and later a retry, also after a crash of the worker, re-attaches to the jobs it already
    submitted and asks again only those that failed. A job that the service did not know or show any more is
    looked at before anything is submitted; one that is unknown then as well is asked again by the next clear.
    Once the results are handed over, that memory is gone: clearing a finished task pays again. Before 3.3
    every retry submits again.

    :param deferrable: Wait on the triggerer; else the worker waits.
    :param poke_interval: Seconds between looks of a fixed schedule; jobs are found as soon on average.
    :param timeout: Seconds that the jobs have to end once all are submitted, and after which no request is
        sent again that the service does not accept. ``execution_timeout`` does not run while deferred.
    :param fail_on_error: Fail when a job failed; else its result says so.
    :returns: One result, or for ``requests`` a list of them in input order.
    """

    def __init__(
        self,
        *,
        deferrable: bool = True,
        poke_interval: float | timedelta = DEFAULT_POKE_INTERVAL,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        fail_on_error: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self.poke_interval = seconds("poke_interval", poke_interval)
        self.timeout = seconds("timeout", timeout)
        self.fail_on_error = fail_on_error

    def execute(self, context: Context) -> Any:
        """Submit, then wait or defer."""
        self._resend_until = time.time() + self.timeout
        with airflow_errors():
            hook = hook_with_link(self.conn_id, context)
            requests = self._requests(hook, context)
            if not requests:
                return []
            record = self._record(context, hook, requests)
            self._look_again(hook, record, len(requests), context)
            job_ids = self._submit(hook, requests, record)
        context["ti"].xcom_push(key=_JOB_IDS, value=job_ids)
        if self.deferrable:
            self._defer_until_ended(job_ids, time.time() + self.timeout)
        return self._hand_over(context, self._wait_here(hook, job_ids, self.timeout, context))

    def _look_again(self, hook: ServiceHook, record: SubmissionRecord, total: int, context: Context) -> None:
        """
        Look at the jobs that an earlier attempt could not find or see, before anything is paid.

        What has ended well or goes on is taken, what has failed is asked again.

        :raises AirflowFailException: some are unknown still. The next attempt asks them again.
        :raises AirflowException: the service did not answer.
        """
        job_ids = record.unclear()
        if not job_ids:
            return
        with self._waiting_for(job_ids, context):
            looked = self._look_once(hook, job_ids, LAST_LOOK)
        service, words = hook.client.service, looked.pending
        unknown = NOT_FOUND if service.not_found_grace(hook.settings) < inf else None
        jobs = [*looked.ended.values(), *(service.lost(it) for it in words if words[it] is unknown)]
        unclear = [job for job in jobs if job.unclear]
        unseen = [job_id for job_id in job_ids if words.get(job_id) is NOT_SEEN]
        record.write_forgotten(job.job_id for job in jobs if not (job.succeeded or job.unclear))
        record.write_found({*job_ids} - {*unseen} - {job.job_id for job in unclear})
        if unseen:
            raise AirflowException(
                f"What became of {', '.join(unseen)} is unclear, and the service did not answer, so nothing "
                "was submitted. A retry or a clear looks at these jobs again first."
            )
        if unclear:
            record.write_forgotten(job.job_id for job in unclear)
            raise AirflowFailException(
                f"{JobsFailed(unclear, total=total)}. This was the second look at them, and nothing was "
                "submitted. Clearing the task submits, and pays, these again and whatever has failed."
            )

    def _hand_over(self, context: Context, jobs: Sequence[Job]) -> Any:
        """Return the results and drop the record."""
        results = super()._hand_over(context, jobs)
        record = SubmissionRecord(context.get("task_state_store"), size=len(jobs))
        return self._deliver(context, record, results if self._several else results[0])

    @property
    def _returns_mapping(self) -> bool:
        return not self._several

    def _job_ids_to_wait_for(self, context: Context) -> Sequence[str]:
        """Return the jobs this attempt submitted."""
        ti = context["ti"]
        job_ids: list[str] = ti.xcom_pull(task_ids=ti.task_id, key=_JOB_IDS, map_indexes=ti.map_index)
        return job_ids

    def _error_at_deadline(self, error: DeadlinePassed, context: Context) -> AirflowException:
        """Return an exception that Airflow retries."""
        return AirflowException(
            f"{error} A retry has a deadline of its own. {self._what_a_clear_pays(context)}"
        )

    def _error_for_failed_jobs(self, error: JobsFailed, context: Context) -> AirflowException:
        """
        Return an exception that Airflow retries if the retry asks something again, or looks again.

        What became of a job that is lost or not shown is unclear, and it may have been paid: only a person
        decides to ask that again, by clearing the task.
        """
        record = SubmissionRecord(context.get("task_state_store"), size=error.total)
        unclear = [job.job_id for job in error.jobs if job.unclear]
        failed = [job.job_id for job in error.jobs if not job.unclear]
        if not record.kept and failed:
            return AirflowException(f"{error}. {_PAYS_ALL}.")
        if not record.kept:
            return AirflowFailException(f"{error}. What became of them is unclear, so no retry. {_PAYS_ALL}.")
        record.write_forgotten(failed)
        record.write_unclear(unclear)
        if unclear:
            return AirflowException(
                f"{error}. What became of {', '.join(unclear)} is unclear. A retry or a clear looks at that "
                "once more, and submits nothing as long as it is unknown."
            )
        return AirflowException(f"{error}. A retry submits, and pays, the failed ones again and no others.")

    def _what_a_clear_pays(self, context: Context) -> str:
        """Return what a retry pays as well: only the task state store makes a difference."""
        if context.get("task_state_store") is not None:
            return "A retry or a clear waits for the same jobs, and pays nothing again."
        return f"{_PAYS_ALL}. An AsyncChatSensor waits for these jobs and pays nothing."


_PAYS_ALL = (
    "A retry or a clear submits, and pays, everything again: this Airflow keeps no task state (3.3 does)"
)
