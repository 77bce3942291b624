# SPDX-License-Identifier: Apache-2.0

"""What each service says, oddities included."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.exchange import Operation
from tests.emulator.wire import KEY, NOON, TOKENS, Wire, chat

if TYPE_CHECKING:
    from collections.abc import Callable

#: An integer of 401 digits: JSON, but no double can hold it.
HUGE = 10**400
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def distribute() -> Wire:
    """Distribute, whose jobs take 100 seconds."""
    return Wire("distribute", latency="100")


@pytest.fixture
def inference_net() -> Wire:
    """inference.net, whose jobs take 100 seconds."""
    return Wire("inference_net", latency="100")


def said(body: bytes) -> str:
    """The message of an error body of either service."""
    error = json.loads(body)
    return str(error["message"] if "message" in error else error["error"]["message"])


class TestKey:
    """Authentication."""

    @pytest.mark.parametrize("header", [None, "", "wrong", "Bearer wrong", f"Bearer{KEY}", f"Basic {KEY}"])
    def test_a_missing_or_wrong_key_is_401(self, wire: Callable[..., Wire], header: str | None) -> None:
        """On submissions and on looks, whether or not the job exists."""
        wired = wire()
        job = wired.job()
        wired.header = header
        assert [wired.submit().status, wired.look(job).status, wired.look("x").status] == [401] * 3
        assert wired.emulator.ledger.paid[wired.service] == 1

    def test_distribute_takes_the_raw_key_and_inference_net_a_bearer(
        self, distribute: Wire, inference_net: Wire
    ) -> None:
        """The one's header is the other's mistake."""
        distribute.header, inference_net.header = f"Bearer {KEY}", KEY
        assert "as it is" in said(distribute.submit().body)
        assert "bearer token" in said(inference_net.submit().body)

    def test_distribute_may_be_told_to_expect_a_prefix(self) -> None:
        """Then the raw key is wrong."""
        wired = Wire("distribute", auth_prefix="Bearer ")
        assert wired.submit().status == 401
        wired.header = f"Bearer {KEY}"
        assert wired.submit().status == 200

    def test_without_a_configured_key_any_key_of_the_right_form_will_do(
        self, wire: Callable[..., Wire]
    ) -> None:
        """But none will not."""
        wired = wire(key=None)
        assert wired.submit().status == 200
        wired.header = None
        assert wired.submit().status == 401

    def test_the_catalogue_needs_no_key(self, inference_net: Wire) -> None:
        """``GET /v1/models`` was seen to answer without one."""
        inference_net.header = None
        reply = inference_net.send(Operation.MODELS)
        assert reply.status == 200
        assert "id" in json.loads(reply.body)["data"][0]

    def test_distribute_has_no_catalogue(self) -> None:
        """No page documents one."""
        assert Operation.MODELS not in {route.operation for route in CONTRACTS["distribute"].routes}


class TestSubmission:
    """What is accepted, and what is refused with which words."""

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            (
                {"max_completion_tokens": 601},
                "max_completion_tokens must be less than or equal to 600, got 601",
            ),
            (
                {"max_completion_tokens": -2},
                "max_completion_tokens must be greater than or equal to -1, got -2",
            ),
            ({"response_format": {"type": "json_object"}}, "unrecognized field response_format"),
            ({"max_tokens": 5}, "unrecognized field max_tokens"),
            ({"model": 1}, "model must be a string"),
            ({"messages": "hello"}, "messages must be an array"),
            ({"messages": [{"role": "user"}]}, "messages[0].content is required"),
            ({"messages": [{"role": "user", "content": None}]}, "messages[0].content must be a string"),
            ({"messages": ["hello"]}, "messages[0] must be an object"),
            ({"messages": [{"role": "boss", "content": ""}]}, "messages[0].role must be one of system, user"),
            ({"metadata": {"row": 1}}, "metadata.row must be a string"),
            ({"n": 3}, "n must be one of 1, 2, got 3"),
            ({"n": True}, "n must be a number"),
            ({"n": HUGE}, "n must be a number"),
            ({"temperature": -HUGE}, "temperature must be a number"),
            ({"max_completion_tokens": HUGE}, "max_completion_tokens must be a number"),
            ({"stop": "."}, "stop must be an array"),
            ({"stream": 1}, "stream must be a boolean"),
            ({"tool_choice": 1}, "tool_choice must be a string"),
            ({"tool_choice": "required"}, "tools does not hold"),
            ({"tool_choice": {"type": "function"}}, "tools does not hold"),
            ({"metadata": {"emulate": "explode"}}, "no word 'explode'"),
        ],
    )
    def test_distribute_refuses(self, distribute: Wire, fields: dict[str, Any], says: str) -> None:
        """With 400 and ``{"message": ...}``; nothing is paid."""
        reply = distribute.submit(**fields)
        assert (reply.status, list(json.loads(reply.body))) == (400, ["message"])
        assert says in said(reply.body)
        assert not distribute.emulator.ledger.paid

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"max_tokens": 0}, "max_tokens must be greater than or equal to 1, got 0"),
            ({"max_tokens": 1.5}, "max_tokens must be an integer"),
            ({"max_tokens": HUGE}, "max_tokens must be an integer"),
            ({"n": -HUGE}, "n must be an integer"),
            ({"temperature": HUGE}, "temperature must be a number"),
            ({"messages": [{"content": "hello"}]}, "messages[0].role is required"),
            ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content must be a string"),
            (
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
                            ],
                        }
                    ]
                },
                "messages[0].content must be a string",
            ),
            ({"response_format": {"type": "xml"}}, "response_format.type must be one of text, json_object"),
            ({"metadata": {"custom_id": 1}}, "metadata.custom_id must be a string"),
            ({"stream": None}, "stream must be a boolean"),
        ],
    )
    def test_inference_net_refuses(self, inference_net: Wire, fields: dict[str, Any], says: str) -> None:
        """With 400; nothing is paid."""
        reply = inference_net.submit(**fields)
        assert reply.status == 400
        assert says in said(reply.body)
        assert not inference_net.emulator.ledger.paid

    def test_inference_net_takes_unknown_fields_and_nulls(self, inference_net: Wire) -> None:
        """Its request objects are open, and vendor samples send null."""
        assert (
            inference_net.submit(max_completion_tokens=9000, n=None, temperature=None, top_k=4).status == 200
        )

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[1]", b"null", b'{"model": NaN}', b"\xff", b"[" * 100_000], ids=repr
    )
    def test_what_is_not_a_json_object_is_400(self, wire: Callable[..., Wire], body: bytes) -> None:
        """Whatever it is instead."""
        assert wire().send(Operation.SUBMIT, body).status == 400

    def test_another_content_type_is_400(self, wire: Callable[..., Wire]) -> None:
        """Both services want JSON."""
        wired = wire()
        wired.content_type = "text/plain"
        reply = wired.submit()
        assert (reply.status, said(reply.body)) == (400, "Content-Type must be application/json")

    def test_a_body_that_is_too_large_is_413(self, wire: Callable[..., Wire]) -> None:
        """At the size the settings say."""
        assert wire(largest_body=1000).submit("x" * 1000).status == 413

    def test_distribute_answers_the_id_of_a_version_4_uuid_and_nothing_else(self, distribute: Wire) -> None:
        """As its create page says."""
        answer = json.loads(distribute.submit().body)
        assert list(answer) == ["id"]
        assert UUID4.fullmatch(answer["id"])

    def test_inference_net_acknowledges_in_milliseconds_and_without_choices(
        self, inference_net: Wire
    ) -> None:
        """OpenAI's shape with nothing in it."""
        answer = json.loads(inference_net.submit().body)
        assert re.fullmatch(r"[\w-]{21}", answer.pop("id"))
        assert answer == {"object": "chat.completion", "choices": [], "created": NOON * 1000, "model": "m"}

    def test_ids_are_the_same_under_the_same_seed_and_differ_otherwise(
        self, wire: Callable[..., Wire]
    ) -> None:
        """From job to job and from seed to seed."""
        first, again, other = wire(seed=1), wire(seed=1), wire(seed=2)
        ids = [first.job(), first.job()]
        assert ids == [again.job(), again.job()]
        assert len({*ids, other.job()}) == 3


class TestLook:
    """What a look is answered while a job is under way and afterwards."""

    def test_a_job_of_distribute_goes_through_its_statuses(self, distribute: Wire) -> None:
        """In the order their names suggest."""
        job, seen = distribute.job(), []
        for _ in range(101):
            if (status := distribute.status(job)) not in seen:
                seen.append(status)
            distribute.now += 1
        assert seen == ["CREATED", "QUEUED", "ASSIGNED_CONNECTIONS", "PROCESSING", "COMPLETED"]

    def test_now_and_then_a_job_of_distribute_is_postponed_and_queued_again(self, distribute: Wire) -> None:
        """So a client must not take progress for monotonic."""
        jobs = [distribute.job() for _ in range(5)]
        course = []
        for _ in range(101):
            course.append(distribute.status(jobs[4]))
            distribute.now += 1
        order = [status for status, before in zip(course, [None, *course], strict=False) if status != before]
        assert order[:4] == ["CREATED", "QUEUED", "POSTPONED", "QUEUED"]
        assert order[-1] == "COMPLETED"

    def test_a_job_of_inference_net_goes_through_its_states(self, inference_net: Wire) -> None:
        """Mind the space in ``In Progress``."""
        job, seen = inference_net.job(), []
        for _ in range(101):
            if (state := inference_net.status(job)) not in seen:
                seen.append(state)
            inference_net.now += 1
        assert seen == ["Queued", "In Progress", "Success"]

    def test_a_pending_job_of_distribute_has_no_choices(self, distribute: Wire) -> None:
        """The field is required, so it is empty; there is no usage and no end."""
        result = distribute.result(job := distribute.job())
        assert result == {
            "id": job,
            "status": "CREATED",
            "created": NOON * 1000,
            "model": "m",
            "service_tier": "default",
            "choices": [],
        }

    def test_a_finished_job_of_distribute_has_answer_usage_and_end(self, distribute: Wire) -> None:
        """In milliseconds."""
        job = distribute.job("Say hello.")
        distribute.now += 200
        result = distribute.result(job)
        assert result["finished"] - result["created"] == 100_000
        assert result["choices"][0]["finish_reason"] == "stop"
        assert result["choices"][0]["message"]["content"].endswith("Say hello.")
        assert result["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}

    @pytest.mark.parametrize(
        ("form", "created"), [("ms", NOON * 1000), ("s", NOON), ("iso", "2025-06-15T15:06:40.000Z")]
    )
    def test_distribute_writes_times_as_told(self, form: str, created: float | str) -> None:
        """Its pages show numbers without a unit now, and ISO strings before."""
        wired = Wire("distribute", timestamps=form)
        assert wired.result(wired.job())["created"] == created

    def test_a_finished_generation_echoes_the_request_and_answers_in_seconds(
        self, inference_net: Wire
    ) -> None:
        """Unlike the acknowledgement; there is no id at the top."""
        job = inference_net.job(metadata={"custom_id": "row-1"})
        inference_net.now += 200
        result = inference_net.result(job)
        assert "id" not in result
        assert result["request"] == {"stream": False, **chat(metadata={"custom_id": "row-1"})}
        assert result["response"]["created"] == NOON
        assert result["response"]["id"] == job
        assert result["stateMessage"] == "Generation successful"
        assert result["finishedAt"] == "2025-06-15T15:08:20.000Z"

    def test_a_failed_job_of_distribute_has_no_reason(self, distribute: Wire) -> None:
        """No field is documented for it."""
        job = distribute.job(metadata={"emulate": "error=boom"})
        distribute.now += 200
        result = distribute.result(job)
        assert result["status"] == "ERROR"
        assert "boom" not in json.dumps(result)

    @pytest.mark.parametrize(("script", "says"), [("error=boom", "boom"), ("error", "Generation failed")])
    def test_a_failed_generation_says_why_in_its_state_message(
        self, inference_net: Wire, script: str, says: str
    ) -> None:
        """And has a null response."""
        job = inference_net.job(metadata={"emulate": script})
        inference_net.now += 200
        result = inference_net.result(job)
        assert (result["state"], result["stateMessage"], result["response"]) == ("Failed", says, None)

    @pytest.mark.parametrize("job_id", ["nothing", "61b1dfba-f03b-41e3-bd84-10365995126a", "../x", ""])
    def test_an_unknown_job_is_404(self, wire: Callable[..., Wire], job_id: str) -> None:
        """A malformed id too: distribute documents no 400 for results."""
        assert wire().look(job_id).status == 404

    def test_one_service_does_not_know_the_others_jobs(self, distribute: Wire) -> None:
        """Each has its own."""
        job = distribute.job()
        distribute.service, distribute.header = "inference_net", f"Bearer {KEY}"
        assert distribute.look(job).status == 404

    def test_an_id_of_distribute_may_be_written_in_capitals(self, distribute: Wire) -> None:
        """The documented pattern allows both cases."""
        assert distribute.look(distribute.job().upper()).status == 200

    @pytest.mark.parametrize("body", [{"id": 1}, {}, {"id": "x", "extra": 1}, []])
    def test_a_look_at_distribute_is_a_closed_object(self, distribute: Wire, body: object) -> None:
        """Anything else is 400."""
        assert distribute.send(Operation.LOOK, json.dumps(body).encode()).status == 400

    @pytest.mark.parametrize(
        ("form", "body"),
        [
            ("object", {"error": {"message": "Not found", "type": "error", "code": 404}}),
            ("string", {"error": "Not found"}),
            ("message", {"message": "Not found"}),
            ("detail", {"detail": "Not found"}),
        ],
    )
    def test_inference_net_writes_errors_as_told(self, form: str, body: object) -> None:
        """No form is documented, so a client has to read all of them."""
        assert json.loads(Wire("inference_net", errors=form).look("x").body) == body


class TestNotFoundAtFirst:
    """404 for jobs that exist: not ready yet."""

    def test_for_some_seconds(self, wire: Callable[..., Wire]) -> None:
        """From the submission on."""
        wired = wire(not_found="seconds=2")
        job = wired.job()
        assert wired.look(job).status == 404
        wired.now += 2
        assert wired.look(job).status == 200

    def test_for_some_looks(self, wire: Callable[..., Wire]) -> None:
        """Of each job."""
        wired = wire(not_found="looks=2")
        job = wired.job()
        assert [wired.look(job).status for _ in range(3)] == [404, 404, 200]

    def test_until_the_job_is_done(self, wire: Callable[..., Wire]) -> None:
        """As the vendor's sample of inference.net expects it."""
        wired = wire(not_found="until=done", latency="10")
        job = wired.job()
        assert wired.look(job).status == 404
        wired.now += 10
        assert wired.look(job).status == 200


class TestLimits:
    """Rate limits and balance."""

    def test_above_the_rate_is_429_with_retry_after(self, wire: Callable[..., Wire]) -> None:
        """Looks and submissions share the limit; what is refused is not paid."""
        wired = wire(rate_limit="2/s")
        wired.look(wired.job())
        reply = wired.submit()
        assert (reply.status, reply.headers) == (429, {"Retry-After": "1"})
        assert wired.emulator.ledger.paid[wired.service] == 1
        wired.now += 1
        assert wired.submit().status == 200

    @pytest.mark.parametrize(
        ("service", "statuses"), [("distribute", [200, 402]), ("inference_net", [200, 200, 402])]
    )
    def test_an_exhausted_balance_is_402(self, service: str, statuses: list[int]) -> None:
        """Checked up front against 600 tokens at the service's price for a model it does not list."""
        wired = Wire(service, balance=0.0005)
        assert [wired.submit(**{TOKENS[service]: 600}).status for _ in statuses] == statuses

    def test_the_largest_numbers_have_a_price(self, inference_net: Wire) -> None:
        """Their product is more than a double can hold, and than any balance."""
        largest = {"max_tokens": 10**308, "n": 16}
        assert inference_net.submit(**largest).status == 200
        assert Wire("inference_net", balance=1e300).submit(**largest).status == 402

    def test_no_balance_pays_for_nothing(self, wire: Callable[..., Wire]) -> None:
        """Not even a short answer."""
        wired = wire(balance=0)
        assert wired.submit(**{TOKENS[wired.service]: 1}).status == 402
        assert not wired.emulator.ledger.paid
