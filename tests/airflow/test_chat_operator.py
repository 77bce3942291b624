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


# Where nobody knows what became of a job -----------------------------------------------------------------

needs_store = pytest.mark.skipif(not HAS_STATE_STORE, reason="this Airflow has no task state store")
#: Only this service may say that it does not know a job any more.
forgets = pytest.mark.parametrize("service", ["distribute"], indirect=True)
#: Seconds after the submission in which the service finds no job.
NOT_FOUND_FROM, NOT_FOUND_UNTIL = 600, 900


def forget_for_a_while(wire: Wire) -> None:
    """Let the service not find any job for some minutes; the jobs take longer."""
    wire.fault("latency", value="5000")
    began = wire.clock.now

    def listener(request: object) -> None:
        wire.no_faults()
        if NOT_FOUND_FROM < wire.clock.now - began < NOT_FOUND_UNTIL:
            wire.fault("404", operation="look")
        elif wire.clock.now == began:
            wire.fault("latency", value="5000")

    wire.listener = listener


@needs_store
@forgets
def test_lost_jobs_are_looked_at_again_before_anything_is_paid(
    service: str, deferrable: bool, life: Live, wire: Wire
) -> None:
    """Five minutes in which the service finds nothing cost nothing: the retry finds every job, and waits."""
    forget_for_a_while(wire)
    task = life(chat(service, requests=["a", "b", "c"], deferrable=deferrable))
    attempt = task.attempt()
    assert attempt.state == "up_for_retry"
    assert "3 of 3 jobs failed" in attempt.message
    assert f"What became of {', '.join(wire.job_ids)} is unclear. A retry or a clear looks" in attempt.message
    wire.clock.sleep(300)
    assert task.attempt().state == "success"
    assert [it["job_id"] for it in task.result] == wire.job_ids
    assert wire.paid == 3


@needs_store
@forgets
def test_job_that_stays_lost_is_asked_again_by_a_clear(
    service: str, deferrable: bool, life: Live, wire: Wire
) -> None:
    """The second look fails the task for good, before anything is paid, and says what a clear then pays."""
    wire.fault("latency", value="500")
    task = life(chat(service, requests=["a", "b", "c"], deferrable=deferrable))
    lost = ""

    def listener(request: object) -> None:
        nonlocal lost
        if wire.paid == 3 and not lost:
            lost = wire.job_ids[1]
            wire.fault("404", operation="look", job=lost)

    wire.listener = listener
    assert task.attempt().state == "up_for_retry"
    attempt = task.attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    assert f"1 of 3 jobs failed: {lost} (not found)" in attempt.message
    assert "Clearing the task submits, and pays, these again and whatever has failed" in attempt.message
    assert wire.paid == 3
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "c", "b"]


@needs_store
def test_job_that_is_not_shown_is_looked_at_again(
    service: str, deferrable: bool, life: Live, wire: Wire
) -> None:
    """It is taken as soon as the service shows it, and asked again by a clear if it never does."""
    wire.fault("400", operation="look", value="not yours")
    task = life(chat(service, prompt="Why?", deferrable=deferrable))
    assert task.attempt().state == "up_for_retry"
    assert "not yours" in (attempt := task.attempt()).message
    assert attempt.state == "failed"
    assert wire.paid == 1
    assert task.attempt().state == "up_for_retry"
    assert wire.paid == 2
    wire.no_faults()
    assert task.attempt().state == "success"
    assert wire.paid == 2


@needs_store
def test_job_that_turns_out_to_have_failed_is_asked_again(
    service: str, deferrable: bool, life: Live, wire: Wire
) -> None:
    """The second look finds out, and the same attempt submits it, and no other."""
    wire.fault("error", after=1, count=1)
    wire.fault("400", operation="look")
    task = life(chat(service, requests=["a", "b"], deferrable=deferrable))
    assert task.attempt().state == "up_for_retry"
    wire.no_faults()
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "b"]
    assert [it["job_id"] for it in task.result] == [wire.job_ids[0], wire.job_ids[2]]


@needs_store
def test_failed_and_unclear_jobs_pay_nothing_before_the_second_look(
    service: str, life: Live, wire: Wire
) -> None:
    """What has failed is asked again once it is clear that the others need not be."""
    wire.fault("error", count=1)
    task = life(chat(service, requests=["a", "b", "c"]))

    def listener(request: object) -> None:
        if wire.paid == 3:
            wire.fault("400", job=wire.job_ids[1])

    wire.listener = listener
    assert task.attempt().state == "up_for_retry"
    assert task.attempt().state == "failed"
    assert wire.paid == 3
    wire.no_faults()
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "c", "a", "b"]


@needs_store
def test_second_look_without_an_answer_decides_nothing(
    service: str, deferrable: bool, life: Live, wire: Wire
) -> None:
    """The service is away: nothing is submitted, nothing is given up, and a retry looks again."""
    wire.fault("400", operation="look")
    task = life(chat(service, requests=["a", "b"], deferrable=deferrable))
    assert task.attempt().state == "up_for_retry"
    wire.no_faults()
    wire.fault("503", operation="look")
    attempt = task.attempt()
    assert attempt.state == "up_for_retry"
    assert f"What became of {', '.join(wire.job_ids)} is unclear, and the service did not" in attempt.message
    wire.no_faults()
    assert task.attempt().state == "success"
    assert wire.paid == 2


@needs_store
def test_key_that_is_refused_at_the_second_look_gives_nothing_up(
    service: str, life: Live, wire: Wire
) -> None:
    """A person corrects the key, and clears the task: then it looks again."""
    wire.fault("400", operation="look")
    task = life(chat(service, prompt="Why?"))
    assert task.attempt().state == "up_for_retry"
    wire.no_faults()
    wire.fault("401", operation="look")
    attempt = task.attempt()
    assert attempt.state == "failed"
    assert f"Nobody waits any more for {wire.job_ids[0]}" in attempt.message
    wire.no_faults()
    assert task.attempt().state == "success"
    assert wire.paid == 1


@pytest.mark.skipif(HAS_STATE_STORE, reason="this Airflow has a task state store")
def test_without_a_store_unclear_jobs_are_not_retried(service: str, life: Live, wire: Wire) -> None:
    """Any retry would submit them again, and only a person decides to pay for that."""
    wire.fault("400", operation="look")
    attempt = life(chat(service, prompt="Why?")).attempt()
    assert attempt.state == "failed"
    assert "What became of them is unclear, so no retry" in attempt.message


@forgets
def test_worker_looks_once_more_at_what_the_trigger_lost(service: str, life: Live, wire: Wire) -> None:
    """The service finds its jobs again before the task is resumed: they go on, and nothing has failed."""
    forget_for_a_while(wire)
    task = life(chat(service, requests=["a", "b"]))
    attempt = task.attempt(before_resuming=lambda: wire.clock.sleep(300))
    assert attempt.state == "success"
    assert [bool(event.get("lost")) for event in attempt.events] == [True, False]
    assert wire.paid == 2


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


@needs_store
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


def test_broken_trigger_says_what_goes_on(life: Live, wire: Wire, log: Log) -> None:
    """Its trace is in the log, and the error names the jobs that nobody waits for any more."""
    failure = {"error": "Trigger failure", "traceback": ["Traceback …", "KeyError: 'x'"]}
    attempt = life(chat(prompt="Why?")).attempt(instead_of_trigger=failure)
    assert attempt.state == "up_for_retry"
    assert attempt.message.startswith("The trigger failed, and the log says how.")
    assert f"Nobody waits any more for {wire.job_ids[0]}: " in attempt.message
    assert "KeyError: 'x'" in log.text


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


@pytest.mark.parametrize("trouble", ["pending again", "away"])
def test_resumed_task_holds_its_worker_briefly(service: str, life: Live, wire: Wire, trouble: str) -> None:
    """What cannot be fetched at once is waited for by another deferral, with the same deadline."""
    task = life(chat(service, prompt="Why?", timeout=7200))
    resumed: list[float] = []
    held: list[float] = []

    def pending(body: dict[str, Any]) -> None:
        body.update(status="queued", state="Queued")

    def before_trigger() -> None:
        wire.no_faults()
        wire.edited = lambda body: None
        held.extend(wire.clock.now - it for it in resumed[len(held) :])

    def before_resuming() -> None:
        resumed.append(wire.clock.now)
        if len(resumed) > 1:
            return
        if trouble == "away":
            wire.fault("503", operation="look")
        else:
            wire.edited = pending

    attempt = task.attempt(before_trigger=before_trigger, before_resuming=before_resuming)
    assert attempt.state == "success"
    assert len(held) == 1
    assert held[0] <= 90
    assert attempt.triggers[0] == attempt.triggers[1]


def test_outage_past_the_deadline_is_the_deadline(life: Live, wire: Wire) -> None:
    """There is no waiting again when the time is over."""
    task = life(chat(prompt="Why?", timeout=100))
    attempt = task.attempt(before_resuming=lambda: wire.fault("503", operation="look"))
    assert attempt.state == "up_for_retry"
    assert "not seen yet" in attempt.message


def test_late_resumption_is_a_look_and_the_deadline(life: Live, wire: Wire) -> None:
    """The job had ended in time, but a worker was free only later, and the service is away by then."""
    task = life(chat(prompt="Why?", timeout=100))

    def late() -> None:
        wire.clock.sleep(200)
        wire.fault("503", operation="look")

    attempt = task.attempt(before_resuming=late)
    assert attempt.state == "up_for_retry"
    assert "1 of 1 jobs still pending" in attempt.message
    assert len(attempt.triggers) == 1


def test_connection_that_has_become_wrong_names_the_jobs(
    service: str, life: Live, wire: Wire, connections: Callable[..., None]
) -> None:
    """Somebody has to correct it, and then clear the task; that is no matter of trying again."""
    task = life(chat(service, requests=["a", "b"]))
    attempt = task.attempt(before_resuming=lambda: connections(f"{service}_default", password=""))
    assert attempt.state == "failed"
    assert "the API key is missing" in attempt.message
    assert f"Nobody waits any more for {', '.join(wire.job_ids)}" in attempt.message


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


def test_field_of_a_newer_triggerer_is_ignored(life: Live, wire: Wire) -> None:
    """Triggerer and workers are not upgraded in the same instant."""
    task = life(chat(prompt="Why?"))
    event = {"verdict": "ended", "succeeded": 1, "looks": 7}
    assert task.attempt(instead_of_trigger={"event": event}).state == "success"


@pytest.mark.parametrize("beside", [{"map_index": 1}, {"run_id": "scheduled__2025"}], ids=str)
def test_tasks_beside_each_other_do_not_mix(life: Live, wire: Wire, beside: dict[str, Any]) -> None:
    """Each index of a mapped task, and each run, finds the ids of its own jobs again."""
    task = life(chat(prompt="first"), map_index=0)
    other = life(chat(prompt="second"), beside=task, **{"map_index": 0, **beside})
    lost = {"event": {"verdict": "ended", "succeeded": 1}}

    def meanwhile() -> None:
        assert other.attempt(instead_of_trigger=lost).state == "success"

    assert task.attempt(before_trigger=meanwhile, instead_of_trigger=lost).state == "success"
    assert [task.result["job_id"], other.result["job_id"]] == wire.job_ids


@pytest.mark.parametrize(
    "keys", [["__classname__", "__version__", "__data__"], ["__id__"], ["__type", "__var"]]
)
def test_keys_that_airflow_reserves_can_be_stored(
    service: str, deferrable: bool, life: Live, wire: Wire, keys: list[str]
) -> None:
    """A service may say anything in its answer: Airflow stores it, and a downstream task reads the same."""
    reserved = dict.fromkeys(keys, "dict")

    def spiced(body: dict[str, Any]) -> None:
        answer = body if service == "distribute" else body["response"]
        answer["usage"] = reserved
        answer["choices"][0]["deep"] = [reserved]

    wire.edited = spiced
    task = life(chat(service, prompt="Why?", deferrable=deferrable))
    assert task.attempt().state == "success"
    told = {key if key in ("__version__", "__data__") else f"reserved:{key}": "dict" for key in keys}
    assert task.result["usage"] == told
    assert task.result["choices"][0]["deep"] == [told]


@pytest.mark.parametrize("options", [{}, {"resend_for": 3600}, {"timeout": 3600}], ids=str)
def test_nobody_is_called_for_hours(
    service: str, deferrable: bool, life: Live, wire: Wire, options: dict[str, Any]
) -> None:
    """A service that is not there has been paid nothing: after an hour Airflow's own retries decide."""
    wire.unreachable = 10**9
    before = wire.clock.now
    attempt = life(chat(service, requests=["a", "b"], deferrable=deferrable, **options)).attempt()
    assert attempt.state == "up_for_retry"
    assert "could not be reached" in attempt.message
    assert 3000 < wire.clock.now - before <= 3600


def test_nothing_is_sent_again_after_the_deadline(life: Live, wire: Wire) -> None:
    """However long the author lets each request be sent again."""
    wire.fault("429", operation="submit", retry_after=50, count=4)
    wire.fault("429", operation="submit", after=1)
    before = wire.clock.now
    attempt = life(chat(requests=["a", "b"], timeout=600, resend_for=timedelta(hours=2))).attempt()
    assert attempt.state == "up_for_retry"
    assert "Request 2 of 2 failed" in attempt.message
    assert 300 < wire.clock.now - before <= 600


def test_nothing_secret_stays_behind(service: str, life: Live, wire: Wire, log: Log) -> None:
    """Key, question and answer are in no trigger, event, log, error or record."""
    wire.fault("text", value="a very private answer")
    task = life(chat(service, prompt="a very private question"))
    attempt = task.attempt()
    assert attempt.state == "success"
    assert KEY not in repr(attempt) + task.left_behind()
    assert "private" not in repr(attempt) + log.text
