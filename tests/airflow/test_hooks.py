# SPDX-License-Identifier: Apache-2.0

"""From an Airflow connection to a client, and what a task does with a hook of its own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from airflow.sdk import Connection

from airflow_provider_distribute.exceptions import (
    AccessDenied,
    ConnectionInvalid,
    DeadlinePassed,
    InvalidRequest,
    JobNotFound,
    OutcomeUnknown,
)
from airflow_provider_distribute.hooks import HOOKS, hook_for
from airflow_provider_distribute.hooks.base import settings_from
from airflow_provider_distribute.hooks.distribute import DistributeHook
from airflow_provider_distribute.hooks.inference_net import InferenceNetHook
from airflow_provider_distribute.models import ChatRequest
from tests.airflow.wire import KEY, MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_distribute.hooks.base import ServiceHook
    from tests.airflow.clock import Clock
    from tests.airflow.wire import Wire


@pytest.fixture
def hook(service: str, wire: Wire) -> ServiceHook:
    """The hook of each service's default connection."""
    return HOOKS[service]()


# Connections ---------------------------------------------------------------------------------------------


def test_connection_leads_to_its_hook(service: str) -> None:
    """``Connection.get_hook()`` gives the hook of the connection's type."""
    connection: Any = BaseHook.get_connection(f"{service}_default")
    hook = connection.get_hook()
    assert type(hook) is HOOKS[service]
    assert hook.conn_id == f"{service}_default"


def test_hook_follows_from_the_type(service: str, connections: Callable[..., None]) -> None:
    """A connection's id says nothing about its service."""
    connections("elsewhere", json.dumps({"conn_type": service, "password": KEY}))
    hook = hook_for("elsewhere")
    assert type(hook) is HOOKS[service]
    assert hook.settings.service == service


def test_vendors_address_is_the_default() -> None:
    """Without a host the connection leads to the service itself."""
    assert DistributeHook().settings.base_url == "https://api.distribute.ai"
    assert InferenceNetHook().settings.base_url == "https://api.inference.net"


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "https://proxy.example/llm/"}, "https://proxy.example/llm"),
        ({"host": "proxy.example"}, "https://proxy.example"),
        ({"host": "proxy.example", "port": 8443}, "https://proxy.example:8443"),
        ({"host": "127.0.0.1", "port": 8080, "schema": "http"}, "http://127.0.0.1:8080"),
        ({"host": "http://localhost", "port": 8080}, "http://localhost:8080"),
        ({"host": "http://localhost:8080", "port": 8080}, "http://localhost:8080"),
        ({"host": "gateway.example/api", "port": 8443}, "https://gateway.example:8443/api"),
        ({"host": "::1", "port": 8080, "schema": "http"}, "http://[::1]:8080"),
    ],
)
def test_host_is_the_base_url(
    service: str, connections: Callable[..., None], fields: dict[str, Any], base_url: str
) -> None:
    """The host is a URL; a bare name means https, and port and schema complete it."""
    connections(f"{service}_default", **fields)
    assert HOOKS[service]().settings.base_url == base_url


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("https://proxy.example:9090", "port: 8080 is not the one that the host names, 9090"),
        ("https://proxy.example:http", "host: "),
    ],
)
def test_a_port_that_does_not_fit_is_refused(
    connections: Callable[..., None], host: str, problem: str
) -> None:
    """Nobody is to guess which server gets the key."""
    connections("distribute_default", host=host, port=8080)
    with pytest.raises(ConnectionInvalid, match=problem):
        _ = DistributeHook().settings


def test_extras_of_a_uri_are_coerced(connections: Callable[..., None]) -> None:
    """A URI's query holds nothing but strings; they become what the fields are."""
    host = quote("https://proxy.example/v1", safe="")
    query = (
        "timeout=30&max_connections=8&airflow_metadata=false&not_found_grace=0&model=m&requests_per_second="
    )
    connections("distribute_default", f"distribute://:{KEY}@{host}/?{query}")
    settings: Any = DistributeHook().settings
    assert settings.base_url == "https://proxy.example/v1"
    assert (settings.timeout, settings.max_connections, settings.not_found_grace) == (30.0, 8, 0.0)
    assert (settings.airflow_metadata, settings.model, settings.requests_per_second) == (False, "m", None)


def test_extra_of_a_uri_may_be_json(connections: Callable[..., None]) -> None:
    """``__extra__`` keeps the types; the hyphen of the scheme is the underscore of the type."""
    extra = quote(json.dumps({"timeout": 30, "async_prefix": "async"}))
    connections("inference_net_default", f"inference-net://:{KEY}@/?__extra__={extra}")
    settings: Any = InferenceNetHook().settings
    assert (settings.timeout, settings.async_prefix) == (30.0, "async")


def test_all_problems_come_at_once(connections: Callable[..., None]) -> None:
    """One message names every missing and wrong field, and what the extra takes."""
    extra = {"timeout": "soon", "max_connections": 0, "auth_prefx": "Bearer"}
    connections("distribute_default", password="", host="ftp://files.example", extra=extra)
    with pytest.raises(ConnectionInvalid) as caught:
        _ = DistributeHook().settings
    problems = " ".join(caught.value.problems)
    for name in (
        "password: the API key is missing",
        "host: ",
        "timeout",
        "max_connections",
        "auth_prefx",
        "auth_prefix",
    ):
        assert name in problems
    assert "'distribute_default'" in str(caught.value)


@pytest.mark.parametrize("name", ["conn_id", "api_key", "base_url", "host", "service"])
def test_what_is_no_extra_is_refused_in_the_extra(connections: Callable[..., None], name: str) -> None:
    """The host and the key have fields of their own, whatever they are called inside."""
    connections("distribute_default", extra={name: "http://elsewhere.example"})
    with pytest.raises(ConnectionInvalid, match=f"extra.{name}: unknown field; extra takes airflow_metadata"):
        _ = DistributeHook().settings


def test_key_is_in_no_message(connections: Callable[..., None]) -> None:
    """Neither an error nor a ``repr`` shows the key, not even a malformed one."""
    connections("distribute_default", password=f"{KEY} oops", extra={"timeout": KEY})
    with pytest.raises(ConnectionInvalid) as caught:
        _ = DistributeHook().settings
    assert KEY not in f"{caught.value!r} {caught.value}"
    connections("distribute_default")
    assert KEY not in repr((DistributeHook().settings, DistributeHook().client))


@pytest.mark.parametrize("extra", ['{"model": ', '["model"]', "model=m"])
def test_extra_that_is_no_json_object_is_refused(extra: str) -> None:
    """A typo in the extra is not taken for an empty extra."""
    connection = Connection(conn_id="typo", conn_type="distribute", password=KEY, extra=extra)
    with pytest.raises(ConnectionInvalid) as caught:
        settings_from(connection)
    assert caught.value.problems == ("extra: is not a JSON object",)


def test_extra_that_is_no_json_object_hides_nothing() -> None:
    """What else is wrong is told in the same message."""
    connection = Connection(conn_id="typo", conn_type="distribute", password="", extra="model=m")
    with pytest.raises(ConnectionInvalid, match=r"extra: is not .*; password: the API key is missing"):
        settings_from(connection)


def test_connection_of_a_foreign_type_is_refused(connections: Callable[..., None]) -> None:
    """A connection of another provider is named with the types that would do."""
    connections("distribute_default", conn_type="http")
    for read in (lambda: DistributeHook().settings, lambda: hook_for("distribute_default")):
        with pytest.raises(ConnectionInvalid, match=r"'http', not 'distribute' or 'inference_net'"):
            read()


def test_hook_refuses_the_other_service(wire: Wire) -> None:
    """A hook by name takes only its own service's connections, synchronously or not."""
    with pytest.raises(ConnectionInvalid, match=r"'inference_net'; DistributeHook takes 'distribute'"):
        _ = DistributeHook("inference_net_default").settings
    with pytest.raises(ConnectionInvalid, match=r"'inference_net'; DistributeHook takes 'distribute'"):
        wire.clock.run(DistributeHook("inference_net_default").aget_job("any"))


# Requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        "Why?",
        [{"role": "user", "content": "Why?"}],
        {"prompt": "Why?", "params": {"temperature": 0.5}},
        ChatRequest.parse("Why?"),
    ],
    ids=["prompt", "messages", "mapping", "ChatRequest"],
)
def test_submit_takes_every_form(hook: ServiceHook, wire: Wire, request_: Any) -> None:
    """A prompt, messages, a mapping or a value: the job id comes back, the connection's model goes along."""
    job_id = hook.submit(request_)
    assert [job_id] == wire.job_ids
    assert wire.prompts == ["Why?"]
    assert wire.jobs[0].model == MODELS[hook.conn_type]


def test_submit_refuses_what_the_service_forbids(wire: Wire) -> None:
    """601 tokens never leave for a service that documents a ceiling of 600."""
    with pytest.raises(InvalidRequest, match="max_completion_tokens"):
        DistributeHook().submit({"prompt": "Why?", "params": {"max_completion_tokens": 601}})
    assert wire.requests == []


def test_get_job_looks_once(hook: ServiceHook, wire: Wire) -> None:
    """A look gives the job as it is now."""
    wire.fault("latency", value="60")
    job_id = hook.submit("Why?")
    assert not hook.get_job(job_id).done
    wire.clock.sleep(60)
    assert hook.get_job(job_id).succeeded
    assert len(wire.looks) == 2


def test_get_conn_is_the_client(hook: ServiceHook) -> None:
    """Airflow's name for the thing a hook wraps."""
    assert hook.get_conn() is hook.client


def test_errors_are_of_the_tree(hook: ServiceHook, wire: Wire) -> None:
    """A task that uses a hook sees what happened, not a status code of some library."""
    with pytest.raises(JobNotFound):
        hook.get_job("6f1b7c1e-0000-4000-8000-000000000000")
    wire.fault("reset", operation="submit", count=1)
    with pytest.raises(OutcomeUnknown):
        hook.submit("Why?")


# Waiting -------------------------------------------------------------------------------------------------


def test_wait_returns_in_the_order_given(hook: ServiceHook, wire: Wire) -> None:
    """The second job may end first, and be asked for twice."""
    wire.fault("latency", value="500", count=1)
    slow, quick = hook.submit("slow"), hook.submit("quick")
    jobs = hook.wait([slow, quick, slow])
    assert [job.job_id for job in jobs] == [slow, quick, slow]
    assert all(job.succeeded for job in jobs)


def test_wait_for_one_returns_one(hook: ServiceHook, wire: Wire) -> None:
    """One id gives one job, ended badly or well: a failed job is no error of waiting."""
    wire.fault("error", value="model overloaded")
    job = hook.wait(hook.submit("Why?"))
    assert not job.succeeded
    assert hook.wait([]) == []


def test_wait_ends_at_its_deadline(hook: ServiceHook, wire: Wire, clock: Clock) -> None:
    """The error carries the jobs that go on, with the service's own words."""
    wire.fault("never", count=1)
    endless, done = hook.submit("one"), hook.submit("two")
    before = clock.now
    with pytest.raises(DeadlinePassed) as caught:
        hook.wait([endless, done], timeout=7200)
    assert clock.now - before == pytest.approx(7200)
    assert caught.value.pending.keys() == {endless}
    assert caught.value.pending[endless] in str(caught.value)
    assert "billed" in str(caught.value)


def test_wait_ends_when_the_key_is_not_accepted(hook: ServiceHook, wire: Wire) -> None:
    """Nobody waits 72 hours for a key that will not be accepted."""
    job_id = hook.submit("Why?")
    wire.fault("401")
    with pytest.raises(AccessDenied, match="password"):
        hook.wait(job_id)


def test_wait_on_an_event_loop_is_refused_in_plain_words(hook: ServiceHook, clock: Clock) -> None:
    """Waiting would block the loop; the error says what to do, and nothing is left un-awaited."""

    async def main() -> None:
        hook.wait("some-job")

    with pytest.raises(RuntimeError, match=r"asyncio.to_thread\(hook.wait, job_ids\)"):
        clock.run(main())


# Testing the connection ----------------------------------------------------------------------------------


def test_good_connection_is_said_to_be_good(hook: ServiceHook, wire: Wire) -> None:
    """The button in the UI costs nothing."""
    assert hook.test_connection() == (True, f"{hook.client.service.title} answers and accepts the key.")
    assert wire.paid == 0


def test_bad_connection_is_said_to_be_bad(service: str, wire: Wire, connections: Callable[..., None]) -> None:
    """The message says what to do, without the key."""
    connections(f"{service}_default", password="another-key-altogether")
    accepted, message = HOOKS[service]().test_connection()
    assert not accepted
    assert "401" in message
    assert "another-key-altogether" not in message


def test_invalid_connection_is_said_to_be_invalid(connections: Callable[..., None]) -> None:
    """Fields that are wrong are named instead of raised."""
    connections("distribute_default", password="")
    assert DistributeHook().test_connection() == (
        False,
        "Connection 'distribute_default' cannot be used: password: the API key is missing.",
    )


# Asynchronously ------------------------------------------------------------------------------------------


def test_asynchronous_calls_do_the_same(hook: ServiceHook, wire: Wire, clock: Clock) -> None:
    """``asubmit`` and ``aget_job`` are the twins of ``submit`` and ``get_job``."""

    async def main() -> Any:
        return await hook.aget_job(await hook.asubmit("Why?"))

    job = clock.run(main())
    assert job.succeeded
    assert [job.job_id] == wire.job_ids


def test_concurrent_calls_share_one_client(hook: ServiceHook, wire: Wire, clock: Clock) -> None:
    """Calls that overlap share connections and rate limit; the last one closes them."""

    async def main() -> list[str]:
        return await asyncio.gather(*(hook.asubmit(f"Why {n}?") for n in range(20)))

    assert sorted(clock.run(main())) == sorted(wire.job_ids)
    assert (wire.opened, wire.closed) == (1, 1)


def test_next_call_opens_a_new_client(hook: ServiceHook, wire: Wire, clock: Clock) -> None:
    """A hook outlives an event loop: nothing of a closed loop is used again."""
    for _ in range(2):
        clock.run(hook.asubmit("Why?"))
    assert (wire.opened, wire.closed) == (2, 2)


def test_cancelled_call_leaves_the_others_alone(hook: ServiceHook, wire: Wire, clock: Clock) -> None:
    """Cancelling the call that opened the client does not take it from those who share it."""

    async def main() -> str:
        first = asyncio.ensure_future(hook.asubmit("first"))
        second = asyncio.ensure_future(hook.asubmit("second"))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert [clock.run(main())] == wire.job_ids
    assert (wire.opened, wire.closed) == (1, 1)


def test_failing_to_open_fails_every_call(
    service: str, wire: Wire, clock: Clock, connections: Callable[..., None]
) -> None:
    """A wrong connection is told to everybody who asked, and nothing stays open."""
    connections(f"{service}_default", password="")
    hook = HOOKS[service]()

    async def main() -> list[Any]:
        return await asyncio.gather(*(hook.asubmit("Why?") for _ in range(3)), return_exceptions=True)

    assert [type(error) for error in clock.run(main())] == [ConnectionInvalid] * 3
    assert wire.opened == 0


def test_hook_speaks_to_a_real_server(service: str, connections: Callable[..., None]) -> None:
    """The same, over the loopback interface and the real transports."""
    from airflow_provider_distribute.testing import InferenceEmulator

    with InferenceEmulator() as emulator:
        connections(f"{service}_default", emulator.connection(service))
        hook = HOOKS[service]()
        job_ids = [hook.submit("one"), asyncio.run(hook.asubmit("two"))]
        assert [job.succeeded for job in hook.wait(job_ids, timeout=30, poke_interval=1)] == [True, True]
        hook.client.close()
        assert emulator.paid == 2


def test_answers_that_cannot_be_read_are_no_results(wire: Wire, clock: Clock) -> None:
    """A page instead of JSON is no job; waiting goes on past it."""
    hook = DistributeHook()
    job_id = hook.submit("Why?")
    wire.fault("html", operation="look", count=3)
    assert hook.wait(job_id).succeeded
    assert len(wire.looks) == 4
