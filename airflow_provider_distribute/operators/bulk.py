# SPDX-License-Identifier: Apache-2.0

"""The operator that takes a file of prompts and leaves a file of results."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    BaseOperator,
    ObjectStoragePath,
    Stats,
    conf,
)
from opentelemetry import trace
from pydantic import ValidationError

from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.costs import Budget, Costs
from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.inputs import Defaults, Shard, source_of
from airflow_provider_distribute.bulk.landing import land
from airflow_provider_distribute.bulk.manifest import dry_run_manifest, manifest_of, write_manifest
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.bulk.run import Plan, Run, stage
from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.exceptions import (
    AccessDenied,
    BudgetSpent,
    InferenceError,
    InvalidRequest,
    LedgerUnavailable,
    RunIncomplete,
    WorkerStopped,
)
from airflow_provider_distribute.hooks import hook_for
from airflow_provider_distribute.hooks.base import DEFAULT_POKE_INTERVAL, DEFAULT_TIMEOUT
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.ledger.requests import RequestWriter
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.models import problems_in
from airflow_provider_distribute.operators.lineage import lineage_of
from airflow_provider_distribute.operators.mixins import NET, airflow_errors, labels_of, seconds
from airflow_provider_distribute.triggers.bulk import AsyncChatBulkTrigger, BulkOutcome
from airflow_provider_distribute.waiting.pool import shared_pool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_distribute.bulk.inputs import Source
    from airflow_provider_distribute.bulk.landing import Landing
    from airflow_provider_distribute.bulk.submission import Submitted
    from airflow_provider_distribute.hooks.base import ServiceHook
    from airflow_provider_distribute.models import Settings

__all__ = ["AsyncChatBulkOperator"]

_tracer = trace.get_tracer(__name__)


class AsyncChatBulkOperator(BaseOperator):
    """
    Sends any number of chat requests, waits on the triggerer, and leaves one result row for each input.

    Everything the run does is recorded below ``result_path`` before and after it is paid for, in a directory
    of its own for each task instance. A retry or a clear pays only for the rows that are missing or bad; what
    is running is waited for.

    :param conn_id: Connection of type ``distribute`` or ``inference_net``.
    :param requests: A list (each a prompt, a message list, or a mapping with ``prompt`` or ``messages`` and
        optionally ``custom_id``, ``model``, ``system_prompt``, ``params`` and ``metadata``), or the URI of a
        file: JSON Lines with one of these or an OpenAI batch input line in each, CSV, or Parquet.
    :param result_path: Directory URI, on any storage that ``ObjectStoragePath`` knows. Default:
        ``result_path`` in section ``[distribute]`` of Airflow's configuration. It must render the same on
        every attempt.
    :param model: Model; default the connection's.
    :param system_prompt: Goes in front of conversations without a system message.
    :param request_params: Further body fields by the names the service documents, such as ``temperature``.
    :param prompt: For CSV and Parquet: filled from the columns, such as ``"Summarise: {text}"``.
    :param output_type: ``str``, a pydantic model, any type that ``pydantic.TypeAdapter`` takes, or a JSON
        schema. Answers that do not fit end ``invalid``.
    :param repair_attempts: How often a row that is invalid is asked again with the reason, within an attempt.
    :param failure_tolerance: The share of rows that may end other than ``succeeded``. Above it the task fails
        after everything was landed, so that Airflow's ``retries`` ask only those rows again.
    :param deadline: Seconds from the start of an attempt; default the service's 72 hours and a margin.
        ``execution_timeout`` does not run while deferred.
    :param on_deadline: ``fail``: fail when jobs are still pending then; ``land``: count their rows like other
        bad ones. Either way, what has come back is landed.
    :param on_unknown: What to do with requests that were sent and not answered, or in flight when a worker
        died: ``resubmit`` pays for some of them twice; ``leave`` ends their rows ``unknown``; ``fail`` fails
        the task as well, after landing, until somebody decides.
    :param on_input_change: What to do when a retry finds another input: ``fail``, or ``restart``.
    :param max_cost: US dollars. Sending stops before the estimate passes it; what was paid is landed; then
        the task fails.
    :param dedupe: Send identical requests once, and give all of them the same answer.
    :param dry_run: Check and count everything and estimate tokens and cost; send and write nothing.
    :param results_format: ``jsonl``, ``parquet`` (needs the extra ``parquet``) or ``openai_batch``.
    :param split: Into how many parts the input is split; see :meth:`sharded`.
    :param shard: Which part this task takes, from 0.
    :param window: How many requests may be in flight without a record; also how many can be unknown after a
        crash.
    :param poke_interval: Seconds of the fixed schedule that waiting is at least as quick as.
    :param deferrable: Wait on the triggerer; else the worker waits.
    :returns: The manifest: URIs, counts by status, tokens, cost, what may have been paid twice, times. Each
        of its fields is an XCom of its own, too: ``operator.output["results"]``.
    """

    template_fields: Sequence[str] = (
        "conn_id",
        "requests",
        "result_path",
        "model",
        "system_prompt",
        "request_params",
        "prompt",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "requests": "json",
        "system_prompt": "md",
        "request_params": "json",
        "prompt": "md",
    }
    operator_extra_links = (DashboardLink(),)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        conn_id: str = "distribute_default",
        requests: Any,
        result_path: str | None = None,
        model: str | None = None,
        system_prompt: str | None = None,
        request_params: Mapping[str, Any] | None = None,
        prompt: str | None = None,
        output_type: Any = str,
        repair_attempts: int = 0,
        failure_tolerance: float = 0.0,
        deadline: float | timedelta = DEFAULT_TIMEOUT,
        on_deadline: Literal["fail", "land"] = "fail",
        on_unknown: Literal["resubmit", "fail", "leave"] = "resubmit",
        on_input_change: Literal["fail", "restart"] = "fail",
        max_cost: float | None = None,
        dedupe: bool = False,
        dry_run: bool = False,
        results_format: Literal["jsonl", "parquet", "openai_batch"] = "jsonl",
        split: int = 1,
        shard: int = 0,
        window: int = 64,
        poke_interval: float | timedelta = DEFAULT_POKE_INTERVAL,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        # Downstream tasks may name a field, as in ``operator.output["results"]``. What Airflow infers for a
        # decorated function is about its requests, not about the manifest.
        super().__init__(**{**kwargs, "multiple_outputs": True})
        self.conn_id = conn_id
        self.requests = requests
        self.result_path = result_path
        self.model = model
        self.system_prompt = system_prompt
        self.request_params = request_params
        self.prompt = prompt
        self.output_type = output_type
        self.repair_attempts = repair_attempts
        self.failure_tolerance = failure_tolerance
        self.deadline = seconds(deadline)
        self.on_deadline = on_deadline
        self.on_unknown = on_unknown
        self.on_input_change = on_input_change
        self.max_cost = max_cost
        self.dedupe = dedupe
        self.estimate_only = dry_run
        self.results_format = results_format
        self.split = split
        self.shard = shard
        self.window = window
        self.poke_interval = seconds(poke_interval)
        self.deferrable = deferrable
        self._manifest: dict[str, Any] = {}
        self._sending: tuple[asyncio.AbstractEventLoop, Submission] | None = None

    @classmethod
    def sharded(cls, *, split: int, task_id: str, **kwargs: Any) -> Any:
        """
        Split one input over ``split`` mapped tasks: each takes every ``split``-th request.

        :returns: The mapped operator. Its output is a list of manifests.
        """
        return cls.partial(task_id=task_id, split=split, **kwargs).expand(shard=list(range(split)))

    # Attempt --------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Check, send what is missing, and wait or defer."""
        deadline = time.time() + self.deadline
        with airflow_errors():
            hook = hook_for(self.conn_id)
            DashboardLink.remember(context, hook.settings.dashboard_url)
            plan = self._plan(hook.settings, context)
            source = self._source()
            if self.estimate_only:
                return self._estimate(source, plan)
            with _tracer.start_as_current_span("bulk.check"):
                run = self._open(self._run_path(plan.owner), plan)
                staged = run.take_up(source, now=time.time())
            self._say_what_is_left(run, staged.cost)
            self._send(run, hook, run.budget(staged.costs), context, deadline)
            return self._wait(run, hook, context, deadline)

    def _plan(self, settings: Settings, context: Context) -> Plan:
        self._check_arguments()
        ti = context["ti"]
        return Plan(
            settings=settings,
            owner=Owner(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index),
            defaults=Defaults(self.model or settings.model, self.system_prompt, self.request_params),
            output_type=output_type_from(self.output_type),
            shard=Shard(self.shard, self.split),
            dedupe=self.dedupe,
            on_input_change=self.on_input_change,
            on_unknown=self.on_unknown,
            max_cost=self.max_cost,
            window=self.window,
        )

    def _check_arguments(self) -> None:
        choices = {
            "on_deadline": ("fail", "land"),
            "on_unknown": ("resubmit", "fail", "leave"),
            "on_input_change": ("fail", "restart"),
        }
        problems = [
            f"{name} is {getattr(self, name)!r}, not one of {', '.join(allowed)}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        bounds = {
            "failure_tolerance": (self.failure_tolerance, 0 <= self.failure_tolerance <= 1, "from 0 to 1"),
            "repair_attempts": (self.repair_attempts, self.repair_attempts >= 0, "0 or more"),
            "deadline": (self.deadline, self.deadline > 0, "more than 0 seconds"),
            "poke_interval": (self.poke_interval, self.poke_interval > 0, "more than 0 seconds"),
            "window": (self.window, self.window >= 1, "1 or more"),
            "max_cost": (self.max_cost, self.max_cost is None or self.max_cost > 0, "more than 0 dollars"),
            "split": (self.split, self.split >= 1, "1 or more"),
            "shard": (self.shard, 0 <= self.shard < max(self.split, 1), "from 0 to split - 1"),
        }
        problems += [
            f"{name} is {value}, not {rule}" for name, (value, good, rule) in bounds.items() if not good
        ]
        if problems:
            raise InvalidRequest(problems, where="The run")
        format_from(self.results_format)

    def _source(self) -> Source:
        return source_of(self.requests, prompt=self.prompt, open_path=ObjectStoragePath)

    def _run_path(self, owner: Owner) -> str:
        root = self.result_path or conf.get("distribute", "result_path", fallback=None)
        if not root:
            raise InvalidRequest(
                ["result_path is missing: give one, or set [distribute] result_path in the configuration"],
                where="The run",
            )
        if "://" not in str(root) and not os.path.isabs(str(root)):
            raise InvalidRequest(
                [f"result_path {str(root)!r} is relative, and means another directory in each process"],
                where="The run",
            )
        return f"{str(root).rstrip('/')}/{owner.directory}"

    def _open(self, uri: str, plan: Plan) -> Run:
        return Run(Directory.at(uri, ObjectStoragePath), plan)

    def _estimate(self, source: Source, plan: Plan) -> dict[str, Any]:
        manifest = dry_run_manifest(stage(source, plan), Costs(plan.settings))
        self.log.info("Dry run, nothing was sent: %s", manifest)
        return manifest

    def _say_what_is_left(self, run: Run, cost: float | None) -> None:
        state = run.state
        self.log.info(
            "Run %s, attempt %d: %d rows, %d to send, %d accepted before. Estimate for all rows: %s.",
            run.directory.uri,
            state.opened.attempt if state.opened else 0,
            state.count,
            len(state.open),
            len(state.tickets),
            "no price known" if cost is None else f"${cost:.4f} at most",
        )
        if state.doubt:
            self.log.warning(
                "%d requests were sent by an earlier attempt and not recorded; whether they run and are "
                "billed is unknown. on_unknown=%r.",
                len(state.doubt),
                self.on_unknown,
            )

    # Sending --------------------------------------------------------------------------------------

    def _send(
        self,
        run: Run,
        hook: ServiceHook,
        budget: Budget,
        context: Context,
        deadline: float,
        folder: str | None = None,
    ) -> None:
        if not run.state.open:
            return
        with _tracer.start_as_current_span("bulk.send", attributes={"rows": len(run.state.open)}):
            submitted = asyncio.run(self._submit(run, hook, budget, context, deadline, folder))
        tags = {"service": run.plan.settings.service}
        for name in ("accepted", "refused", "unknown", "throttled"):
            if count := getattr(submitted, name):
                Stats.incr(f"distribute.bulk.{name}", count, tags=tags)
        run.state = run.journal.read()
        self._say_how_it_went(run, submitted)

    async def _submit(
        self,
        run: Run,
        hook: ServiceHook,
        budget: Budget,
        context: Context,
        deadline: float,
        folder: str | None,
    ) -> Submitted:
        async with await AsyncClient.open(run.plan.settings, limit=hook.limit) as client:
            submission = Submission.of(
                run,
                client,
                budget,
                deadline=deadline,
                labels=labels_of(run.plan.owner) if run.plan.settings.airflow_metadata else None,
                folder=folder,
                logger=self.log,
            )
            self._sending = asyncio.get_running_loop(), submission
            try:
                return await submission.run()
            finally:
                self._sending = None

    def _say_how_it_went(self, run: Run, submitted: Submitted) -> None:
        self.log.info(
            "%d requests accepted, %d refused, %d times no answer; %d rows not sent.",
            submitted.accepted,
            submitted.refused,
            submitted.unknown,
            len(run.state.open),
        )
        stopped = submitted.stopped
        if isinstance(stopped, InferenceError) and not isinstance(stopped, BudgetSpent):
            self.log.error(
                "Sending stopped. %d accepted jobs go on and are billed; %d rows are unknown. The next "
                "attempt waits for the jobs and sends only what is missing.",
                len(run.state.tickets),
                len(run.state.unknown),
            )
            raise stopped
        if stopped is not None:
            self.log.warning("%s", stopped)

    def on_kill(self) -> None:
        """Stop sending; say what goes on."""
        if self._sending:
            loop, submission = self._sending
            reason = WorkerStopped("The worker was told to stop while it was sending.")
            loop.call_soon_threadsafe(submission.stop, reason)

    # Waiting --------------------------------------------------------------------------------------

    def _wait(self, run: Run, hook: ServiceHook, context: Context, deadline: float) -> dict[str, Any]:
        if not self.deferrable:
            asyncio.run(self._wait_here(run, deadline))
            return self._land(run, hook, context, deadline)
        collection = Collection(run.directory, run.plan.settings)
        collection.read()
        if not collection.pending:
            return self._land(run, hook, context, deadline)
        return self._defer_until(run.directory.uri, deadline)

    async def _wait_here(self, run: Run, deadline: float) -> None:
        collection = Collection(run.directory, run.plan.settings, logger=self.log)
        await asyncio.to_thread(collection.read)
        await collection.run(
            shared_pool(run.plan.settings), deadline=deadline, poke_interval=self.poke_interval
        )

    def _defer_until(self, run_uri: str, deadline: float) -> NoReturn:
        self.defer(
            trigger=AsyncChatBulkTrigger(
                conn_id=self.conn_id, run_uri=run_uri, deadline=deadline, poke_interval=self.poke_interval
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(0.0, deadline - time.time()) + NET),
        )
        raise AssertionError("unreachable: defer raises")  # pragma: no cover

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Land what came back, repair what is invalid, and say how it ended."""
        outcome = _read_event(event)
        if outcome.verdict == "refused":
            raise AirflowFailException(outcome.message)
        if outcome.verdict == "unavailable":
            raise AirflowException(outcome.message)
        with airflow_errors():
            hook = hook_for(self.conn_id)
            run = self._reopen(outcome.run_uri, hook, context)
            if time.time() < outcome.deadline:
                return self._wait(run, hook, context, outcome.deadline)
            return self._land(run, hook, context, outcome.deadline)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; Airflow's own limit on the deferral, which drops our arguments, ends in landing."""
        if next_method == "__fail__" and (next_kwargs or {}).get("error") == "Trigger timeout":
            next_method, next_kwargs = "land_what_there_is", {}
        return super().resume_execution(next_method, next_kwargs, context)

    def land_what_there_is(self, context: Context) -> dict[str, Any]:
        """No triggerer kept the deadline, so none ran: each job is looked at once, and the run is landed."""
        deadline = time.time()
        with airflow_errors():
            hook = hook_for(self.conn_id)
            owner = self._plan(hook.settings, context).owner
            run = self._reopen(self._run_path(owner), hook, context)
            try:
                asyncio.run(self._wait_here(run, deadline))
            except AccessDenied as error:
                self.log.error("%s What had come back before is landed.", error)
            return self._land(run, hook, context, deadline)

    def _reopen(self, uri: str, hook: ServiceHook, context: Context) -> Run:
        run = self._open(uri, self._plan(hook.settings, context))
        if run.state.opened is None:
            raise LedgerUnavailable("find the run that was waited for in", uri)
        return run

    # Landing --------------------------------------------------------------------------------------

    def _land(self, run: Run, hook: ServiceHook, context: Context, deadline: float) -> dict[str, Any]:
        format_ = format_from(self.results_format)
        folder = f"repairs/{run.writer}"
        repairs_left = run.state.rounds <= self.repair_attempts and time.time() < deadline
        with _tracer.start_as_current_span("bulk.land", attributes={"rows": run.state.count}):
            repair = RequestWriter(run.directory, folder) if repairs_left else None
            landing = land(run, format_, repair=repair)
        if landing.repairs:
            self.log.info(
                "%d answers do not fit output_type; asking again with the reason.", len(landing.repairs)
            )
            run.ask_again(set(landing.repairs))
            budget = Budget(self.max_cost, landing.repairs, landing.cost or 0.0)
            self._send(run, hook, budget, context, deadline, folder)
            return self._wait(run, hook, context, deadline)
        self._manifest = manifest_of(run, landing, results=format_.file, now=time.time())
        write_manifest(run, self._manifest)
        run.settle(landing.again, landing.unknown_rows)
        self._count(run, landing)
        self._say_how_it_ended(landing)
        self._raise_if_incomplete(landing)
        return self._manifest

    def _count(self, run: Run, landing: Landing) -> None:
        service = run.plan.settings.service
        for status, count in landing.counts.items():
            if count:
                Stats.incr("distribute.bulk.landed", count, tags={"service": service, "status": status})
        Stats.incr("distribute.bulk.prompt_tokens", landing.tokens.prompt, tags={"service": service})
        Stats.incr("distribute.bulk.completion_tokens", landing.tokens.completion, tags={"service": service})
        Stats.gauge("distribute.bulk.cost", landing.cost or 0.0, tags={"service": service})

    def _say_how_it_ended(self, landing: Landing) -> None:
        counts = ", ".join(f"{count} {status}" for status, count in landing.counts.items() if count)
        self.log.info("Landed at %s: %s.", self._manifest["results"], counts)
        if landing.counts["expired"]:
            self.log.warning(
                "%d jobs were still pending; they cannot be cancelled, go on and are billed: %s%s",
                landing.counts["expired"],
                ", ".join(landing.going_on),
                " …" if landing.counts["expired"] > len(landing.going_on) else "",
            )
        if landing.counts["unknown"]:
            self.log.warning(
                "%d rows are unknown: their requests may have been accepted, and then they ran and were "
                "billed: %s",
                landing.counts["unknown"],
                ", ".join(landing.unknown),
            )

    def _raise_if_incomplete(self, landing: Landing) -> None:
        rows = sum(landing.counts.values())
        bad = rows - landing.counts["succeeded"]
        counts = ", ".join(
            f"{n} {status}" for status, n in landing.counts.items() if n and status != "succeeded"
        )
        told = f"{bad} of {rows} rows did not succeed ({counts}). Everything there is was landed at "
        told += f"{self._manifest['results']}."
        if self.max_cost is not None and landing.counts["not_submitted"]:
            raise BudgetSpent(
                f"Sending stopped at max_cost={self.max_cost}. {told} To go on, raise max_cost and clear the "
                "task: it sends only the missing rows."
            )
        if self.on_unknown == "fail" and landing.counts["unknown"]:
            raise AirflowFailException(
                f"{told} {landing.counts['unknown']} rows are unknown. Decide: on_unknown='resubmit' sends "
                "them again and may pay twice, 'leave' accepts the gap; then clear the task."
            )
        if self.on_deadline == "fail" and landing.counts["expired"]:
            raise RunIncomplete(f"The deadline passed. {told} A retry asks the missing rows again.")
        if bad > self.failure_tolerance * rows:
            raise RunIncomplete(
                f"{told} failure_tolerance={self.failure_tolerance} allows less. A retry asks only those "
                "rows again."
            )

    # Lineage --------------------------------------------------------------------------------------

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return the input and the results as datasets, with counts and tokens."""
        return lineage_of(self.requests, self._manifest)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return the same: a run that fails has landed what there is."""
        return lineage_of(self.requests, self._manifest)


def _read_event(event: Any) -> BulkOutcome:
    try:
        return BulkOutcome.model_validate(event)
    except ValidationError as error:
        raise AirflowException(
            f"The trigger's event cannot be read: {'; '.join(problems_in(error))}. The jobs are not touched "
            "by that. Worker and triggerer may run different releases of this provider: restart the older "
            "one, and retry."
        ) from None
