# SPDX-License-Identifier: Apache-2.0

"""Submitting: what is sent, what is refused before, and what a failure says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import DAG, get_current_context

from airflow_provider_distribute.operators.chat import MAX_REQUESTS, SubmitAsyncChatOperator
from tests.airflow.supervisor import HAS_STATE_STORE
from tests.airflow.wire import HOSTS, KEY, MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import XComArg

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire

    Live = Callable[..., Life]

MESSAGES = [{"role": "user", "content": "Why?"}]
MIXED = ["Why?", MESSAGES, {"prompt": "Why?"}, {"messages": MESSAGES, "params": {"temperature": 0.1}}]


def submit(service: str = "distribute", **options: Any) -> Callable[[], SubmitAsyncChatOperator]:
    """Return what a Dag file says."""
    return lambda: SubmitAsyncChatOperator(task_id="submit", conn_id=f"{service}_default", **options)


def upstream(task_id: str) -> XComArg:
    """Return what stands for a task's result in a Dag file."""
    from airflow.providers.standard.operators.empty import EmptyOperator

    return EmptyOperator(task_id=task_id).output


def running_task() -> Any:
    """Return the operator that runs at this moment, in the process that runs it."""
    return get_current_context()["ti"].task


# What is sent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"prompt": "Why?"}, {"messages": MESSAGES}], ids=["prompt", "messages"])
def test_one_question_gives_one_id(service: str, life: Live, wire: Wire, options: dict[str, Any]) -> None:
    """A prompt and its messages are the same question; the XCom is the job's id."""
    task = life(submit(service, **options))
    assert task.attempt().state == "success"
    assert [task.result] == wire.job_ids
    assert wire.prompts == ["Why?"]
    assert wire.jobs[0].model == MODELS[service]
    assert wire.requests[0].url.host == HOSTS[service]


def test_requests_give_ids_in_input_order(service: str, life: Live, wire: Wire) -> None:
    """Every form of request may stand in the list; a list of one gives a list."""
    task = life(submit(service, requests=MIXED))
    assert task.attempt().state == "success"
    assert task.result == wire.job_ids
    assert wire.prompts == ["Why?"] * 4
    single = life(submit(service, requests=["Why?"]))
    assert single.attempt().state == "success"
    assert single.result == wire.job_ids[4:]


def test_empty_list_gives_an_empty_list(life: Live, wire: Wire) -> None:
    """An upstream task that found nothing to ask is no error."""
    task = life(submit(requests=[]))
    assert task.attempt().state == "success"
    assert task.result == []
    assert wire.requests == []


def test_defaults_hold_unless_a_request_says_otherwise(life: Live, wire: Wire) -> None:
    """Model, system prompt, params and metadata apply to every request, and a request's own go before."""
    own = {
        "prompt": "own",
        "model": "Llama-3.3 70B",
        "system_prompt": "Shout.",
        "params": {"seed": 2},
        "metadata": {"team": "b"},
    }
    task = life(
        submit(
            requests=["default", own],
            model="Llama-3.1 8B",
            system_prompt="Whisper.",
            request_params={"seed": 1, "temperature": 0},
            metadata={"team": "a", "cost": 7},
        )
    )
    assert task.attempt().state == "success"
    first, second = wire.submissions
    assert (first["model"], first["seed"], first["temperature"]) == ("Llama-3.1 8B", 1, 0)
    assert (second["model"], second["seed"], second["temperature"]) == ("Llama-3.3 70B", 2, 0)
    assert [body["messages"][0]["content"] for body in (first, second)] == ["Whisper.", "Shout."]
    assert [body["metadata"]["team"] for body in (first, second)] == ["a", "b"]
    assert [body["metadata"]["cost"] for body in (first, second)] == ["7", "7"]


def test_labels_say_where_a_request_comes_from(service: str, life: Live, wire: Wire) -> None:
    """A duplicate can be recognised at the service; the author's own keys stay."""
    task = life(submit(service, requests=["a", "b"], metadata={"airflow_run_id": "mine"}), map_index=3)
    assert task.attempt().state == "success"
    labels = [{name: str(value) for name, value in body["metadata"].items()} for body in wire.submissions]
    common = {
        "airflow_dag_id": "questions",
        "airflow_run_id": "mine",
        "airflow_task_id": "submit",
        "airflow_map_index": "3",
    }
    assert labels == [{**common, "airflow_index": "0"}, {**common, "airflow_index": "1"}]


def test_labels_can_be_switched_off(
    service: str, life: Live, wire: Wire, connections: Callable[..., None]
) -> None:
    """With ``airflow_metadata`` off nothing goes along that the author did not give."""
    connections(f"{service}_default", extra={"model": MODELS[service], "airflow_metadata": False})
    assert life(submit(service, prompt="Why?")).attempt().state == "success"
    assert life(submit(service, prompt="Why?", metadata={"team": "a"})).attempt().state == "success"
    assert [body.get("metadata") for body in wire.submissions] == [None, {"team": "a"}]


def test_fields_are_kept_verbatim() -> None:
    """Airflow renders and serialises what the author wrote, so nothing is changed or checked before."""
    options: dict[str, Any] = {name: object() for name in SubmitAsyncChatOperator.template_fields}
    with DAG("verbatim", schedule=None):
        operator = SubmitAsyncChatOperator(task_id="submit", **options)
    assert {name: getattr(operator, name) for name in options} == options


def test_everything_is_templated(life: Live, wire: Wire) -> None:
    """Templates reach into lists and mappings; a number that was rendered to text is a number again."""
    task = life(
        submit(
            requests=["{{ ti.task_id }}", {"prompt": "{{ ti.xcom_pull('ask') }}"}],
            model="{{ 'Llama-3.1' }} 8B",
            system_prompt="{{ run_id }}",
            request_params={"temperature": "{{ 0.5 }}", "max_completion_tokens": "{{ 100 }}"},
            metadata={"team": "{{ dag.dag_id }}"},
        ),
        ask="Why?",
    )
    assert task.attempt().state == "success"
    assert wire.prompts == ["submit", "Why?"]
    body = wire.submissions[0]
    assert body["messages"][0]["content"] == "manual__2025"
    assert (body["temperature"], body["max_completion_tokens"], body["model"]) == (0.5, 100, "Llama-3.1 8B")
    assert body["metadata"]["team"] == "questions"


def test_upstream_values_need_no_template(life: Live, wire: Wire) -> None:
    """What an upstream task returns is the argument itself; type checkers agree."""

    def requests() -> SubmitAsyncChatOperator:
        return SubmitAsyncChatOperator(
            task_id="submit", requests=upstream("ask"), request_params=upstream("how")
        )

    def prompt() -> SubmitAsyncChatOperator:
        return SubmitAsyncChatOperator(task_id="submit", prompt=upstream("ask"))

    def messages() -> SubmitAsyncChatOperator:
        return SubmitAsyncChatOperator(task_id="submit", messages=upstream("ask"))

    assert life(requests, ask=["a", "b"], how={"seed": 3}).attempt().state == "success"
    assert life(prompt, ask="c").attempt().state == "success"
    assert life(messages, ask=[{"role": "user", "content": "d"}]).attempt().state == "success"
    assert wire.prompts == ["a", "b", "c", "d"]
    assert [body.get("seed") for body in wire.submissions] == [3, 3, None, None]


def test_link_leads_to_the_dashboard(service: str, life: Live, connections: Callable[..., None]) -> None:
    """The link is the connection's, or the vendor's."""
    task = life(submit(service, prompt="Why?"))
    task.attempt()
    assert task.xcom("_link_DashboardLink").startswith("https://")
    connections(
        f"{service}_default", extra={"model": MODELS[service], "dashboard_url": "https://board.example"}
    )
    task = life(submit(service, prompt="Why?"))
    task.attempt()
    assert task.xcom("_link_DashboardLink") == "https://board.example"


# What is refused before anything is sent -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of prompt, messages and requests is needed, not none"),
        ({"prompt": "a", "requests": ["b"]}, r"not \['prompt', 'requests'\]"),
        ({"prompt": "a", "messages": MESSAGES, "requests": ["b"]}, "exactly one"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "no role"}]}, "message 0 has no role"),
        ({"requests": "a text"}, "requests must be a list, not str"),
        ({"requests": {"prompt": "a"}}, "requests must be a list, not dict"),
        ({"requests": ["a"] * (MAX_REQUESTS + 1)}, "1001 requests are more than the 1000 .*BulkOperator"),
        ({"prompt": "a", "request_params": {"max_completion_tokens": 601}}, "max_completion_tokens.*600"),
        ({"prompt": "a", "request_params": {"top_k": 5}}, "top_k: unknown field.*allow_undocumented_params"),
        ({"prompt": "a", "request_params": {"model": "b"}}, "has its own argument"),
        ({"prompt": "a", "request_params": "hot"}, "params and metadata must be mappings"),
    ],
)
def test_wrong_input_fails_for_good(life: Live, wire: Wire, options: dict[str, Any], words: str) -> None:
    """Nothing is sent, and no retry is spent on an input that stays wrong."""
    attempt = life(submit(**options)).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    with pytest.raises(AirflowFailException, match=words):
        raise attempt.error
    assert wire.requests == []


def test_request_without_a_model_is_refused(
    service: str, life: Live, wire: Wire, connections: Callable[..., None]
) -> None:
    """Somebody has to name a model: the request, the task or the connection."""
    connections(f"{service}_default", extra={})
    attempt = life(submit(service, prompt="Why?")).attempt()
    assert attempt.state == "failed"
    assert "neither the request nor the connection names one" in attempt.message
    assert life(submit(service, prompt="Why?", model=MODELS[service])).attempt().state == "success"


def test_all_wrong_requests_are_named_at_once(life: Live, wire: Wire) -> None:
    """One run of the task is enough to see everything that has to be corrected."""
    bad = {"prompt": "c", "params": {"temperature": 9}}
    attempt = life(submit(requests=["a", "", "b", bad, 5])).attempt()
    assert attempt.state == "failed"
    assert "Nothing was paid, and the list of 5 requests was not sent: Request 2 of 5" in attempt.message
    for name in ("Request 4 of 5", "temperature", "Request 5 of 5"):
        assert name in attempt.message
    for name in ("Request 1 of 5", "Request 3 of 5"):
        assert name not in attempt.message
    assert wire.requests == []


def test_a_thousand_wrong_requests_are_not_all_quoted(life: Live) -> None:
    """A message stays readable: it lists a hundred problems."""
    attempt = life(submit(requests=[""] * MAX_REQUESTS)).attempt()
    assert "Request 100 of 1000" in attempt.message
    assert "Request 101 of 1000" not in attempt.message


def test_connection_lets_undocumented_params_through(
    life: Live, wire: Wire, connections: Callable[..., None]
) -> None:
    """The author knows better than the documentation; then the service decides."""
    extra = {"model": MODELS["distribute"], "allow_undocumented_params": True}
    connections("distribute_default", extra=extra)
    wire.fault("400", operation="submit", value="top_k is not allowed")
    attempt = life(submit(prompt="Why?", request_params={"top_k": 5})).attempt()
    assert wire.submissions[0]["top_k"] == 5
    assert "top_k is not allowed" in attempt.message


def test_connection_that_is_wrong_fails_for_good(life: Live, connections: Callable[..., None]) -> None:
    """Every field that is missing or wrong is in the message."""
    connections("distribute_default", password="", extra={"timeout": -1})
    attempt = life(submit(prompt="Why?")).attempt()
    assert attempt.state == "failed"
    assert "the API key is missing; timeout" in attempt.message


# What the service refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "advice"),
    [("401", "password"), ("402", "top up"), ("403", "permission"), ("400", ""), ("404", ""), ("422", "")],
)
def test_refusal_fails_for_good(service: str, life: Live, wire: Wire, status: str, advice: str) -> None:
    """The service's words are in the message, with what to do; Airflow does not try again."""
    wire.fault(status, operation="submit", value="that will not do")
    attempt = life(submit(service, prompt="Why?")).attempt()
    assert attempt.state == "failed"
    assert isinstance(attempt.error, AirflowFailException)
    for words in (status, "that will not do", advice):
        assert words in attempt.message
    assert len(wire.submissions) == 1


def test_kth_failure_names_what_was_accepted(service: str, life: Live, wire: Wire, log: Log) -> None:
    """The jobs that go on are in the error and in the log."""
    wire.fault("402", operation="submit", after=2)
    attempt = life(submit(service, requests=["a", "b", "c", "d"])).attempt()
    assert attempt.state == "failed"
    assert len(wire.job_ids) == 2
    for job_id in wire.job_ids:
        assert job_id in attempt.message
    assert attempt.message in log.text
    assert "Request 3 of 4" in attempt.message
    assert "2 of 4 were accepted" in attempt.message


# What is not sure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    ["408", "500", "502", "503", "504", "reset", "malformed", "empty", "html", "truncated"],
)
def test_unknown_outcome_is_left_to_the_retries(service: str, life: Live, wire: Wire, fault: str) -> None:
    """What was sent and not answered is never sent again within the attempt, and the message says why."""
    wire.fault(fault, operation="submit")
    attempt = life(submit(service, prompt="Why?")).attempt()
    assert attempt.state == "up_for_retry"
    assert isinstance(attempt.error, AirflowException)
    assert "may have been accepted" in attempt.message
    assert len(wire.submissions) == 1


@pytest.mark.parametrize("fault", [{"kind": "429"}, {"kind": "429", "http_date": True}, {"kind": "503"}])
def test_request_that_was_not_accepted_is_sent_again(
    service: str, life: Live, wire: Wire, fault: dict[str, Any]
) -> None:
    """The service said when; the task waits, pays once, and needs no retry."""
    wire.fault(operation="submit", retry_after=40, count=2, **fault)
    before = wire.clock.now
    assert life(submit(service, prompt="Why?")).attempt().state == "success"
    assert wire.paid == 1
    assert wire.clock.now - before >= 80


def test_service_that_is_not_there_is_called_again(service: str, life: Live, wire: Wire) -> None:
    """Nothing was sent, so sending again pays nothing twice."""
    wire.unreachable = 5
    assert life(submit(service, prompt="Why?")).attempt().state == "success"
    assert wire.paid == 1


def test_nobody_waits_for_ever_to_be_accepted(life: Live, wire: Wire) -> None:
    """After an hour Airflow's own retries decide."""
    wire.fault("429", operation="submit")
    before = wire.clock.now
    attempt = life(submit(prompt="Why?")).attempt()
    assert attempt.state == "up_for_retry"
    assert "is not billed" in attempt.message
    assert 3000 < wire.clock.now - before <= 3600


# What stays behind ---------------------------------------------------------------------------------------


def test_nothing_secret_stays_behind(service: str, life: Live, wire: Wire, log: Log) -> None:
    """The key is nowhere; a prompt is only where the author put it, in the rendered fields."""
    wire.fault("500", operation="submit", value=f"do not send {KEY}")
    task = life(submit(service, prompt="a very private question"))
    attempt = task.attempt()
    assert KEY not in task.left_behind() + attempt.message
    assert "private" not in log.text + attempt.message + repr((task.xcoms, task.store))


def test_killed_task_submits_nothing_more(service: str, life: Live, wire: Wire, log: Log) -> None:
    """What was accepted goes on and is named, the rest is not sent, and a retry goes on from there."""
    prompts = [f"question {number}" for number in range(50)]
    wire.listener = lambda request: len(wire.submissions) == 3 and running_task().on_kill()
    task = life(submit(service, requests=prompts))
    attempt = task.attempt()
    assert attempt.state == "up_for_retry"
    assert wire.prompts == prompts[:3]
    assert f"those that have not ended go on and are billed: {', '.join(wire.job_ids[:2])}." in log.text
    assert "Request 4 of 50 failed: The worker was told to stop, so nothing more was sent." in attempt.message
    assert f"Accepted, running and billed: {', '.join(wire.job_ids)}." in attempt.message
    wire.listener = lambda request: None
    assert task.attempt().state == "success"
    assert wire.prompts == (prompts if HAS_STATE_STORE else prompts[:3] + prompts)


def test_task_killed_while_it_waits_to_be_accepted_sends_nothing_more(life: Live, wire: Wire) -> None:
    """The service had not taken the request, and is not asked again."""
    wire.fault("429", operation="submit", retry_after=40, count=1)
    wire.listener = lambda request: running_task().on_kill()
    task = life(submit(prompt="Why?"))
    attempt = task.attempt()
    assert (attempt.state, wire.paid) == ("up_for_retry", 0)
    assert "told to stop, so nothing more was sent" in attempt.message
    wire.listener = lambda request: None
    assert task.attempt().state == "success"
    assert wire.paid == 1


def test_task_killed_at_its_last_request_has_done_its_work(life: Live, wire: Wire) -> None:
    """There is nothing left that must not be sent."""
    wire.listener = lambda request: len(wire.submissions) == 2 and running_task().on_kill()
    assert life(submit(requests=["a", "b"])).attempt().state == "success"


def test_killed_task_that_submitted_nothing_says_nothing(life: Live, wire: Wire, log: Log) -> None:
    """Nothing goes on, so there is nothing to say."""
    wire.listener = lambda request: running_task().on_kill()
    assert life(submit(prompt="Why?")).attempt().state == "success"
    assert "cannot be cancelled" not in log.text
