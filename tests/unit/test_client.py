# SPDX-License-Identifier: Apache-2.0

"""Both clients, for both services: what goes out, what comes back, and what is done when nothing does."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import ssl
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import httpx
import pytest

from airflow_provider_distribute import client as client_module
from airflow_provider_distribute.client import AsyncClient, Client, never_connected
from airflow_provider_distribute.exceptions import (
    AccessDenied,
    ConnectionInvalid,
    InferenceError,
    InvalidRequest,
    JobNotFound,
    NotAccepted,
    OutcomeUnknown,
    RequestRefused,
    Unavailable,
    WorkerStopped,
)
from airflow_provider_distribute.models import ChatRequest
from airflow_provider_distribute.pacing import RETRY_AFTER_CAP, Backoff, RateLimit
from airflow_provider_distribute.services.base import Service
from tests.unit.contracts import KEY
from tests.unit.server import (
    Server,
    answers,
    breaks_chunks,
    closes,
    drips,
    hangs,
    hangs_in_headers,
    resets,
    talks_nonsense,
    truncates,
)

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Iterator

    from airflow_provider_distribute.models import Job
    from tests.unit.clock import Clock
    from tests.unit.conftest import Drive, DriveReal
    from tests.unit.contracts import Contract
    from tests.unit.wire import Answer, Caller, Colour

PROMPT = "planted-prompt: what is the capital of France?"
REQUEST = ChatRequest.parse(PROMPT)
REFUSED = httpx.ConnectError("refused")


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests names no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def _no_proxy(no_proxy: None) -> None:
    """Every test here starts without one."""


def refusal(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, json={"message": "the service's words"})


class TestWhatGoesOut:
    """Requests on the wire."""

    def test_a_submission(self, contract: Contract, drive: Drive) -> None:
        """Method, path, headers and body as the documentation has them."""
        caller, wire = drive(contract.ticket("job-1"))
        assert caller.submit(REQUEST) == "job-1"
        (request,) = wire.requests
        assert request.method == "POST"
        assert str(request.url) == contract.base_url + contract.submit_path
        assert request.headers["authorization"] == contract.authorization
        assert request.headers["content-type"] == "application/json"
        assert request.headers["accept"] == "application/json"
        assert request.headers["user-agent"].startswith("airflow-provider-distribute")
        body = json.loads(request.content)
        assert body["model"] == "some-model"
        assert body["messages"] == [{"role": "user", "content": PROMPT}]

    def test_a_look(self, contract: Contract, drive: Drive) -> None:
        """The id is asked for where the service wants it."""
        caller, wire = drive(contract.look("succeeded"))
        job = caller.look("job-1")
        assert (job.job_id, job.service, job.succeeded, job.content) == (
            "job-1",
            contract.name,
            True,
            "Paris.",
        )
        (request,) = wire.requests
        assert (request.method, request.url.path) == (
            contract.look_method,
            contract.look_path.format("job-1"),
        )
        assert contract.asked_for(request) == "job-1"
        assert request.headers["authorization"] == contract.authorization

    def test_a_base_url_with_a_path(self, contract: Contract, drive: Drive) -> None:
        """The service's paths go below it."""
        caller, wire = drive(contract.ticket("job-1"), base_url="http://127.0.0.1:1/base/")
        caller.submit(REQUEST)
        assert str(wire.requests[0].url) == f"http://127.0.0.1:1/base{contract.submit_path}"

    def test_a_request_that_is_wrong_is_not_sent(self, contract: Contract, drive: Drive) -> None:
        """What the documentation forbids costs nothing."""
        caller, wire = drive(contract.ticket("job-1"))
        with pytest.raises(InvalidRequest):
            caller.submit(ChatRequest.parse({"prompt": "x", "params": {"stream": True}}))
        assert wire.requests == []

    def test_text_outside_the_basic_plane(self, drive: Drive, contract: Contract) -> None:
        """Prompts are UTF-8 on the wire."""
        caller, wire = drive(contract.ticket("job-1"))
        caller.submit(ChatRequest.parse("žluťoučký 🐎"))
        assert "žluťoučký 🐎".encode() in wire.requests[0].content

    def test_cookies_are_not_kept(self, contract: Contract, drive: Drive) -> None:
        """What a load balancer sets is not sent back: one key is one caller on any machine of the service."""
        answer = contract.look("pending")
        answer.headers["Set-Cookie"] = "machine=7; Path=/"
        caller, wire = drive(answer)
        caller.look("job-1")
        caller.look("job-1")
        assert "cookie" not in wire.requests[1].headers

    def test_redirects_are_not_followed(self, contract: Contract, drive: Drive) -> None:
        """The key goes to the host that the connection names and to no other."""
        caller, wire = drive(httpx.Response(307, headers={"Location": "https://elsewhere.example/"}))
        with pytest.raises(Unavailable, match="answered 307"):
            caller.look("job-1")
        with pytest.raises(RequestRefused, match="answered 307"):
            caller.submit(REQUEST)
        assert {request.url.host for request in wire.requests} == {httpx.URL(contract.base_url).host}

    @pytest.mark.parametrize(
        "location", ["", "http://[", "//", "http:", "\\", "ftp://x", "http://a:b", "?" * 70000]
    )
    def test_a_nonsensical_redirect_is_only_a_bad_answer(self, drive: Drive, location: str) -> None:
        """No ``Location`` makes a look raise anything but an error of the tree."""
        caller, _ = drive(httpx.Response(302, headers={"Location": location}))
        with pytest.raises(Unavailable):
            caller.look("job-1")


@pytest.mark.parametrize(("characters", "beside"), [(10, False), (100_000, True)])
async def test_a_large_answer_is_read_beside_the_event_loop(
    contract: Contract, characters: int, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading megabytes would hold up everybody else who waits."""
    readers: list[threading.Thread] = []
    read_job = Service.read_job

    def noted(self: Service, job_id: str, given: httpx.Response) -> Job:
        readers.append(threading.current_thread())
        return read_job(self, job_id, given)

    monkeypatch.setattr(Service, "read_job", noted)
    body = contract.look("succeeded").content.replace(b"Paris.", b"x" * characters)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    async with AsyncClient(contract.settings(), transport=transport) as client:
        assert (await client.look("job-1")).content == "x" * characters
    assert [reader is not threading.main_thread() for reader in readers] == [beside]


class TestLooks:
    """What a look ends in."""

    def test_not_found(self, contract: Contract, drive: Drive) -> None:
        """A 404 has a type of its own, because what it means depends on the service."""
        caller, _ = drive(contract.not_found())
        with pytest.raises(JobNotFound, match=r"for job 'job-1'"):
            caller.look("job-1")

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_denied(self, drive: Drive, status: int) -> None:
        """The message says what to repair."""
        caller, _ = drive(refusal(status))
        with pytest.raises(AccessDenied, match="then clear the task"):
            caller.look("job-1")

    @pytest.mark.parametrize(
        "error",
        [
            httpx.ConnectError("x"),
            httpx.ReadTimeout("x"),
            httpx.RemoteProtocolError("x"),
            httpx.DecodingError("x"),
            httpx.UnsupportedProtocol("x"),
            aiohttp.ClientPayloadError("x"),
            ConnectionResetError("x"),
            TimeoutError("x"),
        ],
    )
    def test_no_answer(self, drive: Drive, error: Exception) -> None:
        """Every way of not being answered is one: look again later."""
        caller, _ = drive(error)
        with pytest.raises(Unavailable, match=f"did not answer: {type(error).__name__}") as caught:
            caller.look("job-1")
        assert caught.value.__suppress_context__, "a transport's own text may quote a proxy's password"
        assert caught.value.transient
        assert not caught.value.throttled

    def test_a_look_is_sent_once(self, drive: Drive) -> None:
        """When to look again is the caller's decision."""
        caller, wire = drive(refusal(503))
        with pytest.raises(Unavailable):
            caller.look("job-1")
        assert len(wire.requests) == 1

    def test_looks_in_turn_keep_the_ceiling(self, contract: Contract, drive: Drive, clock: Clock) -> None:
        """Ten looks at two a second take four and a half seconds or more."""
        caller, _ = drive(contract.look("pending"), requests_per_second=2)
        before = clock.monotonic()
        for _ in range(10):
            caller.look_in_turn("job-1")
        assert 4.4 <= clock.monotonic() - before <= 5.5

    def test_a_look_in_turn_obeys_the_429_before_it(
        self, contract: Contract, drive: Drive, clock: Clock
    ) -> None:
        """The look that was refused says so; the next one waits as long as it was told."""
        caller, _ = drive(refusal(429, **{"Retry-After": "9"}), contract.look("pending"))
        before = clock.monotonic()
        with pytest.raises(Unavailable):
            caller.look_in_turn("job-1")
        assert not caller.look_in_turn("job-1").done
        assert clock.monotonic() - before >= 9

    def test_a_look_in_turn_slows_nobody_for_another_trouble(self, drive: Drive) -> None:
        """A 500 says nothing about how many requests the service wants."""
        caller, _ = drive(refusal(500), requests_per_second=10)
        with pytest.raises(Unavailable):
            caller.look_in_turn("job-1")
        assert caller.limit.rate == 10

    def test_an_id_that_is_none_is_not_asked_for(self, drive: Drive) -> None:
        """``..`` would ask for another resource."""
        caller, wire = drive(refusal(500))
        with pytest.raises(RequestRefused, match="nothing was asked"):
            caller.look("..")
        assert wire.requests == []

    def test_a_probe_of_a_usable_connection(self, contract: Contract, drive: Drive) -> None:
        """The service answers and accepts the key: it does not know the job, as it should not."""
        caller, wire = drive(contract.not_found())
        caller.probe()
        assert contract.asked_for(wire.requests[0]) == "00000000-0000-4000-8000-000000000000"

    def test_a_probe_that_finds_the_job(self, contract: Contract, drive: Drive) -> None:
        """A service that makes something up is reachable all the same."""
        caller, _ = drive(contract.look("pending"))
        caller.probe()

    @pytest.mark.parametrize("page", [b"<h1>404 Not Found</h1>", b"", b"[]"])
    def test_a_probe_of_another_server(self, drive: Drive, page: bytes) -> None:
        """Any server answers 404 to a path it does not know; the service says so in JSON."""
        caller, _ = drive(httpx.Response(404, content=page))
        with pytest.raises(RequestRefused, match="correct the connection's host"):
            caller.probe()

    def test_a_probe_with_a_wrong_key(self, drive: Drive) -> None:
        """Anything but "no such job" is the probe's finding."""
        caller, _ = drive(refusal(401))
        with pytest.raises(AccessDenied):
            caller.probe()


def test_a_certificate_that_is_not_trusted_is_said_to_be_that(drive: Drive) -> None:
    """The usual reason behind a proxy that opens TLS; no word of it is the vendor's fault."""
    failure, cause = httpx.ConnectError("cannot"), ssl.SSLCertVerificationError(1, "failed")
    cause.verify_message = "self-signed certificate in certificate chain"
    failure.__cause__ = cause
    caller, _ = drive(failure)
    with pytest.raises(NotAccepted, match="self-signed certificate in certificate chain"):
        caller.submit(REQUEST, deadline=0)


class TestSubmissions:
    """What a submission ends in, and when it is sent again."""

    @pytest.mark.parametrize(
        "answer",
        [
            REFUSED,
            httpx.ConnectTimeout("x"),
            httpx.ProxyError("x"),
            refusal(429),
            refusal(425),
            refusal(503, **{"Retry-After": "2"}),
        ],
        ids=["refused", "connect-timeout", "proxy", "429", "425", "503-retry-after"],
    )
    def test_not_accepted_is_sent_again(
        self, contract: Contract, drive: Drive, clock: Clock, answer: Any
    ) -> None:
        """What surely was not taken is sent again after a wait, inside the attempt."""
        caller, wire = drive(answer, answer, contract.ticket("job-1"))
        assert caller.submit(REQUEST) == "job-1"
        assert len(wire.requests) == 3
        assert sum(clock.slept) > 1.0
        assert {request.content for request in wire.requests} == {wire.requests[0].content}

    @pytest.mark.parametrize(
        "answer",
        [
            refusal(500),
            refusal(502),
            refusal(503),
            refusal(504),
            refusal(408),
            httpx.ReadTimeout("x"),
            httpx.WriteTimeout("x"),
            httpx.ReadError("x"),
            httpx.WriteError("x"),
            httpx.RemoteProtocolError("x"),
            httpx.DecodingError("x"),
            aiohttp.ServerDisconnectedError(),
            ConnectionResetError("x"),
            httpx.Response(200, content=b""),
            httpx.Response(200, content=b"<html>"),
            httpx.Response(200, json={"choices": []}),
        ],
        ids=lambda answer: (
            answer.status_code if isinstance(answer, httpx.Response) else type(answer).__name__
        ),
    )
    def test_sent_and_not_answered_is_never_repeated(self, drive: Drive, answer: Any) -> None:
        """It may have been taken and billed: that is said, and only the author can decide to pay again."""
        caller, wire = drive(answer)
        with pytest.raises(OutcomeUnknown, match="may have been accepted, and then it runs and is billed"):
            caller.submit(REQUEST)
        assert len(wire.requests) == 1

    @pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
    def test_refused_fails_at_once_with_the_services_words(self, drive: Drive, status: int) -> None:
        """Saying it again will not help."""
        caller, wire = drive(refusal(status))
        with pytest.raises(RequestRefused, match=rf"answered {status}: \"the service's words\"") as caught:
            caller.submit(REQUEST)
        assert not caught.value.transient
        assert len(wire.requests) == 1

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_denied_fails_at_once(self, drive: Drive, status: int) -> None:
        """A person has to act."""
        caller, wire = drive(refusal(status))
        with pytest.raises(AccessDenied):
            caller.submit(REQUEST)
        assert len(wire.requests) == 1

    @pytest.mark.parametrize(
        ("headers", "least", "most"),
        [
            ({"Retry-After": "30"}, 30.0, 31.5),
            (
                {"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"},
                30.0,
                31.5,
            ),
            ({"Retry-After": "Wed Oct 21 07:28:30 2026", "Date": "Wed Oct 21 07:28:00 2026"}, 30.0, 31.5),
            ({"Retry-After": "86400"}, RETRY_AFTER_CAP, RETRY_AFTER_CAP + 2),
            ({"Retry-After": "soon"}, 0.5, 2.0),
            ({}, 0.5, 2.0),
        ],
    )
    def test_retry_after_is_honoured(
        self,
        contract: Contract,
        drive: Drive,
        clock: Clock,
        headers: dict[str, str],
        least: float,
        most: float,
    ) -> None:
        """In seconds or as a date, up to a cap; what cannot be read is as if it was not said."""
        caller, _ = drive(refusal(429, **headers), contract.ticket("job-1"))
        before = clock.monotonic()
        caller.submit(REQUEST)
        assert least <= clock.monotonic() - before <= most

    def test_waits_grow(self, contract: Contract, drive: Drive, clock: Clock) -> None:
        """A service that is away for minutes is not hammered."""
        caller, _ = drive(*[REFUSED] * 7, contract.ticket("job-1"))
        caller.submit(REQUEST)
        waits = [wait for wait in clock.slept if wait > 0.1]
        assert len(waits) == 7
        assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits[:6]))

    def test_the_deadline_ends_it(self, drive: Drive, clock: Clock) -> None:
        """The last refusal is the error; no wait goes beyond the deadline."""
        caller, wire = drive(refusal(429))
        deadline = clock.time() + 100
        with pytest.raises(NotAccepted) as caught:
            caller.submit(REQUEST, deadline=deadline)
        assert caught.value.status == 429
        assert clock.time() <= deadline
        assert 4 <= len(wire.requests) <= 20

    def test_without_a_deadline_it_is_an_hour(self, drive: Drive, clock: Clock) -> None:
        """A task does not hang for ever on a service that is gone."""
        caller, _ = drive(REFUSED)
        before = clock.time()
        with pytest.raises(NotAccepted, match="Nothing was sent and nothing is billed"):
            caller.submit(REQUEST)
        assert 3400 <= clock.time() - before <= 3600

    def test_a_retry_after_beyond_the_deadline_is_not_waited_for(self, drive: Drive, clock: Clock) -> None:
        """It is known at once that it will be too late, and said so."""
        caller, wire = drive(refusal(429, **{"Retry-After": "60"}))
        with pytest.raises(
            NotAccepted, match=r"not sent again \(attempt 1\): that would be in 60 s"
        ) as caught:
            caller.submit(REQUEST, deadline=clock.time() + 30)
        assert len(wire.requests) == 1
        assert (caught.value.status, caught.value.retry_after, caught.value.throttled) == (429, 60.0, True)

    def test_who_submits_may_stop_it_before_each_sending(self, drive: Drive) -> None:
        """A worker that was told to stop while it waits to be accepted sends nothing more."""
        asked: list[int] = []

        def stop_the_second() -> None:
            asked.append(1)
            if len(asked) == 2:
                raise WorkerStopped("Told to.")

        caller, wire = drive(refusal(429))
        with pytest.raises(WorkerStopped):
            caller.submit(REQUEST, before_sending=stop_the_second)
        assert len(wire.requests) == 1

    def test_a_deadline_in_the_past_still_sends_once(
        self, contract: Contract, drive: Drive, clock: Clock
    ) -> None:
        """The deadline bounds repeating, not trying."""
        caller, _ = drive(contract.ticket("job-1"))
        assert caller.submit(REQUEST, deadline=clock.time() - 10) == "job-1"

    def test_trouble_is_logged_at_rising_failures(
        self, drive: Drive, contract: Contract, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The 1st, 2nd, 4th … failure in a row is a warning, what lies between is not; no prompt, no key."""
        caller, _ = drive(*[refusal(429)] * 5, contract.ticket("job-1"))
        with caplog.at_level(logging.DEBUG, logger=client_module.__name__):
            caller.submit(REQUEST)
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        quiet = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
        assert [line[-16:] for line in told] == [f"failure {n} in a row)."[-16:] for n in (1, 2, 4)]
        assert len(quiet) == 2
        assert all("Sending it again in" in line for line in told + quiet)
        assert KEY not in caplog.text
        assert PROMPT not in caplog.text

    def test_429_slows_everybody_who_shares_the_limit(
        self, contract: Contract, drive: Drive, clock: Clock
    ) -> None:
        """The rate is halved, and each success brings a little of it back."""
        caller, _ = drive(refusal(429), contract.ticket("job-1"), requests_per_second=10)
        caller.submit(REQUEST)
        assert caller.limit.rate == pytest.approx(5.1)

    def test_not_being_connected_slows_nobody(self, contract: Contract, drive: Drive) -> None:
        """A refused connection says nothing about how many requests the service wants."""
        caller, _ = drive(REFUSED, contract.ticket("job-1"), requests_per_second=10)
        caller.submit(REQUEST)
        assert caller.limit.rate == 10

    def test_the_ceiling_is_kept(self, contract: Contract, drive: Drive, clock: Clock) -> None:
        """Ten submissions at two a second take four and a half seconds or more."""
        caller, _ = drive(contract.ticket("job-1"), requests_per_second=2)
        before = clock.monotonic()
        for _ in range(10):
            caller.submit(REQUEST)
        assert 4.4 <= clock.monotonic() - before <= 5.5

    def test_a_limit_can_be_shared(self, contract: Contract, colour: Colour) -> None:
        """A pool and its client, or several clients, follow one limit."""
        limit = RateLimit(3)
        transport = httpx.MockTransport(lambda request: contract.ticket("job-1"))
        make = Client if colour == "sync" else AsyncClient
        assert make(contract.settings(), limit=limit, transport=transport).limit is limit

    def test_sending_once_is_sending_once(self, contract: Contract, drive: Drive, clock: Clock) -> None:
        """Whoever keeps a record of each attempt sends it himself, and the limit still learns."""
        caller, wire = drive(refusal(429, **{"Retry-After": "9"}), contract.ticket("job-1"))
        call = contract.service.describe_submit(REQUEST, contract.settings())
        with pytest.raises(NotAccepted):
            caller.submit_once(call)
        assert len(wire.requests) == 1
        assert caller.limit.take(clock.monotonic()) == pytest.approx(9.0)
        assert caller.submit_once(call) == "job-1"


class TestSizes:
    """Bodies that are large, or larger than they seem."""

    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """A limit that is quicker to reach."""
        monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 100_000)
        return 100_000

    def test_an_oversized_answer_is_not_read(
        self, contract: Contract, drive_handler: Callable[..., Caller], small: int
    ) -> None:
        """Reading stops at the limit, however much there is."""
        given = []

        class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                while True:
                    given.append(1)
                    yield b" " * 10_000

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for chunk in self:
                    yield chunk

        caller = drive_handler(lambda request: httpx.Response(200, stream=Endless()))
        with pytest.raises(Unavailable, match="did not answer: the answer has more than"):
            caller.look("job-1")
        assert len(given) <= 11
        with pytest.raises(OutcomeUnknown, match="did not answer: the answer has more than"):
            caller.submit(REQUEST)

    def test_an_answer_at_the_limit_is_read(self, contract: Contract, drive: Drive, small: int) -> None:
        """The limit itself is allowed."""
        body = contract.look("succeeded").content
        caller, _ = drive(httpx.Response(200, content=body + b" " * (small - len(body))))
        assert caller.look("job-1").succeeded

    def test_a_bomb_is_defused(self, drive: Drive, small: int) -> None:
        """The size that counts is the one after decompression."""
        bomb = gzip.compress(b" " * (50 * small))
        caller, _ = drive(packed(bomb))
        with pytest.raises(Unavailable, match="the answer has more than"):
            caller.look("job-1")

    def test_a_compressed_answer_is_read(self, contract: Contract, drive: Drive) -> None:
        """What a gateway compressed is the same answer, also when it is quoted in an error."""
        caller, _ = drive(
            packed(gzip.compress(contract.look("succeeded").content)),
            packed(gzip.compress(b'{"message": "squeezed"}'), status=400),
        )
        assert caller.look("job-1").content == "Paris."
        with pytest.raises(RequestRefused, match='"squeezed"'):
            caller.look("job-1")

    def test_what_cannot_be_decompressed(self, drive: Drive) -> None:
        """A wrong ``Content-Encoding`` is no usable answer."""
        caller, _ = drive(packed(b"not gzip"))
        with pytest.raises(Unavailable, match="DecodingError"):
            caller.look("job-1")


def packed(body: bytes, *, status: int = 200) -> Callable[[], httpx.Response]:
    """Return an answer that says its body is compressed, and is not decoded yet."""
    headers = {"Content-Encoding": "gzip"}
    return lambda: httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


class TestSecrets:
    """What must not be told."""

    def test_nothing_secret_in_errors_and_logs(
        self, contract: Contract, drive: Drive, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever goes wrong, neither key nor header nor prompt is in the error, its causes or the log."""
        caplog.set_level(logging.DEBUG)
        said = json.dumps({"message": f"bad key {KEY}"})
        escaped = said.replace("/", r"\/").replace("+", r"\u002B").replace("-", r"\u002d")
        sayings: list[Answer] = [
            *(httpx.Response(status, content=said) for status in (400, 401, 403, 429, 500, 503)),
            *(httpx.Response(status, content=escaped) for status in (200, 400, 401)),
            httpx.ReadError("x"),
            httpx.Response(200, content=said),
        ]
        for answer in sayings:
            caller, _ = drive(answer)
            for act, given in (
                (caller.submit, {"request": REQUEST, "deadline": 0.0}),
                (caller.look, {"job_id": "job-1"}),
            ):
                try:
                    cast("Callable[..., object]", act)(**given)
                except InferenceError as error:
                    for text in (str(error), repr(error), str(vars(error)), str(error.__context__)):
                        assert KEY not in text
                        assert PROMPT not in text
        assert KEY not in caplog.text
        assert PROMPT not in caplog.text

    def test_a_client_shows_no_key(self, drive: Drive, contract: Contract) -> None:
        """Not in its ``repr``, nor in that of its parts."""
        caller, _ = drive(contract.ticket("x"))
        assert KEY not in repr(caller.client)
        assert KEY not in repr(vars(caller.client))


class TestNeverConnected:
    """When sending again is safe."""

    @pytest.mark.parametrize(
        ("error", "cause", "never"),
        [
            (httpx.ConnectError("x"), None, True),
            (httpx.ConnectTimeout("x"), None, True),
            (httpx.PoolTimeout("x"), None, True),
            (httpx.ProxyError("x"), None, True),
            (httpx.ReadTimeout("x"), None, False),
            (httpx.WriteError("x"), None, False),
            (httpx.RemoteProtocolError("x"), None, False),
            (httpx.ConnectError("x"), OSError("x"), True),
            (httpx.ConnectTimeout("x"), aiohttp.ServerDisconnectedError(), False),
            (httpx.ConnectTimeout("x"), aiohttp.ClientOSError(104, "reset"), False),
            (httpx.ConnectTimeout("x"), aiohttp.ConnectionTimeoutError(), True),
            (httpx.ReadTimeout("x"), aiohttp.SocketTimeoutError(), False),
            (aiohttp.ClientPayloadError("x"), None, False),
            (ConnectionResetError("x"), None, False),
        ],
    )
    def test_the_real_reason_counts(self, error: Exception, cause: Exception | None, never: bool) -> None:
        """The aiohttp transport calls a connection that broke after sending a connect timeout as well."""
        error.__cause__ = cause
        assert never_connected(error) is never


class Opens(Backoff):
    """A backoff that lets a server listen in the meantime, and does not wait."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        object.__setattr__(self, "server", server)

    server: Server

    def delay(self, failures: int, rng: random.Random) -> float:
        """Open the server at once."""
        self.server.listen()
        return 0.0


class TestRealServer:
    """Bytes over the loopback interface, so that the transports' own behaviour is part of the test."""

    def test_a_header_that_is_not_text(self, contract: Contract, drive_real: DriveReal) -> None:
        """Any bytes may stand in a header; the request was accepted all the same."""
        odd = {"X-Region": "Z\u00fcrich"}
        with Server(answers(contract.ticket("job-1").content, headers=odd)) as server:
            assert drive_real(server.url).submit(REQUEST) == "job-1"

    def test_a_refused_connection_is_sent_again(self, contract: Contract, drive_real: DriveReal) -> None:
        """Nothing was sent, so the request goes out again once somebody listens."""
        with Server(answers(contract.ticket("job-1").content), listening=False) as server:
            caller = drive_real(server.url)
            caller.client._backoff = Opens(server)
            assert caller.submit(REQUEST) == "job-1"
            assert len(server.seen) == 1

    def test_an_unreachable_host_is_named_with_the_reason(self, drive_real: DriveReal) -> None:
        """Who is on call sees where it was to go and what the system said."""
        caller = drive_real("http://127.0.0.1:9")
        with pytest.raises(NotAccepted, match=r"reached: http://127\.0\.0\.1:9: Connect.* (refused|failed)"):
            caller.submit(REQUEST, deadline=0)

    def test_a_full_backlog_is_sent_again(self, drive_real: DriveReal) -> None:
        """A connect timeout is surely not accepted."""
        with ExitStack() as open_sockets:
            listener = open_sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(3):
                filler = open_sockets.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            caller = drive_real(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.2)
            with pytest.raises(NotAccepted, match="ConnectTimeout"):
                caller.submit(REQUEST, deadline=0)

    @pytest.mark.parametrize(
        "behave", [closes, resets, truncates, breaks_chunks, talks_nonsense, hangs, hangs_in_headers, drips]
    )
    def test_whatever_happens_after_sending_is_unknown(
        self, drive_real: DriveReal, behave: Callable[[Server, socket.socket], bool]
    ) -> None:
        """However the connection ends, the request was there: it is sent exactly once."""
        with Server(behave) as server:
            # What drips is given up after both timeouts together.
            connect_timeout = 2.0 if behave is drips else 10.0
            caller = drive_real(server.url, timeout=0.25, connect_timeout=connect_timeout)
            with pytest.raises(OutcomeUnknown):
                caller.submit(REQUEST, deadline=0)
            assert len(server.requests(1)) == 1
            with pytest.raises(Unavailable):
                caller.look("job-1")

    def test_a_connection_that_died_in_between_is_never_used_twice(
        self, contract: Contract, drive_real: DriveReal
    ) -> None:
        """A kept connection may be closed just as it is used: a submission is not repeated on another."""
        ticket = contract.ticket("job-1").content
        with Server(answers(ticket), closes, answers(ticket)) as server:
            caller = drive_real(server.url)
            assert caller.submit(REQUEST) == "job-1"
            with pytest.raises(OutcomeUnknown):
                caller.submit(REQUEST)
            assert len(server.seen) == 2

    def test_connections_are_kept(self, contract: Contract, drive_real: DriveReal) -> None:
        """Looks one after the other need one connection, errors included."""
        with Server(
            answers(contract.look("pending").content), answers(b"{}", status=500), answers(b"{}", status=404)
        ) as server:
            caller = drive_real(server.url)
            caller.look("job-1")
            for error in (Unavailable, JobNotFound, JobNotFound):
                with pytest.raises(error):
                    caller.look("job-1")
            assert len(server.seen) == 4
            assert server.connections == 1

    @pytest.mark.parametrize(
        "job_id",
        [
            "plain",
            "a/b",
            "../x",
            "a?b=c",
            "50%",
            "%2e%2e",
            "a b",
            "a+b",
            "a:b@c;d~e'!",
            "ключ",
            "...",
            "a//b",
        ],
    )
    def test_ids_arrive_as_they_are(self, contract: Contract, drive_real: DriveReal, job_id: str) -> None:
        """Both transports ask a real server for the same path, below the base URL, and nothing else."""
        with Server(answers(contract.look("pending").content)) as server:
            caller = drive_real(f"{server.url}/base")
            caller.look(job_id)
            (seen,) = server.seen
        described = contract.service.describe_look(job_id, contract.settings())
        assert (seen.method, seen.target) == (described.method, f"/base{described.path}")
        request = httpx.Request(
            seen.method, f"http://host{seen.target.removeprefix('/base')}", content=seen.body
        )
        assert contract.asked_for(request) == job_id

    def test_headers_on_the_wire(self, contract: Contract, drive_real: DriveReal) -> None:
        """No transport adds credentials or cookies of its own."""
        headers = {"Set-Cookie": "machine=7"}
        with Server(answers(contract.ticket("job-1").content, headers=headers)) as server:
            caller = drive_real(server.url)
            caller.submit(REQUEST)
            caller.submit(REQUEST)
        for seen in server.seen:
            assert seen.headers["authorization"] == contract.authorization
            assert seen.headers["content-type"] == "application/json"
            assert "cookie" not in seen.headers
            assert seen.headers["user-agent"].startswith("airflow-provider-distribute")

    def test_netrc_is_not_consulted(
        self, contract: Contract, drive_real: DriveReal, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A user's ``~/.netrc`` neither replaces the key nor fails the request."""
        netrc = tmp_path / "netrc"
        netrc.write_text("default login somebody password else\n")
        monkeypatch.setenv("NETRC", str(netrc))
        with Server(answers(contract.ticket("job-1").content)) as server:
            assert drive_real(server.url).submit(REQUEST) == "job-1"
        assert server.seen[0].headers["authorization"] == contract.authorization

    def test_huge_headers_are_no_answer(self, drive_real: DriveReal) -> None:
        """Each library has its own limit; beyond it there is no usable answer."""
        with Server(answers(b"{}", headers={"X-Long": "x" * 200_000})) as server:
            caller = drive_real(server.url)
            with pytest.raises(OutcomeUnknown):
                caller.submit(REQUEST)

    def test_connections_are_bounded(self, contract: Contract) -> None:
        """No more are open at once than the connection allows, however many ask."""
        settings = contract.settings(base_url="http://unused", max_connections=3)

        async def many(url: str) -> None:
            async with await AsyncClient.open(settings.model_copy(update={"base_url": url})) as client:
                await asyncio.gather(*(client.look(f"job-{n}") for n in range(30)))

        with Server(answers(contract.look("pending").content)) as server:
            asyncio.run(many(server.url))
            assert len(server.seen) == 30
            assert server.connections <= 3

    def test_clients_are_context_managers(self, contract: Contract) -> None:
        """Leaving closes the connections; opening the asynchronous one does not block its event loop."""
        settings = contract.settings(base_url="http://127.0.0.1:1")

        async def refused() -> None:
            async with await AsyncClient.open(settings) as client:
                with pytest.raises(Unavailable):
                    await client.look("job-1")

        asyncio.run(refused())
        with Client(settings) as client, pytest.raises(Unavailable):
            client.look("job-1")


class TestProxies:
    """Proxies that the environment names."""

    def test_the_environments_proxy_is_used(
        self, contract: Contract, drive_real: DriveReal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request to a plain HTTP service goes to the proxy in absolute form."""
        with Server(answers(contract.ticket("job-1").content)) as proxy:
            monkeypatch.setenv("http_proxy", f"http://user:word@127.0.0.1:{proxy.port}")
            assert drive_real("http://service.example:81/base").submit(REQUEST) == "job-1"
        (seen,) = proxy.seen
        assert seen.target == f"http://service.example:81/base{contract.submit_path}"
        assert seen.headers["authorization"] == contract.authorization
        assert seen.headers["proxy-authorization"].startswith("Basic ")

    def test_no_proxy_is_honoured(
        self, contract: Contract, drive_real: DriveReal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Hosts that the environment excepts are asked directly."""
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
        with Server(answers(contract.ticket("job-1").content)) as server:
            assert drive_real(server.url).submit(REQUEST) == "job-1"

    @pytest.mark.parametrize("behave", [answers(b"", status=407), answers(b"", status=502)])
    def test_a_proxy_that_refuses_the_tunnel(
        self, drive_real: DriveReal, monkeypatch: pytest.MonkeyPatch, behave: Any
    ) -> None:
        """The request never left the proxy: it was surely not accepted."""
        with Server(behave) as proxy:
            monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
            caller = drive_real("https://service.example")
            with pytest.raises(NotAccepted, match="ProxyError") as caught:
                caller.submit(REQUEST, deadline=0)
        assert {seen.method for seen in proxy.seen} == {"CONNECT"}
        assert KEY not in str(caught.value)

    def test_other_kinds_of_proxy_are_refused(
        self, contract: Contract, colour: Colour, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error names the kind and not the address, which may hold a password."""
        monkeypatch.setenv("ALL_PROXY", "socks5://user:word@127.0.0.1:1")
        make = Client if colour == "sync" else AsyncClient
        with pytest.raises(ConnectionInvalid, match="the environment names a socks5 proxy") as caught:
            make(contract.settings())
        assert "word" not in str(caught.value)
