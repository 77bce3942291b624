# SPDX-License-Identifier: Apache-2.0

"""The frozen values: connections, requests and jobs, as they are read at the door."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from airflow_provider_distribute.client import Client
from airflow_provider_distribute.exceptions import ConnectionInvalid, InvalidRequest, RequestRefused
from airflow_provider_distribute.models import ChatRequest, Job, JobError, JobState, Price
from tests.unit.contracts import CONTRACTS, DISTRIBUTE, INFERENCE_NET, KEY

if TYPE_CHECKING:
    from tests.unit.contracts import Contract

PROMPT = "What is the capital of France?"
USER = {"role": "user", "content": PROMPT}


class TestSettings:
    """Airflow connections."""

    def test_only_the_key_is_needed(self, contract: Contract) -> None:
        """Everything else has a default; the base URL is the vendor's."""
        settings = contract.service.settings.parse("c", {"api_key": KEY})
        assert settings.base_url == contract.base_url
        assert settings.model is None
        assert settings.requests_per_second is None
        assert (settings.timeout, settings.connect_timeout, settings.max_connections) == (60.0, 10.0, 32)
        assert settings.airflow_metadata
        assert not settings.allow_undocumented_params
        assert settings.dashboard_url.startswith("https://")

    def test_the_key_shows_nowhere(self, contract: Contract) -> None:
        """Neither ``repr`` nor ``str`` nor a dump of the settings has the key in it."""
        settings = contract.settings()
        assert KEY not in repr(settings)
        assert KEY not in str(settings)
        assert KEY not in settings.model_dump_json()
        assert settings.api_key.get_secret_value() == KEY

    def test_equal_connections_are_one_key_of_a_dict(self, contract: Contract) -> None:
        """Pools are found by their settings: equal ones hash alike, a new key is another pool."""
        assert contract.settings() == contract.settings()
        assert len({contract.settings(), contract.settings(), contract.settings(api_key="other")}) == 2

    def test_blank_fields_are_no_answer(self, contract: Contract) -> None:
        """An empty box in the connection form means the default."""
        settings = contract.settings(base_url="  ", model="", requests_per_second="", timeout=" ")
        assert settings.base_url == contract.base_url
        assert (settings.model, settings.requests_per_second, settings.timeout) == (None, None, 60.0)

    def test_values_of_a_uri_are_strings(self, contract: Contract) -> None:
        """Extras from a connection URI arrive as text and are read as what they are."""
        settings = contract.settings(
            timeout="5", max_connections="7", requests_per_second="2.5", allow_undocumented_params="true"
        )
        assert (settings.timeout, settings.max_connections, settings.requests_per_second) == (5.0, 7, 2.5)
        assert settings.allow_undocumented_params is True

    def test_all_problems_come_in_one_message(self, contract: Contract) -> None:
        """Whoever repairs a connection wants to do it once; what was typed is not repeated."""
        fields = {"timeout": "soon", "max_connections": 0, "requests_per_second": -1, "colour": "secret-word"}
        with pytest.raises(ConnectionInvalid) as caught:
            contract.service.settings.parse("my_conn", fields)
        message = str(caught.value)
        assert message.startswith("Connection 'my_conn' cannot be used: ")
        for name in ("password: the API key is missing", "timeout: ", "max_connections: ", "colour: unknown"):
            assert name in message
        assert "extra takes airflow_metadata, allow_undocumented_params" in message
        assert "secret-word" not in message
        assert len(caught.value.problems) == 6

    @pytest.mark.parametrize("key", ["", "   ", "a b", "a\nb", "ключ", "a\x00b", "a\tb"], ids=ascii)
    def test_a_key_must_fit_a_header(self, contract: Contract, key: str) -> None:
        """A key that no HTTP header can carry is a paste error; it is reported and not shown."""
        with pytest.raises(ConnectionInvalid, match=r"password|api_key") as caught:
            contract.service.settings.parse("c", {"api_key": key})
        assert "ключ" not in str(caught.value)

    def test_an_empty_key_is_no_key(self, contract: Contract) -> None:
        """Also for whoever builds settings without the form."""
        with pytest.raises(ValidationError, match="is empty"):
            contract.service.settings(conn_id="c", api_key=SecretStr(" "))  # type: ignore[call-arg]

    def test_space_around_the_key_is_cut_off(self, contract: Contract) -> None:
        """A newline at the end of a pasted key is nobody's intention."""
        assert contract.settings(api_key=" k1\n").api_key.get_secret_value() == "k1"

    @pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "0", "1e9"])
    @pytest.mark.parametrize("name", ["timeout", "connect_timeout", "requests_per_second"])
    def test_durations_and_rates_are_finite(self, contract: Contract, name: str, seconds: str) -> None:
        """No socket can wait for ever, and no rate is beyond bounds: leaving it out says that."""
        with pytest.raises(ConnectionInvalid, match=name):
            contract.settings(**{name: seconds})

    @pytest.mark.parametrize("flag", [True, False])
    def test_a_boolean_is_no_number(self, contract: Contract, flag: bool) -> None:
        """``"timeout": true`` would wait one second; the reader learns which fields want a number."""
        numbers = {"timeout", "connect_timeout", "requests_per_second", "max_connections"}
        numbers |= contract.service.settings.extras() & {"not_found_grace"}
        with pytest.raises(ConnectionInvalid) as caught:
            contract.settings(**dict.fromkeys(numbers, flag), prices={"m": [flag, 1]})
        assert set(caught.value.problems) == {
            *(f"{name}: must be a number, not true or false" for name in numbers),
            "prices: takes two numbers for each model: dollars per million tokens in and out",
        }

    @pytest.mark.parametrize(
        "url",
        [
            "api.distribute.ai",
            "ftp://host",
            "http://",
            "http://host:port",
            "http://host:0",
            "http://host:65536",
            "http://user:word@host",
            "http://host/?q=1",
            "http://host/#top",
            "http://ho st",
            "http://a..b",
            "http://" + "a" * 64,
            "http://a\nb",
            "http://host/a\\b",
            "http://bücher.example",
            "http://[::1",
            "http://10.0.0.300",
            "http://xn--a",
        ],
    )
    def test_a_base_url_is_scheme_host_port_and_path(self, contract: Contract, url: str) -> None:
        """What HTTP libraries choke on, or would send a password by, is the connection's fault."""
        with pytest.raises(ConnectionInvalid, match="host: ") as caught:
            contract.settings(base_url=url)
        assert "word" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "used"),
        [
            (" http://host/ ", "http://host"),
            ("https://host:8443/base/", "https://host:8443/base"),
            ("http://127.0.0.1:80", "http://127.0.0.1:80"),
            ("http://[::1]:80/distribute", "http://[::1]:80/distribute"),
            ("HTTP://my_host.example.", "HTTP://my_host.example."),
        ],
    )
    def test_usable_base_urls(self, contract: Contract, url: str, used: str) -> None:
        """Hosts of every kind, a port and a path in front of the service's own paths."""
        assert contract.settings(base_url=url).base_url == used

    @given(st.text(max_size=40).map("http://{}".format) | st.text(max_size=40))
    def test_what_settings_accept_makes_a_client(self, url: str) -> None:
        """No base URL that passed the door raises later, when it is joined to a path."""
        try:
            settings = DISTRIBUTE.settings(base_url=url)
        except ConnectionInvalid:
            return
        transport = httpx.MockTransport(lambda request: DISTRIBUTE.ticket("job-1"))
        with Client(settings, transport=transport) as client:
            assert client.submit(ChatRequest.parse(PROMPT)) == "job-1"

    @pytest.mark.parametrize("form", [json.dumps, lambda value: value], ids=["text", "mapping"])
    def test_prices_are_a_table(self, contract: Contract, form: Any) -> None:
        """Dollars per million tokens in and out by model, as JSON or as text, which is what a form sends."""
        settings = contract.settings(prices=form({"m": [0.1, 2]}))
        assert settings.prices == (("m", Price(prompt=0.1, completion=2.0)),)
        hash(settings)

    @pytest.mark.parametrize(
        ("prices", "reason"),
        [
            ("{", "prices: is not JSON"),
            (5, "prices"),
            ({"m": 1}, "takes two numbers for each model"),
            ({"m": [1]}, "takes two numbers for each model"),
            ({"m": [1, "much"]}, "takes two numbers for each model"),
            ({"m": [1, -1]}, "takes two numbers for each model"),
            ({"m": [1, float("inf")]}, "takes two numbers for each model"),
        ],
    )
    def test_what_is_no_table_of_prices(self, contract: Contract, prices: object, reason: str) -> None:
        """A budget that nobody can compute is the connection's fault."""
        with pytest.raises(ConnectionInvalid, match=reason):
            contract.settings(prices=prices)

    def test_a_dashboard_url_may_have_a_query(self, contract: Contract) -> None:
        """It is only shown to people, so it need only be a link."""
        link = "https://example.com/jobs?project=1#top"
        assert contract.settings(dashboard_url=link).dashboard_url == link
        with pytest.raises(ConnectionInvalid, match="dashboard_url: is not an http"):
            contract.settings(dashboard_url="javascript:alert(1)")

    def test_extras_name_what_a_connection_may_say(self) -> None:
        """The names are those of the documentation; each service adds its own."""
        common = {
            "model",
            "timeout",
            "connect_timeout",
            "requests_per_second",
            "max_connections",
            "dashboard_url",
            "allow_undocumented_params",
            "airflow_metadata",
            "prices",
        }
        assert DISTRIBUTE.service.settings.extras() == common | {"not_found_grace", "auth_prefix"}
        assert INFERENCE_NET.service.settings.extras() == common | {"async_prefix"}

    def test_settings_are_frozen(self, contract: Contract) -> None:
        """A pool's settings cannot change under it."""
        with pytest.raises(ValidationError, match="frozen"):
            contract.settings().model = "other"  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("given", "sent"),
        [("", KEY), ("Bearer", f"Bearer {KEY}"), (" Bearer ", f"Bearer {KEY}"), ("  ", KEY)],
    )
    def test_auth_prefix_stands_apart_from_the_key(self, given: str, sent: str) -> None:
        """Forms trim what is typed into them: the space between scheme and key does not depend on that."""
        settings = DISTRIBUTE.settings(auth_prefix=given)
        assert DISTRIBUTE.service.authorization(settings) == sent

    def test_auth_prefix_must_fit_a_header(self) -> None:
        """A prefix with a line break would be another header."""
        with pytest.raises(ConnectionInvalid, match="auth_prefix: has characters"):
            DISTRIBUTE.settings(auth_prefix="Bearer\nX-Other:")

    def test_async_prefix_is_slow_or_async(self) -> None:
        """These two are documented, nothing else is."""
        with pytest.raises(ConnectionInvalid, match="async_prefix"):
            INFERENCE_NET.settings(async_prefix="fast")


class TestChatRequest:
    """What authors ask for."""

    @pytest.mark.parametrize(
        "item",
        [
            PROMPT,
            [USER],
            (USER,),
            {"prompt": PROMPT},
            {"messages": [USER]},
            ChatRequest(messages=(USER,)),
        ],
        ids=["prompt", "list", "tuple", "mapping-prompt", "mapping-messages", "request"],
    )
    def test_every_form_asks_the_same(self, item: object) -> None:
        """A prompt, a message list and a mapping with either are one request."""
        request = ChatRequest.parse(item)
        assert request == ChatRequest(messages=(USER,))
        assert request.fingerprint == ChatRequest.parse(PROMPT).fingerprint

    def test_a_mapping_wins_over_the_defaults(self) -> None:
        """Model as a whole, ``params`` and ``metadata`` key by key."""
        request = ChatRequest.parse(
            {
                "prompt": "x",
                "model": "mine",
                "params": {"seed": 2},
                "metadata": {"a": 2},
                "system_prompt": "s2",
            },
            model="default",
            system_prompt="s1",
            params={"seed": 1, "top_p": 0.5},
            metadata={"a": 1, "b": 1},
        )
        assert request.model == "mine"
        assert request.params == {"seed": 2, "top_p": 0.5}
        assert request.metadata == {"a": 2, "b": 1}
        assert request.messages[0] == {"role": "system", "content": "s2"}

    def test_defaults_fill_in(self) -> None:
        """What an item leaves out comes from the operator."""
        request = ChatRequest.parse("x", model="m", system_prompt="s", params={"seed": 1}, metadata={"a": 1})
        assert (request.model, request.params, request.metadata) == ("m", {"seed": 1}, {"a": 1})
        assert [message["role"] for message in request.messages] == ["system", "user"]

    def test_an_own_system_message_stays_the_only_one(self) -> None:
        """A system prompt goes in front unless the messages bring one."""
        own = [{"role": "system", "content": "own"}, USER]
        assert ChatRequest.parse(own, system_prompt="default").messages == tuple(own)

    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            (5, "a request is a prompt, a list of messages or a mapping, not int"),
            (None, "not NoneType"),
            ("", "the prompt is empty"),
            ("  ", "the prompt is empty"),
            ({"prompt": 5}, "the prompt is empty or not a string"),
            ({}, "exactly one of prompt and messages"),
            ({"prompt": "x", "messages": [USER]}, "exactly one of prompt and messages"),
            ({"messages": "text"}, "messages must be a list"),
            ({"messages": 5}, "messages must be a list"),
            ([], "messages is empty"),
            ({"messages": [], "system_prompt": "x"}, "messages is empty"),
            (["text"], "messages.0: "),
            ([{"content": "x"}], "messages: message 0 has no role"),
            ([USER, {"role": 1}], "message 1 has no role"),
            ({"prompt": "x", "params": "y"}, "params and metadata must be mappings"),
            ({"prompt": "x", "metadata": 5}, "params and metadata must be mappings"),
            ({"prompt": "x", "model": 5}, "model: "),
            ({"prompt": "x", "params": {1: 2}}, "params.1"),
            ({"prompt": "x", "temperature": 1, "user": "y"}, "temperature: unknown field (a request takes"),
        ],
    )
    def test_what_is_wrong_is_named(self, item: object, reason: str) -> None:
        """Each mistake has its own words."""
        with pytest.raises(InvalidRequest) as caught:
            ChatRequest.parse(item)
        assert str(caught.value).startswith("The request was not sent: ")
        assert reason in str(caught.value)

    def test_every_unknown_field_is_named(self) -> None:
        """Several problems are reported at once."""
        with pytest.raises(InvalidRequest) as caught:
            ChatRequest.parse({"prompt": "x", "b": 1, "a": 2})
        assert [problem.partition(":")[0] for problem in caught.value.problems] == ["a", "b"]

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
            ),
            max_leaves=8,
        )
        | st.fixed_dictionaries(
            {},
            optional={
                name: st.none() | st.text() | st.lists(st.text()) for name in ("prompt", "messages", "params")
            },
        )
    )
    def test_parsing_raises_nothing_else(self, item: Any) -> None:
        """Whatever an author or a template made of it, the error is ours."""
        try:
            request = ChatRequest.parse(item)
        except InvalidRequest:
            return
        assert request.messages
        assert len(request.fingerprint) == 16

    def test_repr_has_no_prompt(self) -> None:
        """A request in a log line shows its model, never what was asked."""
        request = ChatRequest.parse(PROMPT, model="m", params={"stop": [PROMPT]}, metadata={"a": PROMPT})
        assert PROMPT not in repr(request)
        assert PROMPT not in str(request)
        assert "model='m'" in repr(request)

    def test_errors_have_no_prompt(self) -> None:
        """The input stays out of validation errors as well."""
        with pytest.raises(InvalidRequest) as caught:
            ChatRequest.parse([USER, PROMPT])
        assert PROMPT not in str(caught.value)

    def test_fingerprint_follows_the_question(self) -> None:
        """Model, messages and parameters change it; metadata and key order do not."""
        request = ChatRequest.parse({"prompt": "x", "model": "m", "params": {"a": 1, "b": 2}})
        same = ChatRequest.parse(
            {"prompt": "x", "model": "m", "params": {"b": 2, "a": 1}, "metadata": {"n": 1}}
        )
        assert request.fingerprint == same.fingerprint
        others = [
            ChatRequest.parse({"prompt": "y", "model": "m", "params": {"a": 1, "b": 2}}),
            ChatRequest.parse({"prompt": "x", "model": "n", "params": {"a": 1, "b": 2}}),
            ChatRequest.parse({"prompt": "x", "model": "m", "params": {"a": 1, "b": 3}}),
        ]
        assert len({request.fingerprint, *(other.fingerprint for other in others)}) == 4

    def test_fingerprint_reads_anything(self) -> None:
        """Lone surrogates and values that are no JSON still have a fingerprint: only sending refuses them."""
        request = ChatRequest.parse(
            {"prompt": "\ud800", "params": {"when": datetime(2025, 1, 1, tzinfo=UTC)}}
        )
        assert len(request.fingerprint) == 16

    def test_labels_give_way_to_the_author(self) -> None:
        """Airflow's metadata fills in beside what the author gave, under it where both speak."""
        request = ChatRequest.parse({"prompt": "x", "metadata": {"dag_id": "mine"}})
        labelled = request.labelled({"dag_id": "theirs", "run_id": "r"})
        assert labelled.metadata == {"dag_id": "mine", "run_id": "r"}
        assert request.metadata == {"dag_id": "mine"}


class TestJob:
    """What became of it."""

    @pytest.mark.parametrize(
        ("state", "done", "succeeded"),
        [(JobState.PENDING, False, False), (JobState.SUCCEEDED, True, True), (JobState.FAILED, True, False)],
    )
    def test_a_job_is_asked_not_compared(self, state: JobState, done: bool, succeeded: bool) -> None:
        """``done`` and ``succeeded`` say what callers need to know of a state."""
        job = Job(job_id="j", service="distribute", state=state, status="WORD")
        assert (job.done, job.succeeded, job.lost) == (done, succeeded, False)

    def test_a_lost_job_is_failed_and_lost(self) -> None:
        """Lost is a way of having failed that says whom to ask."""
        job = DISTRIBUTE.service.lost("j")
        assert job.lost
        assert job.done
        assert not job.succeeded
        assert "may have been billed" in job.reason

    def test_what_became_of_a_job_may_be_unclear(self) -> None:
        """A job that the service does not know or show may have been paid; one that has failed has not."""
        service = DISTRIBUTE.service
        refused = RequestRefused("not yours", service=service.name)
        assert service.lost("j").unclear
        assert service.withheld("j", refused).unclear
        failed = Job(
            job_id="j",
            service="s",
            state=JobState.FAILED,
            status="ERROR",
            error=JobError(type="failed", message="no"),
        )
        assert not failed.unclear
        assert not failed.model_copy(update={"error": None}).unclear

    def test_a_reason_is_always_there(self) -> None:
        """Without an error the reason is that none was given."""
        job = Job(job_id="j", service="s", state=JobState.FAILED, status="ERROR")
        assert job.reason == "no reason given"
        told = job.model_copy(update={"error": JobError(type="failed", message="out of memory")})
        assert told.reason == "out of memory"

    def test_the_result_is_plain_json(self) -> None:
        """The keys are those the documentation promises; times are ISO-8601 in UTC."""
        job = Job(
            job_id="j",
            service="distribute",
            state=JobState.SUCCEEDED,
            status="COMPLETED",
            content="Paris.",
            finish_reason="stop",
            tool_calls=({"id": "c"},),
            choices=({"index": 0},),
            usage={"total_tokens": 3},
            model="m",
            created_at=datetime(2025, 6, 15, 15, 6, 40, tzinfo=UTC),
        )
        assert job.result() == {
            "job_id": "j",
            "service": "distribute",
            "status": "succeeded",
            "content": "Paris.",
            "finish_reason": "stop",
            "tool_calls": [{"id": "c"}],
            "choices": [{"index": 0}],
            "usage": {"total_tokens": 3},
            "model": "m",
            "created_at": "2025-06-15T15:06:40+00:00",
            "finished_at": None,
            "error": None,
        }
        json.dumps(job.result(), allow_nan=False)

    def test_a_failed_job_says_why_in_its_result(self) -> None:
        """The error is a mapping of its own."""
        result = DISTRIBUTE.service.lost("j").result()
        assert result["status"] == "failed"
        assert result["error"]["type"] == "lost"
        assert result["usage"] is None

    def test_repr_has_no_answer(self) -> None:
        """Answers may hold anything: a job in a log line shows its id and state."""
        job = Job(
            job_id="j",
            service="s",
            state=JobState.SUCCEEDED,
            status="W",
            content=PROMPT,
            choices=({"message": PROMPT},),
            tool_calls=({"arguments": PROMPT},),
        )
        assert PROMPT not in repr(job)
        assert "job_id='j'" in repr(job)


def test_each_service_is_a_contract_here() -> None:
    """A third service is tested as soon as it is in the table."""
    from airflow_provider_distribute.services import SERVICES

    assert SERVICES.keys() == CONTRACTS.keys()
