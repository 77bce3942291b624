# SPDX-License-Identifier: Apache-2.0

"""Operators that submit chat requests, and optionally wait for them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowException, BaseOperator

from airflow_provider_distribute.exceptions import (
    DeadlinePassed,
    InferenceError,
    InvalidRequest,
    JobsFailed,
    OutcomeUnknown,
    SubmissionIncomplete,
)
from airflow_provider_distribute.hooks.base import DEFAULT_POKE_INTERVAL, DEFAULT_TIMEOUT
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.models import ChatRequest
from airflow_provider_distribute.operators.mixins import WaitsForJobs, airflow_errors, labels_of, seconds
from airflow_provider_distribute.operators.record import SubmissionRecord

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Job

__all__ = ["AsyncChatOperator", "SubmitAsyncChatOperator"]

#: One task submits at most this many requests.
MAX_REQUESTS = 1000


class SubmitAsyncChatOperator(WaitsForJobs, BaseOperator):
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

    def __init__(
        self,
        *,
        conn_id: str = "distribute_default",
        model: str | None = None,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        requests: Sequence[Any] | None = None,
        system_prompt: str | None = None,
        request_params: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.model = model
        self.prompt = prompt
        self.messages = messages
        self.requests = requests
        self.system_prompt = system_prompt
        self.request_params = request_params
        self.metadata = metadata

    def execute(self, context: Context) -> str | list[str]:
        """Submit, and return the job ids."""
        with airflow_errors():
            hook = self.hook_with_link(context)
            requests = self._requests(hook, context)
            record = self._record(context, requests)
            job_ids = self._submit(hook, requests, record)
        record.clear()
        return job_ids if self._several else job_ids[0]

    def on_kill(self) -> None:
        """Say what goes on: neither service can cancel."""
        if self._accepted:
            self.log.warning(
                "The task was killed. Its jobs cannot be cancelled: they go on and are billed: %s.",
                ", ".join(self._accepted.values()),
            )

    @cached_property
    def _accepted(self) -> dict[int, str]:
        """The jobs that this process submitted, or took over, by input index."""
        return {}

    @property
    def _several(self) -> bool:
        return self.requests is not None

    def _record(self, context: Context, requests: Sequence[ChatRequest]) -> SubmissionRecord:
        record = SubmissionRecord(context.get("task_state_store"))
        if not record.kept:
            self.log.info("This Airflow keeps no task state (3.3 does): a retry submits, and pays, again.")
        if others := record.others(requests):
            self.log.warning(
                "The requests have changed since an earlier attempt. Its jobs go on and are billed: %s.",
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
                    params=self.request_params,
                    metadata=self.metadata,
                )
                request = request.labelled({**labels, "airflow_index": index} if labels else {})
                hook.client.service.describe_submit(request, hook.settings)
                requests.append(request)
            except InvalidRequest as error:
                problems += [f"{name}: {problem}" if self._several else problem for problem in error.problems]
        if problems:
            raise InvalidRequest(
                problems[:_SHOWN], where="Nothing was paid, and the task" if self._several else "The request"
            )
        return requests

    def _items(self) -> Sequence[Any]:
        given = {"prompt": self.prompt, "messages": self.messages, "requests": self.requests}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise InvalidRequest(
                [f"exactly one of prompt, messages and requests is needed, not {named or 'none'}"]
            )
        if self.requests is None:
            return [{name: value for name, value in given.items() if value is not None}]
        if isinstance(self.requests, str | Mapping) or not isinstance(self.requests, Sequence):
            raise InvalidRequest([f"requests must be a list, not {type(self.requests).__name__}"])
        if len(self.requests) > MAX_REQUESTS:
            raise InvalidRequest(
                [
                    f"{len(self.requests)} requests are more than the {MAX_REQUESTS} one task submits",
                    "use AsyncChatBulkOperator, or expand the task over smaller lists",
                ]
            )
        return self.requests

    def _submit(
        self, hook: ServiceHook, requests: Sequence[ChatRequest], record: SubmissionRecord
    ) -> list[str]:
        for index, request in enumerate(requests):
            job_id = record.job_id(index, request)
            if job_id is None:
                job_id = self._submit_one(hook, request, index, record, len(requests))
            else:
                self.log.info("Re-attached to job %s, which an earlier attempt submitted.", job_id)
            self._accepted[index] = job_id
        record.write()
        return list(self._accepted.values())

    def _submit_one(
        self,
        hook: ServiceHook,
        request: ChatRequest,
        index: int,
        record: SubmissionRecord,
        total: int,
    ) -> str:
        if record.in_doubt(index, request):
            self.log.warning(
                "An earlier attempt was sending request %d of %d when it ended. Whether the service accepted "
                "it is unknown: it is sent again, and may be paid twice.",
                index + 1,
                total,
            )
        record.sending(index, request)
        try:
            job_id = hook.client.submit(request)
        except InferenceError as error:
            if not isinstance(error, OutcomeUnknown):
                record.forget([index])
            if total == 1:
                raise
            follows = (
                "A retry submits only the rest." if record.kept else "A retry submits all of them again."
            )
            failure = SubmissionIncomplete(
                error, index=index, total=total, accepted=self._accepted, follows=follows
            )
            self.log.error("%s", failure)
            raise failure from error
        record.accepted(index, request, job_id)
        self.log.info("Submitted request %d of %d: job %s.", index + 1, total, job_id)
        return job_id


#: Problems that one message lists.
_SHOWN = 100


class AsyncChatOperator(SubmitAsyncChatOperator):
    """
    Submits chat requests, waits on the triggerer, and returns the results: submit and sensor in one task.

    Takes what :class:`SubmitAsyncChatOperator` takes and returns what
    :class:`~airflow_provider_distribute.sensors.chat.AsyncChatSensor` returns.

    On Airflow 3.3 and later a retry, also after a crash of the worker, re-attaches to the jobs it already
    submitted and asks again only those that failed. Once the results are handed over, that memory is gone:
    clearing a finished task pays again. Before 3.3 every retry submits again.

    :param deferrable: Wait on the triggerer; else the worker waits.
    :param poke_interval: Seconds of the fixed schedule that waiting is at least as quick as.
    :param timeout: Seconds the jobs have from submission on; ``execution_timeout`` does not run while
        deferred.
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
        self.poke_interval = seconds(poke_interval)
        self.timeout = seconds(timeout)
        self.fail_on_error = fail_on_error

    def execute(self, context: Context) -> Any:
        """Submit, then wait or defer."""
        deadline = time.time() + self.timeout
        with airflow_errors():
            hook = self.hook_with_link(context)
            requests = self._requests(hook, context)
            if not requests:
                return []
            job_ids = self._submit(hook, requests, self._record(context, requests))
        context["ti"].xcom_push(key=_JOB_IDS, value=job_ids)
        if self.deferrable:
            self.defer_until_ended(job_ids, deadline)
        with airflow_errors():
            try:
                jobs = hook.wait(job_ids, timeout=self.timeout, poke_interval=self.poke_interval)
            except DeadlinePassed as error:
                raise self.deadline_passed(error) from error
        return self.hand_over(context, jobs)

    def hand_over(self, context: Context, jobs: Sequence[Job]) -> Any:
        """Return the results and drop the record, or keep of it what need not be asked again."""
        record = SubmissionRecord(context.get("task_state_store"))
        record.forget([index for index, job in enumerate(jobs) if not job.succeeded])
        results = super().hand_over(context, jobs)
        record.clear()
        return results if self._several else results[0]

    def job_ids_to_wait_for(self, context: Context) -> Sequence[str]:
        """Return the jobs this attempt submitted."""
        ti = context["ti"]
        job_ids: list[str] = ti.xcom_pull(task_ids=ti.task_id, key=_JOB_IDS, map_indexes=ti.map_index)
        return job_ids

    def deadline_passed(self, error: DeadlinePassed) -> AirflowException:
        """Return an exception that Airflow retries: the retry re-attaches."""
        return AirflowException(f"{error} A retry waits for the same jobs (Airflow 3.3 and later).")

    def jobs_failed(self, error: JobsFailed) -> AirflowException:
        """Return an exception that Airflow retries: the retry asks the failed ones again."""
        return AirflowException(f"{error}. A retry asks only the failed ones again (Airflow 3.3 and later).")


_JOB_IDS = "job_ids"
