# SPDX-License-Identifier: Apache-2.0

"""The server on its port: delivery, faults on the wire, outages, connections."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_provider_distribute.emulator.app import reset
from airflow_provider_distribute.emulator.server import Server
from airflow_provider_distribute.emulator.settings import Settings
from airflow_provider_distribute.testing import InferenceEmulator
from tests.emulator.wire import chat

if TYPE_CHECKING:
    from pathlib import Path

BEARER = {"Authorization": "Bearer emulator-key"}


def submit(client: httpx.Client, prefix: str = "", **fields: Any) -> httpx.Response:
    """Submit to distribute."""
    return client.post(f"{prefix}/async/chat/create", json=chat(**fields))


@pytest.mark.parametrize("prefix", ["", "/distribute"])
def test_distribute_is_at_the_root_and_under_its_name(client: httpx.Client, prefix: str) -> None:
    """Both addresses lead to the same jobs."""
    job = submit(client, prefix).json()["id"]
    assert client.post("/async/chat/result", json={"id": job}).json()["status"] == "COMPLETED"


@pytest.mark.parametrize("prefix", ["", "/inference_net"])
@pytest.mark.parametrize("lane", ["slow", "async"])
def test_inference_net_is_at_the_root_and_under_its_name(
    client: httpx.Client, prefix: str, lane: str
) -> None:
    """``async`` is an alias of ``slow`` for submissions; looks have one address."""
    job = client.post(f"{prefix}/v1/{lane}/chat/completions", json=chat(), headers=BEARER).json()["id"]
    assert client.get(f"{prefix}/v1/generation/{job}", headers=BEARER).json()["state"] == "Success"


@pytest.mark.parametrize(
    "path", ["/inference_net/async/chat/create", "/v1/chat/completions", "/v1/generation/"]
)
def test_an_address_the_contract_does_not_have_is_404(
    client: httpx.Client, emulator: InferenceEmulator, path: str
) -> None:
    """In JSON, and in the ledger."""
    reply = client.post(path, json=chat())
    assert (reply.status_code, reply.json()["message"]) == (404, "Not Found")
    (entry,) = emulator.requests(operation="other")
    assert entry.status == 404


def test_what_fails_before_it_reaches_a_service_is_500(
    client: httpx.Client, emulator: InferenceEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """In JSON, in the ledger, and with its traceback in the log: here a body that is not what it says."""
    reply = client.post("/async/chat/create", content=b"no gzip", headers={"Content-Encoding": "gzip"})
    assert (reply.status_code, reply.json()["message"]) == (500, "Internal Server Error")
    (entry,) = emulator.requests(operation="other")
    assert (entry.status, entry.authorized) == (500, True)
    assert "The emulator failed at POST '/async/chat/create'" in caplog.text


def test_a_control_request_that_fails_is_500(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """In JSON; control requests are not in the ledger."""
    reply = client.post("/_emulator/faults", content=b"[" * 100_000)
    assert (reply.status_code, reply.json()["message"]) == (500, "Internal Server Error")
    assert emulator.requests() == []


def test_another_method_is_405(client: httpx.Client) -> None:
    """With the one that is allowed; HEAD is another method."""
    reply = client.get("/async/chat/create")
    assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")
    assert client.head("/v1/models").status_code == 405


@pytest.mark.parametrize("job_id", ["a/b", "a b", "a?b#c", "100%", "%2F", "ü", "a\n"])
def test_a_quoted_id_arrives_as_it_was(
    client: httpx.Client, emulator: InferenceEmulator, job_id: str
) -> None:
    """An id is opaque: nothing in it is a path."""
    path = f"/v1/generation/{quote(job_id, safe='')}"
    client.get(path, headers=BEARER)
    assert [entry.job_id for entry in emulator.requests()] == [job_id]


def test_a_reset_is_a_reset(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """Nothing was processed; the next request is answered."""
    emulator.fault("reset", count=1)
    with pytest.raises(httpx.TransportError):
        submit(client)
    assert emulator.paid == 0
    assert submit(client).status_code == 200


def test_an_answer_may_be_lost_after_the_job_was_accepted(
    client: httpx.Client, emulator: InferenceEmulator
) -> None:
    """The one thing a client must not repeat silently."""
    emulator.fault("reset", accepted=True, count=1)
    with pytest.raises(httpx.TransportError):
        submit(client)
    assert emulator.paid == 1
    (entry,) = emulator.requests(paid=1)
    assert (entry.status, entry.fault, entry.job_id) == (None, "reset", emulator.jobs[0].id)


def test_a_cut_answer_breaks_off(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """After the headers and half of what they announce."""
    emulator.fault("cut")
    with client.stream("POST", "/async/chat/create", json=chat()) as reply:
        assert reply.status_code == 200
        with pytest.raises(httpx.TransportError):
            reply.read()


def test_a_hanging_request_ends_in_a_reset(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """So that a client without a timeout is not held for ever."""
    emulator.fault("hang", seconds=0.05)
    with pytest.raises(httpx.TransportError):
        submit(client)


def test_a_client_that_gives_up_sees_a_timeout(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """And the emulator stops at once, though the fault would take minutes."""
    emulator.fault("hang", seconds=600)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/async/chat/create", json=chat(), timeout=0.05)


def test_an_oversized_answer_is_sent_in_pieces(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """It is valid JSON for who reads it all."""
    emulator.fault("oversized", size=200_000)
    reply = submit(client)
    assert len(reply.content) > 200_000
    assert "id" in reply.json()


def test_who_follows_a_redirect_is_noted(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """With the key, if it came along."""
    emulator.fault("redirect")
    reply = submit(client)
    assert (reply.status_code, reply.headers["Location"]) == (307, "/elsewhere")
    client.post(reply.headers["Location"])
    (entry,) = emulator.requests(operation="other")
    assert entry.authorized


@pytest.mark.parametrize("kind", ["truncated", "malformed", "empty", "html"])
def test_an_answer_that_is_not_json(client: httpx.Client, emulator: InferenceEmulator, kind: str) -> None:
    """In a response that is whole as far as HTTP goes."""
    emulator.fault(kind)
    reply = submit(client)
    assert reply.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        reply.json()


def test_a_connection_that_is_gone_needs_no_reset() -> None:
    """Its client was faster."""
    reset(None)


class TestOutage:
    """Nothing answers for a while."""

    def test_a_status(self, client: httpx.Client, emulator: InferenceEmulator) -> None:
        """In the service's form of error."""
        with emulator.outage():
            assert submit(client).json() == {"message": "Service unavailable"}
        assert submit(client).status_code == 200

    def test_reset(self, client: httpx.Client, emulator: InferenceEmulator) -> None:
        """Connections are made, and reset with the first request."""
        with emulator.outage("reset"), pytest.raises(httpx.TransportError):
            submit(client)
        assert submit(client).status_code == 200

    def test_refuse(self, client: httpx.Client, emulator: InferenceEmulator) -> None:
        """Open connections are reset, new ones are not made; jobs go on; the port is the same afterwards."""
        job = submit(client).json()["id"]
        url = emulator.url
        with emulator.outage("refuse"):
            for _ in range(2):
                with pytest.raises(httpx.TransportError):
                    submit(client)
            with pytest.raises(httpx.ConnectError):
                httpx.get(url)
        assert emulator.url == url
        assert client.post("/async/chat/result", json={"id": job}).json()["status"] == "COMPLETED"

    def test_refuse_over_http_ends_by_itself(self, client: httpx.Client, emulator: InferenceEmulator) -> None:
        """Because the request that would end it is refused as well; who asked for it gets an answer."""
        asked = client.post("/_emulator/outage", json={"mode": "refuse", "seconds": 1.0})
        assert asked.json() == {"mode": "refuse", "seconds": 1.0}
        with pytest.raises(httpx.ConnectError):
            submit(client)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert submit(client).status_code == 200
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline

    def test_a_second_refusal_replaces_the_first(
        self, client: httpx.Client, emulator: InferenceEmulator
    ) -> None:
        """There is one listener to restore."""
        with emulator.outage("refuse"), emulator.outage("refuse"):
            pass
        assert submit(client).status_code == 200

    def test_an_emulator_can_be_stopped_while_it_refuses(self) -> None:
        """Nothing is left that would listen again."""
        with InferenceEmulator() as emulator, httpx.Client(base_url=emulator.url) as client:
            client.post("/_emulator/outage", json={"mode": "refuse", "seconds": 60})
        with pytest.raises(httpx.ConnectError):
            httpx.get(emulator.url)


async def test_connections_are_counted() -> None:
    """How many were opened, are open, and were open at most; one connection takes many requests."""
    async with Server(Settings()) as server:
        async with (
            httpx.AsyncClient(base_url=server.url) as one,
            httpx.AsyncClient(base_url=server.url) as other,
        ):
            for _ in range(3):
                await one.get("/v1/models")
            await other.get("/v1/models")
            assert server.stats() == {"opened": 2, "open": 2, "peak": 2}
        async with httpx.AsyncClient(base_url=server.url) as third:
            await third.get("/v1/models")
        assert server.stats()["opened"] == 3


async def test_a_server_listens_on_ipv6() -> None:
    """Its address is written in brackets."""
    async with Server(Settings(), host="::1") as server, httpx.AsyncClient() as client:
        assert server.url == f"http://[::1]:{server.port}"
        assert (await client.get(f"{server.url}/v1/models")).status_code == 200


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "emulator")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def test_https(tmp_path: Path) -> None:
    """Faults work there as well."""
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    trust = ssl.create_default_context(cafile=str(cert))
    with InferenceEmulator(tls=context) as emulator:
        assert emulator.url.startswith("https://")
        with httpx.Client(
            base_url=emulator.url, headers={"Authorization": "emulator-key"}, verify=trust
        ) as client:
            assert submit(client).status_code == 200
            emulator.fault("reset", count=1)
            with pytest.raises(httpx.TransportError):
                submit(client)
            with emulator.outage("refuse"), pytest.raises(httpx.TransportError):
                submit(client)
            assert submit(client).status_code == 200


async def test_the_same_seed_repeats_a_session_on_the_wire() -> None:
    """Ids, faults and texts, request by request."""
    settings = Settings(seed=7, faults=("500:rate=0.3", "error:rate=0.2"))

    async def session() -> list[tuple[int, bytes]]:
        async with (
            Server(settings, clock=lambda: 1_750_000_000.0) as server,
            httpx.AsyncClient(base_url=server.url, headers={"Authorization": "k"}) as client,
        ):
            replies = [await client.post("/async/chat/create", json=chat()) for _ in range(30)]
            ids = [reply.json()["id"] for reply in replies if reply.status_code == 200]
            replies += [await client.post("/async/chat/result", json={"id": job}) for job in ids]
        return [(reply.status_code, reply.content) for reply in replies]

    assert await session() == await session()


async def test_a_connection_is_kept_for_two_minutes_at_least() -> None:
    """So that a client that polls calmly needs no new one."""
    from airflow_provider_distribute.emulator import server

    assert server.KEEP_ALIVE_SECONDS >= 120
    async with Server(Settings()) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" not in head.lower()
        writer.close()
        await writer.wait_closed()
