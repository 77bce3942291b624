# SPDX-License-Identifier: Apache-2.0

"""
Requests per second of the emulator on one core, beside a bare aiohttp.web server that answers a constant.

.. code-block:: console

    python benchmarks/emulator_throughput.py [--requests 20000] [--connections 32]

Each server is a process of its own, and so is the load: each of them is one thread. The load is a raw
asyncio client that speaks just enough HTTP, because any real client would be the slower side. CPU time is
the server process's own; ``requests/CPU s`` is what one core would do if nothing else used it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBMISSION = json.dumps(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello to the world. " * 4}],
        "metadata": {"row": "1"},
    }
).encode()


def bare() -> None:
    """Serve a constant, and print the port."""
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(
            body=b'{"id":"61b1dfba-f03b-41e3-bd84-10365995126a"}', content_type="application/json"
        )

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/async/chat/create", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(f"ready http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


@contextlib.contextmanager
def server(*command: str) -> Iterator[tuple[int, int]]:
    """Run a server; give its process id and port, the last number of its first line before a path."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process.pid, int(line.split("http://127.0.0.1:")[1].split("/")[0].split()[0])
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def request(method: str, path: str, key: str, body: bytes) -> bytes:
    """Write a request out."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Measured(NamedTuple):
    """One measurement."""

    per_second: float
    per_cpu_second: float
    answers: list[bytes]


async def load(port: int, pid: int, requests: list[bytes], connections: int) -> Measured:
    """Send ``requests`` over ``connections`` connections, one after the other on each."""
    waiting = iter(requests)
    answers: list[bytes] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for message in waiting:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answers.append(await reader.readexactly(length))
        writer.close()

    cpu, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    took, used = time.perf_counter() - began, cpu_seconds(pid) - cpu
    return Measured(len(requests) / took, len(requests) / max(used, 0.01), answers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare()
        return

    def measure(pid: int, port: int, requests: list[bytes]) -> Measured:
        return asyncio.run(load(port, pid, requests, options.connections))

    rows: list[tuple[str, Measured]] = []
    submissions = [request("POST", "/async/chat/create", "key", SUBMISSION)] * options.requests
    with server(__file__, "--bare") as (pid, port):
        measure(pid, port, submissions[:1000])
        rows.append(("bare aiohttp.web, a constant", measure(pid, port, submissions)))
    emulator = ("-m", "airflow_provider_distribute.emulator", "--port", "0", "--latency", "wave:after=30")
    with server(*emulator) as (pid, port):
        measure(pid, port, submissions[:1000])
        before = resident_mib(pid)
        submitted = measure(pid, port, submissions)
        growth = resident_mib(pid) - before
        rows.append(("distribute submit", submitted))
        ids = [json.loads(answer)["id"] for answer in submitted.answers]
        looks = [request("POST", "/async/chat/result", "key", json.dumps({"id": i}).encode()) for i in ids]
        rows.append(("distribute look, pending", measure(pid, port, looks)))
        slow = [request("POST", "/v1/slow/chat/completions", "Bearer key", SUBMISSION)] * options.requests
        submitted = measure(pid, port, slow)
        rows.append(("inference_net submit", submitted))
        ids = [json.loads(answer)["id"] for answer in submitted.answers]
        gets = [request("GET", f"/v1/generation/{i}", "Bearer key", b"") for i in ids]
        rows.append(("inference_net look, pending", measure(pid, port, gets)))
        measure(pid, port, [request("POST", "/_emulator/jobs/finish", "", b"{}")])
        rows.append(("distribute look, finished", measure(pid, port, looks)))
        rows.append(("inference_net look, finished", measure(pid, port, gets)))
    floor = rows[0][1]
    print(f"{'':32}{'requests/s':>12}{'ratio':>8}{'requests/CPU s':>16}{'ratio':>8}")
    for name, row in rows:
        print(
            f"{name:32}{row.per_second:12,.0f}{row.per_second / floor.per_second:8.2f}"
            f"{row.per_cpu_second:16,.0f}{row.per_cpu_second / floor.per_cpu_second:8.2f}"
        )
    print(
        f"memory per distribute job, its request of {len(SUBMISSION)} bytes and its ledger entry included: "
        f"{growth * 1024 / options.requests:.2f} KiB"
    )


if __name__ == "__main__":
    main()
