# SPDX-License-Identifier: Apache-2.0

"""
What waiting costs the triggerer: CPU and connections per look, memory per job, event-loop lag.

The emulator runs in a process of its own, behind TLS. Each transport does the same looks at the same jobs
over 32 connections; the last column is the ratio to a bare aiohttp loop in the same run.

Run: ``python benchmarks/waiting_pool.py``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import gc
import ipaddress
import itertools
import json
import os
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.models import ChatRequest
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.waiting.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from airflow_provider_distribute.models import Settings

CONNECTIONS = 32
#: Looks per second that a pool is asked for, more than one core can send.
BUSY = 20_000
KEY = "benchmark-key"


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """Run the emulator behind TLS in a process of its own; jobs there never finish."""
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = self_signed(Path(directory))
        os.environ["SSL_CERT_FILE"] = str(certificate)
        command = [sys.executable, "-m", "airflow_provider_distribute.emulator", "--port", "0", "--key", KEY]
        command += ["--latency", "1000000", "--tls-cert", str(certificate), "--tls-key", str(key)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                ready = (process.stdout.readline() if process.stdout else "").split()
                yield next(word for word in ready if word.startswith("inference_net=")).partition("=")[2]
            finally:
                process.terminate()


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "certificate.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return certificate_file, key_file


def settings(base_url: str) -> Settings:
    """Return a connection to the emulator."""
    fields = {"api_key": KEY, "base_url": base_url, "model": "m", "max_connections": CONNECTIONS}
    return SERVICES["inference_net"].settings.parse("benchmark", fields)


async def stats(base_url: str) -> dict[str, Any]:
    """Ask the emulator what it has seen."""
    async with httpx.AsyncClient(base_url=base_url.removesuffix("/inference_net")) as client:
        answer: dict[str, Any] = (await client.get("/_emulator/stats")).json()
        return answer


async def submitted(base_url: str, count: int) -> list[str]:
    """Submit jobs to look at."""
    async with await AsyncClient.open(settings(base_url)) as client:
        turns = asyncio.Semaphore(CONNECTIONS)

        async def one(index: int) -> str:
            async with turns:
                return await client.submit(ChatRequest.parse(f"question {index}", model="m"))

        return list(await asyncio.gather(*(one(index) for index in range(count))))


async def in_turns(look: Callable[[str], Awaitable[Any]], job_ids: list[str], seconds: float) -> int:
    """Let as many workers as there are connections look at jobs, one after the other; return how often."""
    supply, looks, stop = itertools.cycle(job_ids), 0, time.monotonic() + seconds

    async def worker() -> None:
        nonlocal looks
        while time.monotonic() < stop:
            await look(next(supply))
            looks += 1

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return looks


@contextlib.asynccontextmanager
async def bare_aiohttp(base_url: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Yield the floor: aiohttp and ``json``, nothing else."""
    context = await asyncio.to_thread(ssl.create_default_context, cafile=os.environ["SSL_CERT_FILE"])
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def look(job_id: str) -> Any:
            async with session.get(f"{base_url}/v1/generation/{job_id}") as answer:
                return json.loads(await answer.read())

        yield look


@contextlib.asynccontextmanager
async def plain_httpx(base_url: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Yield httpx on its own connection pool."""
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=base_url, limits=limits, headers=headers) as client:

        async def look(job_id: str) -> Any:
            return (await client.get(f"/v1/generation/{job_id}")).json()

        yield look


@contextlib.asynccontextmanager
async def our_client(base_url: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Yield the asynchronous client of this package."""
    async with await AsyncClient.open(settings(base_url)) as client:
        yield client.look


async def cost_of_client(
    transport: Callable[[str], contextlib.AbstractAsyncContextManager[Callable[[str], Awaitable[Any]]]],
    base_url: str,
    job_ids: list[str],
    seconds: float,
) -> tuple[float, float]:
    """Return CPU milliseconds and new connections per look in the steady state."""
    async with transport(base_url) as look:
        await in_turns(look, job_ids, 1.0)
        opened, cpu = (await stats(base_url))["connections"]["opened"], time.process_time()
        looks = await in_turns(look, job_ids, seconds)
        cpu = time.process_time() - cpu
        fresh = (await stats(base_url))["connections"]["opened"] - opened - 1
        return cpu / looks * 1000, fresh / looks


async def cost_of_pool(base_url: str, job_ids: list[str], seconds: float) -> tuple[float, float, float]:
    """Return CPU milliseconds and new connections per look, and looks per second, of a pool kept busy."""
    pool = Pool(settings(base_url))
    waiting = asyncio.create_task(
        pool.wait(job_ids, deadline=time.time() + 3600, poke_interval=len(job_ids) / BUSY)
    )
    await asyncio.sleep(5.0)
    before, cpu, started = await stats(base_url), time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    cpu, took = time.process_time() - cpu, time.monotonic() - started
    after = await stats(base_url)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    looks = looks_in(after) - looks_in(before)
    fresh = after["connections"]["opened"] - before["connections"]["opened"] - 1
    return cpu / looks * 1000, fresh / looks, looks / took


def looks_in(seen: dict[str, Any]) -> int:
    """Return how many looks the emulator has answered."""
    return sum(seen["requests"]["inference_net"]["look"].values())


async def memory_and_lag(base_url: str, count: int, *, waiters: int, seconds: float) -> tuple[float, float]:
    """Return KiB per waiting job, and the 99th percentile of the event loop's lag in milliseconds."""
    job_ids = [f"job-{index:018d}" for index in range(count)]
    pool = Pool(settings(base_url))
    gc.collect()
    before = resident_kib()
    share = -(-count // waiters)
    tasks = [
        asyncio.create_task(
            pool.wait(job_ids[start : start + share], deadline=time.time() + 3600, poke_interval=30.0)
        )
        for start in range(0, count, share)
    ]
    await asyncio.sleep(5.0)
    lags: list[float] = []
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        asked = time.monotonic()
        await asyncio.sleep(0.005)
        lags.append(time.monotonic() - asked - 0.005)
    gc.collect()
    per_job = (resident_kib() - before) / count
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return per_job, sorted(lags)[int(len(lags) * 0.99)] * 1000


def resident_kib() -> float:
    """Return what this process occupies now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


async def main(seconds: float) -> None:
    """Measure everything and print the tables."""
    with emulator() as base_url:
        job_ids = await submitted(base_url, 2000)
        print(f"Looks over TLS on {CONNECTIONS} connections, {seconds:.0f} s each")
        print(f"{'transport':28}{'CPU ms/look':>12}{'new conn/look':>15}{'vs bare':>9}")
        floor = 0.0
        for name, transport in (
            ("bare aiohttp", bare_aiohttp),
            ("httpx on its own pool", plain_httpx),
            ("AsyncClient.look", our_client),
        ):
            cpu, fresh = await cost_of_client(transport, base_url, job_ids, seconds)
            floor = floor or cpu
            print(f"{name:28}{cpu:12.2f}{fresh:15.4f}{cpu / floor:9.1f}")
        cpu, fresh, rate = await cost_of_pool(base_url, job_ids, seconds)
        print(f"{'Pool, whole':28}{cpu:12.2f}{fresh:15.4f}{cpu / floor:9.1f}   ({rate:.0f} looks/s)")
        print(f"\n{'waiting jobs':28}{'KiB/job':>12}{'p99 lag ms':>15}")
        for count, waiters in ((1000, 1), (5000, 1), (1000, 1000), (5000, 5000)):
            per_job, lag = await memory_and_lag(base_url, count, waiters=waiters, seconds=seconds)
            print(f"{f'{count} jobs, {waiters} waiters':28}{per_job:12.2f}{lag:15.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each measurement takes")
    asyncio.run(main(parser.parse_args().seconds))
