# SPDX-License-Identifier: Apache-2.0

"""
A task's life around Airflow's own task runner: worker, triggerer and scheduler, in this process.

:class:`Life` plays the supervisor that a worker process talks to, and remembers what the database would. Each
time the task gets a process, its Dag is built anew, as a worker parses it anew, so nothing survives in it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import structlog
from airflow.sdk import DAG
from airflow.sdk.api.datamodels import _generated as models
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import comms, task_runner
from airflow.serialization.serialized_objects import BaseSerialization

from tests.airflow.wire import Killed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.triggers.base import BaseTrigger

    from tests.airflow.clock import Clock


def airflow_has(module: str, name: str) -> bool:
    """Return whether this Airflow has something."""
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


#: What Airflow stores arguments and events with.
_serde: Any = (
    importlib.import_module("airflow.sdk.serde")
    if airflow_has("airflow.sdk.serde", "serialize")
    else BaseSerialization  # before 3.2
)
serialize: Callable[[Any], Any] = _serde.serialize
deserialize: Callable[[Any], Any] = _serde.deserialize
#: Airflow has a task state store from 3.3 on.
HAS_STATE_STORE = hasattr(comms, "GetTaskStateStore")
DAG_ID, RUN_ID = "questions", "manual__2025"


@dataclass
class Attempt:
    """
    How one attempt went.

    :param state: As the scheduler would store it.
    :param error: What ended it, if something did.
    :param triggers: Class path and arguments of the trigger of each deferral.
    :param timeouts: Airflow's own limit on each deferral, in seconds.
    :param events: What each trigger said.
    :param reschedules: How often it gave its slot back to look again later.
    """

    state: str = "running"
    error: BaseException | None = None
    triggers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    reschedules: int = 0

    @property
    def message(self) -> str:
        """What ended it, in words."""
        return str(self.error)


class _Where(NamedTuple):
    """Which XCom, of the one Dag there is."""

    run_id: str
    task_id: str
    map_index: int
    key: str

    @classmethod
    def of(cls, msg: Any) -> _Where:
        """Read it from a message."""
        map_index = -1 if msg.map_index is None else msg.map_index
        return cls(msg.run_id, msg.task_id, map_index, msg.key)


class Life:
    """
    One task instance, from its first attempt to its last.

    :param build: Makes the operator, inside a Dag.
    :param beside: A task instance of the same Dag, whose database this one shares.
    :param xcoms: What upstream tasks returned, by task id.
    :ivar killed_by: Decides for each message to the supervisor whether the process dies of it.
    :ivar task: The operator that ran last, as Airflow's listeners find it.
    :ivar store_fails: Whether the task state store does not answer.
    :ivar next_write_fails: Whether it does not answer to the next write.
    :ivar deletes_fail: Whether it drops nothing.
    """

    def __init__(
        self,
        clock: Clock,
        build: Callable[[], BaseOperator],
        *,
        map_index: int = -1,
        run_id: str = RUN_ID,
        beside: Life | None = None,
        **xcoms: Any,
    ) -> None:
        self.clock = clock
        self.build = build
        self.map_index = map_index
        self.run_id = run_id
        self.ti_id = uuid.uuid4()
        self.try_number = 0
        self.xcoms: dict[_Where, Any] = beside.xcoms if beside else {}
        self.xcoms |= {_Where(run_id, name, -1, "return_value"): it for name, it in xcoms.items()}
        self.store: dict[str, Any] = {}
        self.store_fails = self.next_write_fails = False
        self.task: Any = None
        self.deletes_fail = False
        self.rendered: dict[str, Any] = {}
        self.killed_by: Callable[[Any], bool] = lambda msg: False
        self.rescheduled_first: datetime | None = None
        self.reschedules = 0

    # What is looked at afterwards --------------------------------------------------------------------

    @property
    def task_id(self) -> str:
        """The operator's task id."""
        return self._task().task_id

    @property
    def result(self) -> Any:
        """What the task returned, as a downstream task reads it."""
        return self.xcom("return_value")

    def xcom(self, key: str) -> Any:
        """Return an XCom of the task, as a downstream task reads it."""
        where = _Where(self.run_id, self.task_id, self.map_index, key)
        stored = comms.XComResult(key=key, value=self.xcoms.get(where))
        return BaseXCom.deserialize_value(stored)

    def left_behind(self) -> str:
        """Return all that Airflow stored, as text."""
        return repr((self.xcoms, self.store, self.rendered))

    # What happens ------------------------------------------------------------------------------------

    def attempt(
        self,
        *,
        before_trigger: Callable[[], None] | None = None,
        before_resuming: Callable[[], None] | None = None,
        instead_of_trigger: dict[str, Any] | None = None,
        retries_left: bool = True,
    ) -> Attempt:
        """
        Run one attempt to its end, through deferrals and reschedules.

        :param before_trigger: Called between a deferral and its trigger.
        :param before_resuming: Called between a trigger's event and the process that reads it.
        :param instead_of_trigger: What resumes a deferred task although its trigger never ran.
        :param retries_left: Whether Airflow would retry a failure.
        :raises Killed: when the process died; the next attempt finds what it left.
        """
        self.try_number += 1
        for where in [it for it in self.xcoms if it[:3] == (self.run_id, self.task_id, self.map_index)]:
            del self.xcoms[where]
        attempt = Attempt()
        method: str | None = None
        kwargs: Any = None
        while True:
            message = self._process(attempt, method, kwargs, retries_left)
            match type(message).__name__:
                case "DeferTask":
                    if before_trigger:
                        before_trigger()
                    method, kwargs = message.next_method, self._resumed(attempt, message, instead_of_trigger)
                    if before_resuming:
                        before_resuming()
                    if instead_of_trigger and "error" in instead_of_trigger:
                        method = "__fail__"
                case "RescheduleTask":
                    attempt.reschedules += 1
                    self.reschedules += 1
                    self.rescheduled_first = self.rescheduled_first or datetime.now(UTC)
                    self.clock.sleep_until(message.reschedule_date)
                    method, kwargs = None, None
                case _:
                    return attempt

    def _process(self, attempt: Attempt, method: str | None, kwargs: Any, retries_left: bool) -> Any:
        """Give the task a process, and return its last words."""
        ti = self._runtime_ti(method, kwargs, retries_left)
        log = structlog.get_logger("task")
        with self.supervised(), mock.patch.dict(os.environ):
            context = ti.get_template_context()
            state, message, error = task_runner.run(ti, context, log)
            self.task = ti.task
            if isinstance(error, Killed):
                raise error
            task_runner.finalize(ti, state, context, log, error)
        attempt.state, attempt.error = str(state.value), error
        return message

    def _resumed(self, attempt: Attempt, message: Any, instead: dict[str, Any] | None) -> Any:
        """Run a deferral's trigger, and return what its task is resumed with."""
        stored = json.loads(message.model_dump_json())
        arguments = deserialize(stored["trigger_kwargs"])
        attempt.triggers.append((message.classpath, arguments))
        attempt.timeouts.append(message.trigger_timeout.total_seconds())
        if instead is not None:
            return serialize(instead)
        module, _, name = message.classpath.rpartition(".")
        trigger = getattr(importlib.import_module(module), name)(**arguments)
        with self.supervised():
            event = json.loads(json.dumps(self.clock.run(first_event(trigger))))
        attempt.events.append(event)
        return serialize({**deserialize(stored["next_kwargs"]), "event": event})

    def _task(self) -> BaseOperator:
        with DAG(DAG_ID, schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)):
            return self.build()

    def _runtime_ti(self, method: str | None, kwargs: Any, retries_left: bool) -> Any:
        now = datetime.now(UTC)
        run = _made(
            models.DagRun,
            dag_id=DAG_ID,
            run_id=self.run_id,
            logical_date=now,
            run_after=now,
            start_date=now,
            run_type="manual",
            state="running",
            consumed_asset_events=[],
        )
        context = _made(
            models.TIRunContext,
            dag_run=run,
            max_tries=3,
            next_method=method,
            next_kwargs=kwargs,
            should_retry=retries_left,
            task_reschedule_count=self.reschedules,
        )
        task = self._task()
        return task_runner.RuntimeTaskInstance.model_construct(  # type: ignore[call-arg]
            id=self.ti_id,
            task_id=task.task_id,
            dag_id=DAG_ID,
            run_id=self.run_id,
            try_number=self.try_number,
            map_index=self.map_index,
            dag_version_id=uuid.uuid4(),
            task=task,
            _ti_context_from_server=context,
            max_tries=3,
            start_date=now,
        )

    # What the supervisor answers ---------------------------------------------------------------------

    @contextlib.contextmanager
    def supervised(self) -> Iterator[None]:
        """Be the supervisor of whatever runs inside."""
        on_term = signal.getsignal(signal.SIGTERM)
        with mock.patch.object(task_runner, "SUPERVISOR_COMMS", self, create=True):
            try:
                yield
            finally:
                signal.signal(signal.SIGTERM, on_term)

    def send(self, msg: Any) -> Any:
        """Answer a message of the task's process."""
        if self.killed_by(msg):
            raise Killed
        answer = getattr(self, f"_on_{type(msg).__name__}", None)
        return answer(msg) if answer else None

    async def asend(self, msg: Any) -> Any:
        """Answer a message of a coroutine in the task's process."""
        return self.send(msg)

    def _on_SetXCom(self, msg: Any) -> None:  # noqa: N802  named after the message
        self.xcoms[_Where.of(msg)] = json.loads(json.dumps(msg.value))

    def _on_GetXCom(self, msg: Any) -> Any:  # noqa: N802
        return comms.XComResult(key=msg.key, value=self.xcoms.get(_Where.of(msg)))

    def _on_GetXComSequenceSlice(self, msg: Any) -> Any:  # noqa: N802
        found = [it for it in sorted(self.xcoms) if it[:2] == (msg.run_id, msg.task_id) and it.key == msg.key]
        return comms.XComSequenceSliceResult(root=[self.xcoms[where] for where in found])

    def _on_SetRenderedFields(self, msg: Any) -> None:  # noqa: N802
        self.rendered.update(msg.rendered_fields)

    def _on_GetTaskRescheduleStartDate(self, msg: Any) -> Any:  # noqa: N802
        return comms.TaskRescheduleStartDate(start_date=self.rescheduled_first)

    def _on_GetConnection(self, msg: Any) -> Any:  # noqa: N802
        return comms.ErrorResponse(error=ErrorType.CONNECTION_NOT_FOUND)

    def _on_GetTaskStateStore(self, msg: Any) -> Any:  # noqa: N802
        if self.store_fails:
            return comms.ErrorResponse(error=ErrorType.API_SERVER_ERROR)
        if msg.key not in self.store:
            return comms.ErrorResponse(error=ErrorType.TASK_STORE_NOT_FOUND)
        return comms.TaskStateStoreResult(value=self.store[msg.key])

    def _on_SetTaskStateStore(self, msg: Any) -> None:  # noqa: N802
        if self.next_write_fails:
            self.next_write_fails = False
            raise AirflowRuntimeError(comms.ErrorResponse(error=ErrorType.API_SERVER_ERROR))
        self.store[msg.key] = json.loads(json.dumps(msg.value))

    def _on_DeleteTaskStateStore(self, msg: Any) -> None:  # noqa: N802
        if self.deletes_fail:
            # A request without an answer of its own raises instead of returning an error.
            raise AirflowRuntimeError(comms.ErrorResponse(error=ErrorType.API_SERVER_ERROR))
        self.store.pop(msg.key, None)


async def first_event(trigger: BaseTrigger) -> dict[str, Any]:
    """Run a trigger as the triggerer does, to its event."""
    async with contextlib.aclosing(trigger.run()) as events:  # type: ignore[type-var]
        payload: dict[str, Any] = (await anext(events)).payload
        return payload


def _made(model: Any, **fields: Any) -> Any:
    """Make a message of whatever release: what it requires and nobody gave is ``None``."""
    required = [name for name, it in model.model_fields.items() if it.is_required() and name not in fields]
    return model(**dict.fromkeys(required), **fields)
