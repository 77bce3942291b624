# SPDX-License-Identifier: Apache-2.0

"""The operator that takes a file of prompts and leaves a file of results."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    BaseOperator,
    ObjectStoragePath,
    conf,
)
from opentelemetry import trace

from airflow_provider_distribute.bulk.attempt import Attempt
from airflow_provider_distribute.bulk.collection import show_sending
from airflow_provider_distribute.bulk.costs import Costs
from airflow_provider_distribute.bulk.formats import FormatName, format_from
from airflow_provider_distribute.bulk.inputs import Defaults, source_of, uri_of
from airflow_provider_distribute.bulk.leaving import leave_behind
from airflow_provider_distribute.bulk.manifest import dry_run_manifest
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.bulk.policy import WINDOW, OnDeadline, OnInputChange, OnUnknown, Policy
from airflow_provider_distribute.bulk.run import Plan, Run, stage
from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.exceptions import (
    ConnectionInvalid,
    InferenceError,
    InvalidRequest,
    LedgerMissing,
    LedgerTaken,
    WorkerStopped,
)
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.links import DashboardLink
from airflow_provider_distribute.models import DEFAULT_POKE_INTERVAL, DEFAULT_TIMEOUT
from airflow_provider_distribute.operators.bulk_reports import BulkReports
from airflow_provider_distribute.operators.connection import hook_again, hook_with_link
from airflow_provider_distribute.operators.deferral import (
    TRIGGER_FAILED,
    defer_to,
    read_event,
    timed_out,
    trigger_failed,
)
from airflow_provider_distribute.operators.errors import airflow_errors
from airflow_provider_distribute.operators.labels import labels_of
from airflow_provider_distribute.operators.lineage import lineage_of
from airflow_provider_distribute.operators.run_note import RunNote
from airflow_provider_distribute.triggers.bulk import AsyncChatBulkTrigger, BulkOutcome
from airflow_provider_distribute.triggers.metrics import metered_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_distribute.bulk.attempt import Ended
    from airflow_provider_distribute.bulk.collection import Collection
    from airflow_provider_distribute.bulk.costs import Budget
    from airflow_provider_distribute.bulk.inputs import Source
    from airflow_provider_distribute.bulk.submission import Submitted
    from airflow_provider_distribute.models import Settings

__all__ = ["AsyncChatBulkOperator"]

_tracer = trace.get_tracer(__name__)

#: The XCom with the run's directory; it is there while the task waits.
_RUN = "run"
#: The XCom with the URI of the input, if it is a file: a decorated function is not called again on resuming.
_INPUT = "input"
#: Verdicts of a trigger that does not wait any more, and how the task ends then.
_NOBODY_WAITS: Mapping[str, type[AirflowException]] = {
    "refused": AirflowFailException,
    "unavailable": AirflowException,
}
_BRING_IT_BACK = (
    "what was accepted goes on and is billed. Mount or restore that directory, or set result_path back, and "
    "clear the task: then it waits for those jobs. Or set on_input_change='restart' to leave them behind and "
    "pay anew"
)


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
    :param prompt: For CSV and Parquet: filled from the columns, such as ``"Summarise: {text}"``; ``{{`` and
        ``}}`` stand for braces. It is not a Jinja template.
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
        died, and with jobs that the service does not know or show any more: ``resubmit`` pays for some of
        them twice; ``leave`` ends their rows ``unknown``; ``fail`` fails the task as well, after landing,
        until somebody decides.
    :param on_input_change: What to do when a retry finds another input, or (Airflow 3.3) nothing where an
        earlier attempt has recorded the run: ``fail``, or ``restart``.
    :param max_cost: US dollars for the whole input; each of ``split`` tasks may spend an equal share of them.
        Sending stops before the estimate passes it, retries and repairs included; what was paid is landed;
        then the task fails.
    :param dedupe: Send identical requests once, and give all of them the same answer. Of an input that is
        split, each task does so with its own part.
    :param dry_run: Check and count everything and estimate tokens and cost; send and write nothing. No
        ``result_path`` is needed. The manifest then holds ``schema_version``, ``dry_run`` (``True``),
        ``rows``, ``requests``, ``tokens``, ``cost`` and ``cost_source``, and there are no ``results``.
    :param results_format: ``jsonl``, ``parquet`` (needs the extra ``parquet``) or ``openai_batch``.
    :param split: Into how many parts the input is split; see :meth:`sharded`.
    :param shard: Which part this task takes, from 0; needed when ``split`` makes several.
    :param window: How many requests may be in flight without a record; also how many can be unknown after a
        crash.
    :param poke_interval: Seconds between looks of a fixed schedule; jobs are found as soon on average.
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
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "requests": "json",
        "system_prompt": "md",
        "request_params": "json",
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
        on_deadline: OnDeadline = "fail",
        on_unknown: OnUnknown = "resubmit",
        on_input_change: OnInputChange = "fail",
        max_cost: float | None = None,
        dedupe: bool = False,
        dry_run: bool = False,
        results_format: FormatName = "jsonl",
        split: int = 1,
        shard: int | None = None,
        window: int = WINDOW,
        poke_interval: float | timedelta = DEFAULT_POKE_INTERVAL,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        # What Airflow infers for a decorated function is about its requests, not about the manifest.
        super().__init__(**{**kwargs, "multiple_outputs": False})
        self.conn_id = conn_id
        self.requests = requests
        self.result_path = result_path
        self.model = model
        self.system_prompt = system_prompt
        self.request_params = request_params
        self.prompt = prompt
        self.output_type = output_type
        self.policy = Policy.of(
            repair_attempts=repair_attempts,
            failure_tolerance=failure_tolerance,
            deadline=deadline,
            on_deadline=on_deadline,
            on_unknown=on_unknown,
            on_input_change=on_input_change,
            max_cost=max_cost,
            results_format=results_format,
            split=split,
            shard=shard,
            window=window,
            poke_interval=poke_interval,
        )
        self.dedupe = dedupe
        # Every operator of Airflow has a method of the name dry_run.
        self.estimate_only = dry_run
        self.deferrable = deferrable
        #: What was landed, for the lineage that Airflow asks for when the task has ended.
        self._landed: dict[str, Any] = {}
        self._input: str | None = None
        self._killed = False
        self._stop: Callable[[], object] | None = None

    @classmethod
    def sharded(cls, *, split: int, task_id: str, **kwargs: Any) -> Any:
        """
        Split one input over ``split`` mapped tasks: each takes every ``split``-th request.

        The rate that a connection allows is kept by each process for itself, so together they may send
        ``split`` times as fast: divide ``requests_per_second`` by it where the service minds. ``max_cost`` is
        for all of them together, and each may spend an equal share; ``dedupe`` looks at each part alone.

        :returns: The mapped operator. Its output is a list of manifests.
        :raises ValueError: naming every choice that is not allowed; mapped tasks are made only when they run.
        """
        Policy.of(
            split=split, shard=0, **{name: kwargs[name] for name in Policy.model_fields if name in kwargs}
        )
        return cls.partial(task_id=task_id, split=split, **kwargs).expand(shard=list(range(split)))

    # Attempt --------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Check, send what is missing, and wait or defer."""
        deadline = time.time() + self.policy.deadline
        with airflow_errors():
            settings = hook_with_link(self.conn_id, context).settings
            plan, source = self._plan(settings, context), self._source()
            if self.estimate_only:
                return self._deliver(context, self._estimate(source, plan))
            uri = self._run_uri(plan.owner)
            note = RunNote(context.get("task_state_store"))
            with _tracer.start_as_current_span("bulk.check"):
                run = self._open(uri, plan)
                self._refuse_to_forget(uri, run, note, context)
                staged = run.take_up(source, now=time.time())
            note.write(uri)
            context["ti"].xcom_push(key=_RUN, value=uri)
            self._input = uri_of(self.requests)
            if self._input is not None:
                context["ti"].xcom_push(key=_INPUT, value=self._input)
            BulkReports(self.log).begun(run, staged.cost)
            with self._nothing_left_unsaid(run):
                ended = self._attempt(run, deadline).begin(staged)
            return self._end(ended, context)

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Land what came back, repair what is invalid, and say how it ended."""
        outcome = read_event(event, BulkOutcome)
        if error := _NOBODY_WAITS.get(outcome.verdict):
            raise error(self._what_goes_on(outcome.message, context))
        with airflow_errors():
            run = self._reopen(outcome.run_uri, self._plan_again(context))
            return self._resume(run, outcome.deadline, context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; what Airflow itself says of the deferral drops our arguments, and has its place here."""
        ti = context["ti"]
        self._input = ti.xcom_pull(task_ids=ti.task_id, key=_INPUT, map_indexes=ti.map_index)
        if timed_out(next_method, next_kwargs):
            next_method, next_kwargs = "land_what_there_is", {}
        elif trigger_failed(next_method, next_kwargs, logger=self.log):
            event = {"verdict": "unavailable", "message": TRIGGER_FAILED}
            next_method, next_kwargs = "execute_complete", {"event": event}
        return super().resume_execution(next_method, next_kwargs, context)

    def land_what_there_is(self, context: Context) -> dict[str, Any]:
        """No triggerer kept the deadline, so none ran: it has passed, and the run is landed."""
        deadline = time.time()
        with airflow_errors():
            plan = self._plan_again(context)
            run = self._reopen(self._run_uri(plan.owner), plan)
            return self._resume(run, deadline, context)

    def _what_goes_on(self, why: str, context: Context) -> str:
        """Say that nobody waits any more, and what for."""
        told, follows = f"{why.rstrip('.')}.", ""
        with contextlib.suppress(InferenceError):
            uri = self._run_uri(Owner.of(context["ti"]))
            if leave_behind(Directory.at(uri, ObjectStoragePath), attempt=None, why=told, logger=self.log):
                follows = f"; an attempt that finds {uri!r} waits for it instead of paying again"
        return f"{told} What was accepted goes on and is billed{follows}."

    def _attempt(self, run: Run, deadline: float) -> Attempt:
        return Attempt(
            run,
            deadline=deadline,
            submit=lambda budget, folder: asyncio.run(self._submit(run, budget, deadline, folder)),
            wait=partial(self._wait, run, deadline),
            before_step=self._refuse_to_go_on_if_killed,
            reports=BulkReports(self.log),
            logger=self.log,
        )

    def _resume(self, run: Run, deadline: float, context: Context) -> dict[str, Any]:
        with self._nothing_left_unsaid(run):
            ended = self._attempt(run, deadline).resume()
        return self._end(ended, context)

    def _end(self, ended: Ended, context: Context) -> dict[str, Any]:
        self._landed = ended.manifest
        if ended.error:
            raise ended.error
        delivered = self._deliver(context, ended.manifest)
        RunNote(context.get("task_state_store")).drop()
        return delivered

    def _deliver(self, context: Context, manifest: dict[str, Any]) -> dict[str, Any]:
        """Store each field as an XCom of its own, for ``operator.output["results"]``."""
        if self.do_xcom_push:
            for name, value in manifest.items():
                # Airflow 3.0 cannot store nothing.
                if value is not None:
                    context["ti"].xcom_push(key=name, value=value)
        return manifest

    # Checking -------------------------------------------------------------------------------------

    def _plan(self, settings: Settings, context: Context) -> Plan:
        format_from(self.policy.results_format)
        return Plan(
            settings=settings,
            owner=Owner.of(context["ti"]),
            defaults=Defaults(self.model or settings.model, self.system_prompt, self.request_params),
            output_type=output_type_from(self.output_type),
            dedupe=self.dedupe,
            policy=self.policy,
        )

    def _plan_again(self, context: Context) -> Plan:
        """Plan with the connection as it is now; where it cannot be used, say what goes on."""
        try:
            hook = hook_again(self.conn_id, lambda why: self._what_goes_on(why, context))
        except ConnectionInvalid as error:
            raise AirflowFailException(self._what_goes_on(str(error), context)) from error
        return self._plan(hook.settings, context)

    def _source(self) -> Source:
        return source_of(self.requests, prompt=self.prompt, open_path=ObjectStoragePath)

    def _run_uri(self, owner: Owner) -> str:
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

    def _reopen(self, uri: str, plan: Plan) -> Run:
        run = self._open(uri, plan)
        if run.state.opened is None:
            raise LedgerMissing("find the run that was waited for in", uri, remedy=_BRING_IT_BACK)
        run.check_resumed()
        return run

    def _refuse_to_forget(self, uri: str, run: Run, note: RunNote, context: Context) -> None:
        """Where there is no journal, this is the first attempt only if nothing says otherwise."""
        noted = note.read()
        if noted is None:
            if not note.kept and run.state.opened is None and context["ti"].try_number > 1:
                self.log.warning(
                    "This is not the first attempt, and there is no run in %r. If an earlier one has sent "
                    "anything, this one pays for it again: a volume that is not mounted, or a result_path "
                    "that has changed, looks the same.",
                    uri,
                )
            return
        if noted == uri and run.state.opened is not None:
            return
        if self.policy.on_input_change == "restart":
            self.log.warning(
                "An earlier attempt recorded its run in %r, which is left behind: starting over in %r. What "
                "it sent goes on and is billed.",
                noted,
                uri,
            )
            return
        what = "find" if noted == uri else f"go on in {uri!r}, or find there,"
        raise LedgerMissing(
            f"{what} the run that an earlier attempt recorded in", noted, remedy=_BRING_IT_BACK
        )

    def _estimate(self, source: Source, plan: Plan) -> dict[str, Any]:
        manifest = dry_run_manifest(stage(source, plan), Costs(plan.settings))
        self.log.info("Dry run, nothing was sent: %s", manifest)
        return manifest

    # Sending --------------------------------------------------------------------------------------

    async def _submit(self, run: Run, budget: Budget, deadline: float, folder: str | None) -> Submitted:
        plan = run.plan
        async with await AsyncClient.open(plan.settings) as client:
            submission = Submission(
                run,
                client,
                budget,
                deadline=deadline,
                labels=labels_of(plan.owner) if plan.settings.airflow_metadata else None,
                folder=folder,
                logger=self.log,
            )
            showing = asyncio.create_task(show_sending(run, submission))
            try:
                with self._stopped_by(lambda: submission.stop(_told_to_stop())):
                    return await submission.run()
            finally:
                showing.cancel()

    # Waiting --------------------------------------------------------------------------------------

    def _wait(self, run: Run, deadline: float, collection: Collection) -> None:
        """Wait on the triggerer, or here; when the deadline has passed, look a last time, here."""
        if self.deferrable and time.time() < deadline:
            self._refuse_to_go_on_if_killed()
            self._defer_until(deadline, run.directory.uri)
        asyncio.run(self._wait_here(run, deadline, collection))

    async def _wait_here(self, run: Run, deadline: float, collection: Collection) -> None:
        poke_interval = self.policy.poke_interval
        async with metered_pool(run.plan.settings) as pool:
            waiting = asyncio.ensure_future(
                collection.wait_and_look(pool, deadline=deadline, poke_interval=poke_interval)
            )
            with self._stopped_by(waiting.cancel):
                await asyncio.wait((waiting,))
            if waiting.cancelled():
                raise _told_to_stop()
            waiting.result()

    def _defer_until(self, deadline: float, run_uri: str) -> NoReturn:
        trigger = AsyncChatBulkTrigger(
            conn_id=self.conn_id,
            run_uri=run_uri,
            deadline=deadline,
            poke_interval=self.policy.poke_interval,
        )
        defer_to(trigger, self, deadline)

    # Stopping -------------------------------------------------------------------------------------

    def on_kill(self) -> None:
        """Let what is under way end in order, soon; :meth:`execute` then says what goes on, and fails."""
        # May run in a signal handler, at any instruction of the main thread.
        self._killed = True
        if self._stop is not None:
            self._stop()

    def _refuse_to_go_on_if_killed(self) -> None:
        if self._killed:
            raise _told_to_stop()

    @contextlib.contextmanager
    def _stopped_by(self, stop: Callable[[], object]) -> Iterator[None]:
        """Let a kill stop what runs on this event loop, also one that came before."""
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop)
        if self._killed:
            stop()
        try:
            yield
        finally:
            self._stop = None

    @contextlib.contextmanager
    def _nothing_left_unsaid(self, run: Run) -> Iterator[None]:
        """Whatever ends the attempt before it has landed, a kill or a timeout too: say what goes on."""
        attempt = run.state.opened.attempt if run.state.opened else None
        try:
            yield
        except LedgerTaken:
            raise  # Another attempt has the run, and says it.
        except (Exception, AirflowTaskTimeout) as error:
            why = str(error) if isinstance(error, InferenceError) else f"{type(error).__name__}."
            leave_behind(run.directory, attempt=attempt, why=why, logger=self.log)
            raise

    # Lineage --------------------------------------------------------------------------------------

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return the input and the results as datasets, with counts and tokens."""
        return lineage_of(self._input, self._landed)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return the same: a run that fails has landed what there is."""
        return lineage_of(self._input, self._landed)


def _told_to_stop() -> WorkerStopped:
    return WorkerStopped("The worker was told to stop.")
