# SPDX-License-Identifier: Apache-2.0

"""What a retry pays for: the record of submissions in Airflow's task state store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import get_current_context

from airflow_provider_distribute.operators.chat import AsyncChatOperator, SubmitAsyncChatOperator
from tests.airflow.supervisor import HAS_STATE_STORE
from tests.airflow.wire import Killed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire

    Live = Callable[..., Life]

needs_store = pytest.mark.skipif(not HAS_STATE_STORE, reason="this Airflow has no task state store")

OPERATORS = [SubmitAsyncChatOperator, AsyncChatOperator]


@pytest.fixture(params=OPERATORS, ids=lambda operator: operator.__name__)
def operator(request: pytest.FixtureRequest) -> Any:
    """Each of the operators that submit."""
    return request.param


def asking(operator: Any, prompts: list[str], **options: Any) -> Callable[[], Any]:
    """Return what a Dag file says; the prompts may change between attempts."""
    return lambda: operator(task_id="ask", requests=list(prompts), **options)


@pytest.mark.skipif(HAS_STATE_STORE, reason="this Airflow has a task state store")
def test_without_a_store_a_retry_pays_again(operator: Any, life: Live, wire: Wire, log: Log) -> None:
    """Before Airflow 3.3 nothing survives an attempt, and the log and the error say so."""
    wire.fault("500", operation="submit", after=1, count=1)
    task = life(asking(operator, ["a", "b"]))
    attempt = task.attempt()
    assert "keeps no task state (3.3 does): a retry submits, and pays, again" in log.text
    assert "A retry submits all of them again" in attempt.message
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "a", "b"]


@needs_store
def test_retry_submits_only_what_has_no_id(operator: Any, life: Live, wire: Wire, log: Log) -> None:
    """What was accepted is not paid again, and the results are in input order all the same."""
    wire.fault("402", operation="submit", after=2, count=1)
    task = life(asking(operator, ["a", "b", "c"]))
    attempt = task.attempt()
    assert "A retry submits only the rest" in attempt.message
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "c"]
    assert "keeps no task state" not in log.text
    for job_id in wire.job_ids[:2]:
        assert f"Re-attached to job {job_id}" in log.text
    results = [it if isinstance(it, str) else it["job_id"] for it in task.result]
    assert results == wire.job_ids


@needs_store
def test_refused_request_leaves_no_doubt(operator: Any, life: Live, wire: Wire, log: Log) -> None:
    """The service said no, so the retry sends it without a warning."""
    wire.fault("402", operation="submit", count=1)
    task = life(asking(operator, ["a"]))
    assert isinstance(task.attempt().error, AirflowFailException)
    assert task.attempt().state == "success"
    assert "may be paid twice" not in log.text


@needs_store
def test_unknown_outcome_stays_in_doubt(operator: Any, life: Live, wire: Wire, log: Log) -> None:
    """The retry sends it again, as the author's ``retries`` say, and warns that it may be paid twice."""
    wire.fault("reset", operation="submit", after=1, count=1, accepted=True)
    task = life(asking(operator, ["a", "b"]))
    assert task.attempt().state == "up_for_retry"
    assert "may be paid twice" not in log.text
    assert task.attempt().state == "success"
    assert "An earlier attempt was sending request 2 of 2 when it ended" in log.text
    assert wire.prompts == ["a", "b", "b"]


@needs_store
def test_crash_between_acceptance_and_record_leaves_a_doubt(
    operator: Any, life: Live, wire: Wire, log: Log
) -> None:
    """The intent was written before the money was spent, so the loss is one request, and it is named."""
    wire.killed_after = 3
    task = life(asking(operator, ["a", "b", "c", "d"]))
    with pytest.raises(Killed):
        task.attempt()
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "c", "c", "d"]
    assert "request 3 of 4" in log.text


@needs_store
def test_crash_after_submitting_pays_nothing_again(life: Live, wire: Wire) -> None:
    """A worker that dies between the last submission and the deferral costs nothing."""
    task = life(asking(AsyncChatOperator, ["a", "b"]))
    task.killed_by = lambda msg: type(msg).__name__ == "DeferTask"
    with pytest.raises(Killed):
        task.attempt()
    task.killed_by = lambda msg: False
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b"]


@needs_store
def test_changed_input_is_a_new_request(operator: Any, life: Live, wire: Wire, log: Log) -> None:
    """A job answers the question it was asked; the log lists those that nobody waits for any more."""
    prompts = ["a", "b", "c"]
    wire.fault("402", operation="submit", after=3, count=1)
    task = life(asking(operator, [*prompts, "d"]))
    task.attempt()
    task.build = asking(operator, ["a", "changed"])
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "c", "changed"]
    orphans = ", ".join(wire.job_ids[1:3])
    assert f"have changed since an earlier attempt. Its jobs go on and are billed: {orphans}." in log.text


@needs_store
@pytest.mark.parametrize(
    ("earlier", "later", "paid"),
    [
        (["a", "b", "c", "d"], ["a", "c", "d", "e"], ["a", "b", "c", "d", "e"]),
        (["a", "b", "c", "d"], ["new", "d", "c", "b", "a"], ["a", "b", "c", "d", "new"]),
        (["a", "a", "b"], ["b", "a", "a", "a"], ["a", "a", "b", "a"]),
        (["a", "b"], ["b", "b"], ["a", "b", "b"]),
    ],
    ids=["removed", "moved", "the same several times", "once for each"],
)
def test_place_in_the_list_does_not_matter(
    operator: Any, life: Live, wire: Wire, earlier: list[str], later: list[str], paid: list[str]
) -> None:
    """A request that was paid is found again wherever it stands now, once for each time it was paid."""
    wire.fault("402", operation="submit", after=len(earlier), count=1)
    task = life(asking(operator, [*earlier, "too much"]))
    task.attempt()
    task.build = asking(operator, later)
    assert task.attempt().state == "success"
    assert wire.prompts == paid
    prompts = dict(zip(wire.job_ids, wire.prompts, strict=True))
    results = [it if isinstance(it, str) else it["job_id"] for it in task.result]
    assert [prompts[job_id] for job_id in results] == later
    assert len(set(results)) == len(later)


@needs_store
def test_input_that_is_as_it_was_finds_its_jobs_again(life: Live, wire: Wire) -> None:
    """A list that was wrong for one attempt loses nothing: what was paid for the right one is still known."""
    wire.fault("402", operation="submit", after=2, count=1)
    task = life(asking(SubmitAsyncChatOperator, ["a", "b", "c"]))
    task.attempt()
    wire.fault("402", operation="submit", after=1, count=1)
    task.build = asking(SubmitAsyncChatOperator, ["wrong", "list"])
    task.attempt()
    task.build = asking(SubmitAsyncChatOperator, ["a", "b", "c"])
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "wrong", "c"]
    assert task.result == [wire.job_ids[place] for place in (0, 1, 3)]


@needs_store
@pytest.mark.parametrize("change", ["connection", "host"])
def test_jobs_of_another_service_or_host_are_not_taken_over(
    operator: Any, life: Live, wire: Wire, log: Log, connections: Callable[..., None], change: str
) -> None:
    """An id means nothing elsewhere: the requests are new there, and the log lists the jobs that go on."""
    wire.fault("402", operation="submit", after=2, count=1)
    task = life(asking(operator, ["a", "b", "c"], model="a model"))
    task.attempt()
    before, conn_id = wire.job_ids, "distribute_default"
    if change == "connection":
        conn_id = "inference_net_default"
    else:
        connections(conn_id, host="http://api.distribute.ai")
    task.build = asking(operator, ["a", "b", "c"], model="a model", conn_id=conn_id)
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b", "a", "b", "c"]
    results = [it if isinstance(it, str) else it["job_id"] for it in task.result]
    assert results == wire.job_ids[2:]
    assert f"Its jobs go on and are billed: {', '.join(before)}." in log.text


@needs_store
def test_metadata_alone_changes_no_question(life: Live, wire: Wire) -> None:
    """The question is model, messages and params; what only labels it pays nothing twice."""
    wire.fault("402", operation="submit", after=1, count=1)
    task = life(asking(SubmitAsyncChatOperator, ["a", "b"], metadata={"try": 1}))
    task.attempt()
    task.build = asking(SubmitAsyncChatOperator, ["a", "b"], metadata={"try": 2})
    assert task.attempt().state == "success"
    assert wire.prompts == ["a", "b"]


@needs_store
def test_finished_task_leaves_no_record(operator: Any, life: Live, wire: Wire) -> None:
    """Clearing a finished task asks, and pays, anew."""
    task = life(asking(operator, ["a"]))
    for paid in (1, 2):
        assert task.attempt().state == "success"
        assert task.store == {}
        assert wire.paid == paid


@needs_store
def test_unreadable_store_fails_before_anything_is_paid(operator: Any, life: Live, wire: Wire) -> None:
    """A record that cannot be read is not the same as no record."""
    task = life(asking(operator, ["a"]))
    task.store_fails = True
    assert task.attempt().state == "up_for_retry"
    assert wire.requests == []
    task.store_fails = False
    assert task.attempt().state == "success"


@needs_store
def test_long_lists_are_kept_over_several_keys(operator: Any, life: Live, wire: Wire) -> None:
    """250 requests: what is written for one more stays small, and a retry finds all of them."""
    prompts = [f"question {number}" for number in range(250)]
    wire.fault("402", operation="submit", after=205, count=1)
    task = life(asking(operator, prompts))
    task.attempt()
    assert len(task.store) == 3
    assert max(len(str(value)) for value in task.store.values()) < 8192
    assert task.attempt().state == "success"
    assert wire.prompts == prompts
    assert task.store == {}


@needs_store
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_crash_while_the_record_is_dropped_pays_nothing_again(
    operator: Any, life: Live, wire: Wire, step: int
) -> None:
    """However many keys it has, it is dropped as a whole: until then the next attempt finds every job."""
    prompts = [f"question {number}" for number in range(250)]
    task = life(asking(operator, prompts))
    handed_over, steps = False, 0

    def dies(msg: Any) -> bool:
        nonlocal handed_over, steps
        handed_over = handed_over or (type(msg).__name__, getattr(msg, "key", "")) == (
            "SetXCom",
            "return_value",
        )
        steps += handed_over and type(msg).__name__.endswith("TaskStateStore")
        return steps == step

    task.killed_by = dies
    with pytest.raises(Killed):
        task.attempt()
    task.killed_by = lambda msg: False
    assert task.attempt().state == "success"
    assert wire.paid == 250
    assert task.store == {}


@needs_store
def test_store_that_fails_at_the_end_fails_nothing(operator: Any, life: Live, wire: Wire, log: Log) -> None:
    """The results are handed over by then; the log says what a clear will do."""
    task = life(asking(operator, ["a", "b"]))
    task.deletes_fail = True
    assert task.attempt(retries_left=False).state == "success"
    assert "If this task is cleared, it waits for the same jobs again" in log.text
    assert task.attempt(retries_left=False).state == "success"
    assert wire.paid == 2


@needs_store
def test_store_that_fails_after_the_last_request_fails_nothing(
    operator: Any, life: Live, wire: Wire, log: Log
) -> None:
    """Every job is known: giving them up would pay for one of them again."""
    task = life(asking(operator, ["a", "b"]))

    def fails(request: Any) -> None:
        task.next_write_fails = len(wire.submissions) == 2 and not wire.looks

    wire.listener = fails
    assert task.attempt(retries_left=False).state == "success"
    assert wire.paid == 2
    assert "All requests were accepted, but the record of the last one could not be written" in log.text


@needs_store
@pytest.mark.parametrize("fault", ["402", "stopped"])
def test_doubt_outlives_a_request_that_is_not_taken(
    operator: Any, life: Live, wire: Wire, log: Log, fault: str
) -> None:
    """The request before it may have been accepted all the same: the attempt after next says so as well."""
    wire.fault("500", operation="submit", count=1)
    task = life(asking(operator, ["a", "b"]))
    task.attempt()
    wire.fault("402" if fault == "402" else "429", operation="submit", count=1, retry_after=40)
    if fault == "stopped":
        wire.listener = lambda request: get_current_context()["ti"].task.on_kill()
    task.attempt()
    wire.listener = lambda request: None
    assert log.text.count("it is sent again, and may be paid twice") == 1
    assert task.attempt().state == "success"
    assert log.text.count("it is sent again, and may be paid twice") == 2


@needs_store
def test_missing_key_hides_no_other(operator: Any, life: Live, wire: Wire) -> None:
    """Airflow drops keys by their age, and people can: what else there is still counts."""
    prompts = [f"question {number}" for number in range(250)]
    wire.fault("402", operation="submit", after=249, count=1)
    task = life(asking(operator, prompts))
    task.attempt()
    del task.store["distribute.submitted.0"]
    assert task.attempt().state == "success"
    assert wire.prompts == [*prompts[:249], *prompts[:100], prompts[249]]


@needs_store
def test_record_holds_fingerprints_and_ids_only(life: Live, wire: Wire) -> None:
    """Neither a prompt nor an answer goes into the store."""
    wire.fault("402", operation="submit", after=1)
    task = life(asking(SubmitAsyncChatOperator, ["a very private question", "b"]))
    task.attempt()
    [[entry]] = task.store.values()
    assert entry[1:] == wire.job_ids
    assert int(entry[0], 16)
