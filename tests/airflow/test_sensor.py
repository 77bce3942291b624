# SPDX-License-Identifier: Apache-2.0

"""Waiting: deferred, poking and rescheduled end the same way."""

from __future__ import annotations

import contextlib
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowTaskTimeout,
)
from airflow.sdk import DAG, get_current_context
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import comms

from airflow_provider_distribute.hooks import HOOKS
from airflow_provider_distribute.sensors.chat import MAX_JOBS, AsyncChatSensor
from tests.airflow.wire import KEY, MODELS, connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire

    Live = Callable[..., Life]
    Wait = Callable[..., Life]

MODES: dict[str, dict[str, Any]] = {
    "deferrable": {"deferrable": True},
    "poke": {"deferrable": False, "mode": "poke"},
    # Every look is a process of its own: few and far between.
    "reschedule": {"deferrable": False, "mode": "reschedule", "poke_interval": 120},
}
#: An id that no service has handed out.
UNKNOWN = "6f1b7c1e-0000-4000-8000-000000000000"


def kill_the_running_task() -> None:
    """Do what Airflow does on a task's process, if there is one."""
    with contextlib.suppress(RuntimeError):
        get_current_context()["ti"].task.on_kill()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Each of the ways to wait."""
    return str(request.param)


@pytest.fixture
def wait(life: Live, mode: str, service: str) -> Wait:
    """Make a sensor task of the mode and the service."""

    def make(job_id: Any, *, xcoms: dict[str, Any] | None = None, **options: Any) -> Life:
        given = {**MODES[mode], **options}
        given = {"conn_id": f"{service}_default", **given}
        return life(
            lambda: AsyncChatSensor(task_id="wait", job_id=job_id, **given),
            **(xcoms or {}),
        )

    return make


@pytest.fixture
def submitted(wire: Wire, service: str) -> Callable[..., list[str]]:
    """Submit prompts as an upstream task would."""

    def submit(*prompts: str) -> list[str]:
        hook = HOOKS[service]()
        return [hook.submit(prompt) for prompt in prompts]

    return submit


def test_one_id_gives_one_result(wait: Wait, wire: Wire, submitted: Any, mode: str) -> None:
    """The result comes when the job has ended, whichever way it is waited for."""
    wire.fault("latency", value="300")
    [job_id] = submitted("Why?")
    task = wait(job_id)
    attempt = task.attempt()
    assert attempt.state == "success"
    assert (task.result["job_id"], task.result["status"]) == (job_id, "succeeded")
    assert (len(attempt.triggers) > 0) == (mode == "deferrable")
    assert (attempt.reschedules > 0) == (mode == "reschedule")


def test_list_gives_a_list_in_its_order(wait: Wait, wire: Wire, submitted: Any) -> None:
    """A job that is named twice has its result twice, and is looked at as one."""
    wire.fault("latency", value="300", count=1)
    slow, quick = submitted("slow", "quick")
    task = wait([quick, slow, quick])
    assert task.attempt().state == "success"
    assert [result["job_id"] for result in task.result] == [quick, slow, quick]


def test_list_of_one_gives_a_list(wait: Wait, submitted: Any) -> None:
    """The shape follows from what was given, not from how many it is."""
    task = wait(submitted("Why?"))
    assert task.attempt().state == "success"
    assert isinstance(task.result, list)
    assert len(task.result) == 1


def test_empty_list_is_done_at_once(wait: Wait, wire: Wire) -> None:
    """Nothing to wait for is no error and costs no look."""
    task = wait([])
    attempt = task.attempt()
    assert (attempt.state, attempt.triggers, task.result) == ("success", [], [])
    assert wire.requests == []


@pytest.mark.parametrize("text", ["{{ ti.xcom_pull('submit') }}", "{{ ti.xcom_pull('submit') | tojson }}"])
def test_ids_come_through_templates(wait: Wait, submitted: Any, text: str) -> None:
    """A template renders a list as text; one id stays one id."""
    job_ids = submitted("a", "b")
    task = wait(text, xcoms={"submit": job_ids})
    assert task.attempt().state == "success"
    assert [result["job_id"] for result in task.result] == job_ids
    task = wait("{{ ti.xcom_pull('submit') }}", xcoms={"submit": job_ids[0]})
    assert task.attempt().state == "success"
    assert task.result["job_id"] == job_ids[0]


def test_failed_jobs_fail_the_task(wait: Wait, wire: Wire, submitted: Any, service: str) -> None:
    """The error names every failed job with the service's words; a retry would find them failed again."""
    wire.fault("error", value="model overloaded", after=1, count=2)
    job_ids = submitted("a", "b", "c", "d")
    attempt = wait(job_ids).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    assert "2 of 4 jobs failed" in attempt.message
    assert [job_id in attempt.message for job_id in job_ids] == [False, True, True, False]
    if service == "inference_net":
        assert attempt.message.count("model overloaded") == 2


def test_failed_jobs_can_be_results(wait: Wait, wire: Wire, submitted: Any) -> None:
    """With ``fail_on_error=False`` the result says what went wrong."""
    wire.fault("error", count=1)
    task = wait(submitted("a", "b"), fail_on_error=False)
    assert task.attempt().state == "success"
    assert [result["status"] for result in task.result] == ["failed", "succeeded"]
    assert task.result[0]["error"]["type"] == "failed"


@pytest.mark.parametrize("status", ["401", "402", "403"])
def test_key_that_is_not_accepted_fails_for_good(wait: Wait, wire: Wire, submitted: Any, status: str) -> None:
    """Asked once, and a person has to act."""
    job_ids = submitted("Why?")
    wire.fault(status)
    attempt = wait(job_ids).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    assert "then clear the task" in attempt.message
    assert f"{job_ids[0]}: what has not ended goes on and is billed" in attempt.message
    assert "Clearing the task waits for the same jobs again, and pays nothing" in attempt.message
    assert len(wire.looks) == 1


def test_outage_fails_nothing(wait: Wait, wire: Wire, submitted: Any) -> None:
    """What goes wrong with looks is no reason to give up paid work."""
    job_ids = submitted("Why?")
    for kind in ("500", "503", "reset", "malformed", "429"):
        wire.fault(kind, operation="look", count=3)
    task = wait(job_ids)
    assert task.attempt().state == "success"


def test_unknown_word_is_pending(wait: Wait, wire: Wire, submitted: Any) -> None:
    """A status that the documentation does not know is kept and shown at the deadline."""
    wire.fault("status", value="SIMMERING")
    [job_id] = submitted("Why?")
    attempt = wait(job_id, timeout=600).attempt()
    assert attempt.state == "failed"
    assert f"{job_id} (SIMMERING)" in attempt.message


def test_deadline_lists_what_goes_on(wait: Wait, wire: Wire, submitted: Any) -> None:
    """The jobs still pending are named with their words; Airflow does not retry a sensor's timeout."""
    wire.fault("never", count=1)
    endless, done = submitted("a", "b")
    before = wire.clock.now
    attempt = wait([endless, done], timeout=1200).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowSensorTimeout)
    word = wire.jobs[0].status
    assert f"1 of 2 jobs still pending: {endless} ({word})" in attempt.message
    assert done not in attempt.message
    assert "billed" in attempt.message
    assert 1200 <= wire.clock.now - before <= 1200 + 120


def test_deadline_names_jobs_that_were_never_seen(wait: Wait, wire: Wire, submitted: Any) -> None:
    """An outage that lasts until the deadline is told as what it is."""
    job_ids = submitted("a", "b")
    wire.fault("503", operation="look")
    attempt = wait(job_ids, timeout=600).attempt()
    assert attempt.state == "failed"
    assert "2 of 2 jobs still pending" in attempt.message
    assert attempt.message.count("(not seen yet)") == 2


def test_what_ended_by_the_deadline_is_fetched(wait: Wait, wire: Wire, submitted: Any) -> None:
    """Whoever could not look until the deadline looks once more: what has ended is paid for."""
    deadline = wire.clock.now + 600
    wire.fault("503", operation="look")

    def recover(request: object) -> None:
        if wire.clock.now > deadline:
            wire.no_faults()

    wire.listener = recover
    job_ids = submitted("a", "b")
    task = wait(job_ids, timeout=600)
    assert task.attempt().state == "success"
    assert [result["job_id"] for result in task.result] == job_ids


def test_last_look_is_no_second_wait(
    wait: Wait, wire: Wire, submitted: Any, connections: Callable[..., None], service: str
) -> None:
    """A slow rate limit, many jobs, a deadline long before each was looked at: the task ends all the same."""
    connections(f"{service}_default", extra={"model": MODELS[service], "requests_per_second": 0.1})
    wire.fault("never")
    job_ids = submitted(*"abcdefghijklmnopqrstuvwxyz")
    before = wire.clock.now
    attempt = wait(job_ids, timeout=60).attempt()
    assert attempt.state == "failed"
    assert "26 of 26 jobs still pending" in attempt.message
    assert "(not seen yet)" in attempt.message
    assert wire.clock.now - before <= 60 + 120 + 130


def test_long_pause_does_not_outlast_the_deadline(wait: Wait, wire: Wire, submitted: Any) -> None:
    """The service wants to be left alone for longer than the author wants to wait."""
    job_ids = submitted("Why?")
    wire.fault("429", operation="look", retry_after=600)
    before = wire.clock.now
    attempt = wait(job_ids, timeout=60).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowSensorTimeout)
    assert wire.clock.now - before <= 60 + 120 + 130


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
def test_single_not_found_loses_no_job(wait: Wait, wire: Wire, submitted: Any) -> None:
    """A job is lost when it is not found for ``not_found_grace`` seconds on end, not when it was twice."""
    wire.fault("latency", value="1000")
    [job_id] = submitted("Why?")
    for after in (3, 5):
        wire.fault("404", operation="look", after=after, count=1)
    task = wait(job_id, poke_interval=60)
    assert task.attempt().state == "success"
    assert task.result["status"] == "succeeded"


def test_killed_task_says_what_it_waits_for(wait: Wait, wire: Wire, submitted: Any, log: Log) -> None:
    """Neither service can cancel: whoever waits on a worker lists what it waits for."""
    job_ids = submitted("a", "b")
    wire.listener = lambda request: kill_the_running_task()
    assert wait(job_ids).attempt().state == "success"
    assert "cannot be cancelled: those that have not ended go on" in log.text
    assert ", ".join(job_ids) in log.text


@pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
@pytest.mark.parametrize("trouble", ["deadline", "failed job", "401", "garbage"])
def test_soft_fail_skips(
    wait: Wait, wire: Wire, submitted: Any, log: Log, service: str, option: str, trouble: str
) -> None:
    """What would have failed the task skips it, and the log says why: the same in every mode."""
    if trouble == "deadline":
        wire.fault("never")
    elif trouble == "failed job":
        wire.fault("error")
    [job_id] = submitted("Why?")
    if trouble == "401":
        wire.fault("401")
    task = wait("" if trouble == "garbage" else job_id, timeout=600, **{option: True})
    assert task.attempt().state == "skipped"
    said = {
        "deadline": f"1 of 1 jobs still pending: {job_id} ({wire.jobs[0].status}). They cannot be cancelled: "
        "they go on at the service and are billed. Clearing the task waits for the same jobs again",
        "failed job": f"1 of 1 jobs failed: {job_id} ({wire.jobs[0].status})",
        "401": f"Nobody waits any more for {job_id}: what has not ended goes on and is billed",
        "garbage": "job_id must be a job id or a list of them",
    }[trouble]
    lines = [it for it in log.text.splitlines() if f"skipped instead of failed, as {option} says" in it]
    assert lines
    assert all(said in line for line in lines)


@pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
def test_soft_fail_skips_no_result(wait: Wait, wire: Wire, submitted: Any, option: str) -> None:
    """What ends between the last look and the deadline is paid for: it is fetched, and nothing is skipped."""
    wire.fault("latency", value="590")
    job_ids = submitted("a", "b")
    task = wait(job_ids, timeout=600, **{option: True})
    assert task.attempt().state == "success"
    assert [result["job_id"] for result in task.result] == job_ids


def test_task_timeout_skips_under_soft_fail(wait: Wait, wire: Wire, submitted: Any, log: Log) -> None:
    """Airflow's ``execution_timeout`` runs while a worker is held; the jobs that go on are named."""
    job_ids = submitted("a", "b")

    def out_of_time(request: object) -> None:
        with contextlib.suppress(RuntimeError):
            get_current_context()
            raise AirflowTaskTimeout("Timeout")

    wire.listener = out_of_time
    assert wait(job_ids, soft_fail=True).attempt().state == "skipped"
    assert f"go on and are billed: {', '.join(job_ids)}." in log.text


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
def test_never_fail_skips_whatever_happens(wait: Wait) -> None:
    """A connection that is not there, for instance."""
    assert wait("some-job", conn_id="nowhere").attempt().state == "up_for_retry"
    assert wait("some-job", conn_id="nowhere", never_fail=True).attempt().state == "skipped"


@pytest.mark.parametrize(
    ("job_id", "shape"),
    [
        (None, "not None"),
        ("", "not ''"),
        ("   ", "not str"),
        (7, "not int"),
        ({"id": "a"}, "not dict"),
        (["a", None], "not a list with NoneType, str"),
        (["a", ["b"]], "not a list with list, str"),
        (["a", ""], "not a list with str"),
    ],
    ids=repr,
)
def test_garbage_is_no_job_id(wait: Wait, wire: Wire, job_id: Any, shape: str) -> None:
    """What an upstream task pushed is checked before anybody waits, and described without its content."""
    attempt = wait(job_id).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    assert f"job_id must be a job id or a list of them, {shape}" in attempt.message
    assert wire.requests == []


def test_a_thousand_jobs_are_the_limit(wait: Wait, wire: Wire) -> None:
    """More belong into a bulk run, and the error says so."""
    attempt = wait(["a"] * (MAX_JOBS + 1)).attempt()
    assert attempt.state == "failed"
    assert (
        "1001 jobs are more than the 1000 one sensor waits for. Use AsyncChatBulkOperator" in attempt.message
    )
    assert wire.requests == []


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("grace", [0, 30])
def test_lost_job_is_a_failed_job(
    wait: Wait, wire: Wire, connections: Callable[..., None], grace: int
) -> None:
    """On distribute a 404 means *not yet* for ``not_found_grace`` seconds, and then *lost*."""
    extra = {"model": MODELS["distribute"], "not_found_grace": grace}
    connections("distribute_default", extra=extra)
    before = wire.clock.now
    attempt = wait(UNKNOWN).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    assert f"{UNKNOWN} (not found)" in attempt.message
    assert "does not know this job" in attempt.message
    assert grace <= wire.clock.now - before <= 1.5 * grace + 120


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
def test_lost_job_can_be_a_result(wait: Wait, wire: Wire, submitted: Any) -> None:
    """The jobs beside it keep their results."""
    [known] = submitted("Why?")
    task = wait([UNKNOWN, known], fail_on_error=False)
    assert task.attempt().state == "success"
    assert [result["status"] for result in task.result] == ["failed", "succeeded"]
    assert task.result[0]["error"]["type"] == "lost"


@pytest.mark.parametrize("service", ["inference_net"], indirect=True)
def test_not_found_is_not_ready(wait: Wait, wire: Wire) -> None:
    """On inference.net a 404 means *not ready* until the deadline."""
    attempt = wait(UNKNOWN, timeout=1200).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowSensorTimeout)
    assert f"{UNKNOWN} (not found)" in attempt.message


@pytest.mark.parametrize("job_id", ["..", "../../v1/models", "a/b", "job?x=1", "[no list"])
@pytest.mark.parametrize("service", ["inference_net"], indirect=True)
def test_id_stays_an_id(wait: Wait, wire: Wire, job_id: str) -> None:
    """An id is quoted into the path, or refused, but never asks for something else."""
    attempt = wait(job_id, timeout=600).attempt()
    assert attempt.state == "failed"
    assert all(request.url.raw_path.startswith(b"/v1/generation/") for request in wire.requests)
    assert all(request.url.raw_path.count(b"/") == 3 for request in wire.requests)


def test_job_that_is_not_shown_counts_as_failed(wait: Wait, wire: Wire, submitted: Any) -> None:
    """A service that refuses one job refuses it for ever; the others keep their results."""
    refused, shown = submitted("a", "b")
    wire.fault("400", job=refused, value="not yours")
    task = wait([refused, shown], fail_on_error=False)
    assert task.attempt().state == "success"
    assert [result["status"] for result in task.result] == ["failed", "succeeded"]
    assert "not yours" in task.result[0]["error"]["message"]


def test_wrong_connection_fails_for_good(wait: Wait, connections: Callable[..., None], service: str) -> None:
    """Before anybody waits."""
    connections(f"{service}_default", password="")
    attempt = wait("some-job").attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    assert "the API key is missing" in attempt.message


def test_link_leads_to_the_dashboard(wait: Wait, submitted: Any) -> None:
    """The waiting task has the same link as the one that submitted."""
    task = wait(submitted("Why?"))
    task.attempt()
    assert task.xcom("_link_DashboardLink").startswith("https://")


def test_nothing_secret_stays_behind(wait: Wait, wire: Wire, submitted: Any, log: Log) -> None:
    """Neither key nor question nor answer is in what the wait left, but for the result itself."""
    wire.fault("text", value="a very private answer")
    task = wait(submitted("a very private question"))
    attempt = task.attempt()
    assert attempt.state == "success"
    assert KEY not in repr(attempt) + task.left_behind()
    assert "private" not in repr(attempt) + log.text + repr(task.rendered)


# What only one of the modes does --------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["deferrable"], indirect=True)
def test_no_triggerer_until_airflows_limit_is_a_last_look(wait: Wait, submitted: Any) -> None:
    """When no triggerer ran until Airflow's own limit, what has ended meanwhile is fetched all the same."""
    job_ids = submitted("Why?")
    task = wait(job_ids)
    assert task.attempt(instead_of_trigger={"error": "Trigger timeout"}).state == "success"
    assert [result["job_id"] for result in task.result] == job_ids


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["deferrable"], indirect=True)
@pytest.mark.parametrize("resumed", [{"error": "Trigger failure"}, {"event": {"version": 2}}], ids=repr)
def test_never_fail_skips_after_a_broken_trigger(wait: Wait, resumed: dict[str, Any]) -> None:
    """As it does after anything else."""
    assert wait("job", never_fail=True).attempt(instead_of_trigger=resumed).state == "skipped"


@pytest.mark.parametrize("mode", ["deferrable"], indirect=True)
def test_results_come_however_slow_the_limit_is(
    wait: Wait, wire: Wire, submitted: Any, connections: Callable[..., None], service: str
) -> None:
    """What bounds the worker is the time without a result: 80 of them at one in 10 s need one deferral."""
    connections(f"{service}_default", extra={"model": MODELS[service], "requests_per_second": 0.1})
    job_ids = submitted(*(str(number) for number in range(80)))
    task = wait(job_ids, timeout=3600)
    attempt = task.attempt()
    assert attempt.state == "success"
    assert len(attempt.triggers) == 1
    assert len(wire.looks) <= 2 * len(job_ids) + 10


@pytest.mark.parametrize("mode", ["deferrable"], indirect=True)
def test_triggerer_that_comes_back_late_loses_nothing(wait: Wait, wire: Wire, submitted: Any) -> None:
    """It was away until after the deadline; only what is pending still is reported so."""
    wire.fault("never", count=1)
    endless, done = submitted("a", "b")
    attempt = wait([endless, done], timeout=600).attempt(before_trigger=lambda: wire.clock.sleep(700))
    assert attempt.state == "failed"
    assert f"1 of 2 jobs still pending: {endless} ({wire.jobs[0].status})" in attempt.message
    task = wait([done], timeout=600)
    assert task.attempt(before_trigger=lambda: wire.clock.sleep(700)).state == "success"


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["deferrable"], indirect=True)
def test_word_of_the_trigger_stands_when_the_last_look_fails(wait: Wait, wire: Wire, submitted: Any) -> None:
    """What was seen at the deadline is not forgotten because the service is away a moment later."""
    wire.fault("never")
    [job_id] = submitted("Why?")
    attempt = wait(job_id, timeout=600).attempt(before_resuming=lambda: wire.fault("503", operation="look"))
    assert f"{job_id} ({wire.jobs[0].status})" in attempt.message


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["reschedule"], indirect=True)
def test_newest_job_answers_for_the_rest(wait: Wait, wire: Wire, submitted: Any) -> None:
    """All have to end, the newest probably last: while it is pending nobody else is looked at."""
    job_ids = submitted(*(str(number) for number in range(20)))
    wire.fault("latency", value="600", count=1)
    job_ids += submitted("the newest")
    attempt = wait(job_ids, poke_interval=100).attempt()
    assert attempt.state == "success"
    assert len(wire.looks) == attempt.reschedules + len(job_ids)


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["reschedule"], indirect=True)
def test_pause_the_service_asks_for_outlives_the_process(wait: Wait, wire: Wire, submitted: Any) -> None:
    """The next process would know nothing of it, so it is not started before the pause is over."""
    job_ids = submitted("Why?")
    wire.fault("429", operation="look", retry_after=300)
    looked: list[float] = []
    wire.listener = lambda request: looked.append(wire.clock.now)
    assert wait(job_ids, timeout=3000, poke_interval=10).attempt().state == "failed"
    assert len(looked) == 11
    assert all(later - earlier >= 299 for earlier, later in pairwise(looked))


@pytest.mark.parametrize("mode", ["deferrable", "reschedule"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"soft_fail": True}], ids=str)
def test_connection_that_is_away_for_a_moment_ends_nothing(
    wait: Wait, wire: Wire, submitted: Any, connections: Callable[..., None], mode: str, service: str,
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any],
) -> None:  # fmt: skip
    """
    Airflow says that it is not defined, also when a secrets backend does not answer: a retry waits again.

    A task that has used the connection names the jobs that go on, and is not skipped.
    """
    wire.fault("latency", value="300")
    job_ids = submitted("a", "b")
    name = f"{service}_default"
    task = wait(job_ids, **options)
    build = task.build

    def build_without_connection() -> Any:
        if task.reschedules == 1:
            monkeypatch.delenv(f"AIRFLOW_CONN_{name.upper()}", raising=False)
        return build()

    task.build = build_without_connection
    attempt = task.attempt(
        before_resuming=lambda: monkeypatch.delenv(f"AIRFLOW_CONN_{name.upper()}", raising=False)
    )
    assert attempt.state == "up_for_retry"
    assert f"Connection {name!r}, which this task has used before, cannot be read now" in attempt.message
    assert f"goes on and is billed: {', '.join(job_ids)}. Clearing the task waits" in attempt.message
    connections(name)
    task.build = build
    assert task.attempt().state == "success"


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["deferrable", "reschedule"], indirect=True)
def test_connection_is_looked_up_a_few_times(
    wait: Wait, wire: Wire, submitted: Any, connections: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blip of some seconds needs no retry, which sensors seldom have."""
    wire.fault("latency", value="300")
    task = wait(submitted("a", "b"))
    away_until = 0.0

    def answer(msg: Any) -> Any:
        nonlocal away_until
        away_until = away_until or wire.clock.now + 6
        if wire.clock.now >= away_until:
            connections("distribute_default")
        return comms.ErrorResponse(error=ErrorType.API_SERVER_ERROR)

    monkeypatch.setattr(task, "_on_GetConnection", answer)
    build = task.build

    def build_without_variable() -> Any:
        if task.reschedules == 1:
            monkeypatch.delenv("AIRFLOW_CONN_DISTRIBUTE_DEFAULT", raising=False)
        return build()

    task.build = build_without_variable
    attempt = task.attempt(
        before_resuming=lambda: monkeypatch.delenv("AIRFLOW_CONN_DISTRIBUTE_DEFAULT", raising=False),
        retries_left=False,
    )
    assert attempt.state == "success"
    assert away_until


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["reschedule"], indirect=True)
def test_silent_fail_looks_again(wait: Wait, connections: Callable[..., None], submitted: Any) -> None:
    """Airflow's own option for sensors that look: what went wrong is logged, the next look may go well."""
    [job_id] = submitted("Why?")

    task = wait(job_id, conn_id="comes_later", silent_fail=True)
    build = task.build

    def build_once_more() -> Any:
        if task.reschedules:
            connections("comes_later", connection("distribute"))
        return build()

    task.build = build_once_more
    attempt = task.attempt()
    assert (attempt.state, attempt.reschedules) == ("success", 1)


@pytest.mark.parametrize("service", ["distribute"], indirect=True)
@pytest.mark.parametrize("mode", ["poke"], indirect=True)
def test_outage_is_not_told_at_every_look(wait: Wait, wire: Wire, submitted: Any, log: Log) -> None:
    """Hours of it are a handful of lines."""
    job_ids = submitted("Why?")
    wire.fault("500", operation="look")
    wait(job_ids, timeout=4 * 3600).attempt()
    assert len(wire.looks) > 100
    told = re.findall(r"answered 500.*\((\d+) looks in a row", log.text)
    assert 1 <= len(set(told)) <= 16


@pytest.mark.parametrize(
    "options", [{"exponential_backoff": True}, {"max_wait": 60}, {"silent_fail": True}], ids=str
)
def test_options_without_meaning_are_refused(options: dict[str, Any]) -> None:
    """An option that one way of waiting would ignore in silence is an error while the Dag is parsed."""
    [name] = options
    with DAG("refused", schedule=None):
        for mode in ("deferrable", "poke"):
            with pytest.raises(ValueError, match=f"{name} has no meaning for an AsyncChatSensor whose looks"):
                AsyncChatSensor(task_id=mode, job_id="a", **MODES[mode], **options)
        AsyncChatSensor(task_id="reschedule", job_id="a", **MODES["reschedule"], **options)


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf"), 1e15, "soon"], ids=repr)
@pytest.mark.parametrize("name", ["poke_interval", "timeout"])
def test_durations_are_checked_while_the_dag_is_parsed(mode: str, name: str, number: Any) -> None:
    """A trigger would find out later."""
    with DAG("refused", schedule=None), pytest.raises(ValueError, match=f"{name} must be more than 0"):
        AsyncChatSensor(task_id="wait", job_id="a", **{**MODES[mode], name: number})
