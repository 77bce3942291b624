# SPDX-License-Identifier: Apache-2.0

"""Submit, wait and fetch in one task."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_distribute.operators.chat import AsyncChatOperator
from tests.airflow.supervisor import HAS_STATE_STORE, deserialize, serialize
from tests.airflow.wire import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire

    Live = Callable[..., Life]

RESULT_FIELDS = {
    "job_id", "service", "status", "content", "finish_reason", "tool_calls", "choices", "usage", "model",
    "created_at", "finished_at", "error",
}  # fmt: skip


def chat(service: str = "distribute", **options: Any) -> Callable[[], AsyncChatOperator]:
    """Return what a Dag file says."""
    return lambda: AsyncChatOperator(task_id="chat", conn_id=f"{service}_default", **options)


@pytest.fixture(params=[True, False], ids=["deferrable", "on the worker"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    """Where the task waits; it ends the same way."""
    return bool(request.param)


# Where it ends well --------------------------------------------------------------------------------------


def test_question_gives_its_result(service: str, deferrable: bool, life: Live, wire: Wire) -> None:
    """The XCom is one result: plain JSON, the same after Airflow's serialisation."""
    wire.fault("latency", value="600")
    task = life(chat(service, prompt="Why?", deferrable=deferrable))
    attempt = task.attempt()
    assert attempt.state == "success"
    result = task.result
    assert result.keys() == RESULT_FIELDS
    assert (result["job_id"], result["service"], result["status"]) == (wire.job_ids[0], service, "succeeded")
    assert result["content"]
    assert json.loads(json.dumps(result)) == result == deserialize(serialize(result))
    assert len(attempt.triggers) == deferrable


def test_requests_give_results_in_input_order(service: str, deferrable: bool, life: Live, wire: Wire) -> None:
    """Whichever ends first."""
    wire.fault("latency", value="900", count=1)
    task = life(chat(service, requests=["slow", "quick"], deferrable=deferrable))
    assert task.attempt().state == "success"
    assert [result["job_id"] for result in task.result] == wire.job_ids


def test_nothing_to_ask_is_nothing_to_wait_for(deferrable: bool, life: Live, wire: Wire) -> None:
    """An empty list does not defer."""
    task = life(chat(requests=[], deferrable=deferrable))
    attempt = task.attempt()
    assert (attempt.state, attempt.triggers, task.result) == ("success", [], [])
    assert wire.requests == []


def test_deferral_carries_ids_and_numbers_only(service: str, life: Live, wire: Wire) -> None:
    """What goes to the triggerer's table is small and says nothing about the question or the key."""
    started = wire.clock.now
    task = life(chat(service, prompt="a private question", timeout=3600, poke_interval=timedelta(seconds=10)))
    attempt = task.attempt()
    [(path, arguments)] = attempt.triggers
    assert path == "airflow_provider_distribute.triggers.chat.AsyncChatTrigger"
    assert arguments == {
        "conn_id": f"{service}_default",
        "job_ids": wire.job_ids,
        "deadline": started + 3600,
        "poke_interval": 10.0,
    }
    assert len(json.dumps(arguments)) < 4096
    assert attempt.events == [{"verdict": "ended", "succeeded": 1}]


def test_airflows_own_limit_lies_behind_the_deadline(life: Live, wire: Wire) -> None:
    """The trigger's deadline ends the wait in plain words; Airflow's limit is only a net."""
    attempt = life(chat(prompt="Why?", timeout=timedelta(hours=1))).attempt()
    assert attempt.timeouts[0] > 3600


def test_link_is_there_while_deferred(life: Live, wire: Wire) -> None:
    """Whoever looks at a waiting task wants to see its jobs at the service."""
    task = life(chat(prompt="Why?"))
    links: list[str] = []
    task.attempt(before_trigger=lambda: links.append(task.xcom("_link_DashboardLink")))
    assert links == ["https://dashboard.distribute.ai/enterprise"]


# Where jobs fail -----------------------------------------------------------------------------------------


def test_failed_jobs_fail_the_task(service: str, deferrable: bool, life: Live, wire: Wire) -> None:
    """The error names each failed job with the service's words, and Airflow may retry."""
    wire.fault("error", value="model overloaded", after=1, count=1)
    attempt = life(chat(service, requests=["a", "b", "c"], deferrable=deferrable)).attempt()
    assert attempt.state == "up_for_retry"
    first, failed, third = wire.job_ids
    assert failed in attempt.message
    assert "1 of 3 jobs failed" in attempt.message
    assert {first, third}.isdisjoint(attempt.message.split())
    if service == "inference_net":
        assert "model overloaded" in attempt.message


@pytest.mark.skipif(not HAS_STATE_STORE, reason="this Airflow has no task state store")
def test_retry_asks_only_failed_jobs_again(service: str, deferrable: bool, life: Live, wire: Wire) -> None:
    """What succeeded is fetched again, which costs nothing."""
    wire.fault("error", after=1, count=1)
    task = life(chat(service, requests=["a", "b", "c"], deferrable=deferrable))
    assert task.attempt().state == "up_for_retry"
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "c", "b"]
    assert [it["job_id"] for it in task.result] == [wire.job_ids[place] for place in (0, 3, 2)]


def test_failed_jobs_can_be_results(service: str, deferrable: bool, life: Live, wire: Wire) -> None:
    """With ``fail_on_error=False`` the result says what went wrong, and the record is gone."""
    wire.fault("error", value="model overloaded", count=1)
    task = life(chat(service, requests=["a", "b"], deferrable=deferrable, fail_on_error=False))
    assert task.attempt().state == "success"
    assert [result["status"] for result in task.result] == ["failed", "succeeded"]
    assert task.result[0]["error"]["type"] == "failed"
    assert task.store == {}


# Where the deadline passes -------------------------------------------------------------------------------


def test_deadline_says_what_goes_on(service: str, deferrable: bool, life: Live, wire: Wire) -> None:
    """The error lists the pending jobs in the service's words, and that they are billed."""
    wire.fault("never", count=1)
    attempt = life(chat(service, requests=["a", "b"], timeout=3600, deferrable=deferrable)).attempt()
    assert attempt.state == "up_for_retry"
    assert isinstance(attempt.error, AirflowException)
    word = wire.jobs[0].status
    assert f"1 of 2 jobs still pending: {wire.job_ids[0]} ({word})" in attempt.message
    assert "billed" in attempt.message


@pytest.mark.skipif(not HAS_STATE_STORE, reason="this Airflow has no task state store")
def test_retry_after_the_deadline_waits_for_the_same_jobs(
    service: str, deferrable: bool, life: Live, wire: Wire
) -> None:
    """Jobs that were paid are not given up: the retry has a deadline of its own."""
    wire.fault("latency", value="5000")
    task = life(chat(service, requests=["a", "b"], timeout=3600, deferrable=deferrable))
    assert task.attempt().state == "up_for_retry"
    assert task.attempt().state == "success"
    assert wire.paid == 2


def test_no_triggerer_until_airflows_limit_is_a_last_look(service: str, life: Live, wire: Wire) -> None:
    """When Airflow ends a deferral that no triggerer kept, what has ended meanwhile is fetched."""
    task = life(chat(service, prompt="Why?"))
    attempt = task.attempt(instead_of_trigger={"error": "Trigger timeout"})
    assert attempt.state == "success"
    assert task.result["job_id"] == wire.job_ids[0]


def test_last_look_at_pending_jobs_is_the_deadline(life: Live, wire: Wire) -> None:
    """What is still pending then is named as at any deadline."""
    wire.fault("never")
    attempt = life(chat(prompt="Why?")).attempt(instead_of_trigger={"error": "Trigger timeout"})
    assert attempt.state == "up_for_retry"
    assert "still pending" in attempt.message


def test_broken_trigger_is_airflows_business(life: Live, wire: Wire) -> None:
    """A trigger that could not run fails the attempt as any deferral does."""
    attempt = life(chat(prompt="Why?")).attempt(instead_of_trigger={"error": "Trigger failure"})
    assert attempt.state == "up_for_retry"


# Where the service or the triggerer is in the way --------------------------------------------------------


@pytest.mark.parametrize("status", ["401", "402", "403"])
def test_key_that_is_not_accepted_fails_for_good(
    service: str, deferrable: bool, life: Live, wire: Wire, status: str
) -> None:
    """While waiting as while submitting: a person has to act, and the message says how."""
    wire.fault(status, operation="look")
    attempt = life(chat(service, prompt="Why?", deferrable=deferrable)).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    assert "then clear the task" in attempt.message
    assert KEY not in attempt.message


def test_outage_fails_nothing(service: str, deferrable: bool, life: Live, wire: Wire) -> None:
    """500, resets and nonsense for a while: paid work is waited for."""
    for kind in ("500", "reset", "malformed", "502", "html"):
        wire.fault(kind, operation="look", count=4)
    task = life(chat(service, prompt="Why?", deferrable=deferrable))
    assert task.attempt().state == "success"
    assert wire.paid == 1


def test_outage_while_fetching_waits_again(life: Live, wire: Wire) -> None:
    """The trigger saw the job ended, and then the service is away: the triggerer takes over again."""
    task = life(chat(prompt="Why?"))
    outages = iter([{"count": 1000}, {"count": 1}])
    attempt = task.attempt(
        before_trigger=wire.no_faults,
        before_resuming=lambda: wire.fault("503", operation="look", **next(outages)),
    )
    assert attempt.state == "success"
    assert len(attempt.triggers) == 2
    assert attempt.triggers[0] == attempt.triggers[1]


def test_outage_past_the_deadline_is_the_deadline(life: Live, wire: Wire) -> None:
    """There is no waiting again when the time is over."""
    task = life(chat(prompt="Why?", timeout=100))
    attempt = task.attempt(before_resuming=lambda: wire.fault("503", operation="look"))
    assert attempt.state == "up_for_retry"
    assert "not seen yet" in attempt.message


@pytest.mark.parametrize("event", [None, {}, {"verdict": "wonderful"}, {"version": 2}, "ended", 7])
def test_event_that_is_not_ours_is_no_success(life: Live, wire: Wire, event: Any) -> None:
    """Worker and triggerer may run different releases; the retry waits again."""
    task = life(chat(prompt="Why?"))
    attempt = task.attempt(instead_of_trigger={"event": event})
    assert attempt.state == "up_for_retry"
    assert "The trigger's event cannot be read" in attempt.message


def test_arguments_of_a_deferral_may_get_lost(life: Live, wire: Wire) -> None:
    """``dag.test()`` resumes with the event alone; the ids are in an XCom as well."""
    task = life(chat(requests=["a", "b"]))
    attempt = task.attempt(instead_of_trigger={"event": {"verdict": "ended", "succeeded": 2}})
    assert attempt.state == "success"
    assert [it["job_id"] for it in task.result] == wire.job_ids


def test_nothing_secret_stays_behind(service: str, life: Live, wire: Wire, log: Log) -> None:
    """Key, question and answer are in no trigger, event, log, error or record."""
    wire.fault("text", value="a very private answer")
    task = life(chat(service, prompt="a very private question"))
    attempt = task.attempt()
    assert attempt.state == "success"
    assert KEY not in repr(attempt) + task.left_behind()
    assert "private" not in repr(attempt) + log.text
