# SPDX-License-Identifier: Apache-2.0

"""
What it costs a triggerer to wait for requests: our triggers beside those of other providers and a bare loop.

Each contender waits for the same requests at the same server, in a process of its own: the real trigger
classes, on one event loop, as a triggerer runs them. The requests end one after the other. Contenders that
wait for one request each start evenly over one poll interval, which is kind to a fixed interval; after a
restart of the triggerer they start all at once, as with ``--at-once``.

The server is a small one of this file, because no two of the contenders ask alike. To whom asks for a
generation it answers as inference.net does while one is not ready, with 404: that is all ``HttpSensor`` can
wait for. To whom asks for a batch it answers as OpenAI does. Batches are not requests: a trigger of OpenAI's
or common.ai's waits for one batch, here either of one request, or of all of them, which tells nothing before
the last of them has ended. ``HttpOperator`` is not among the contenders: deferred, it sends one request and
cannot wait for anything.

    python benchmarks/comparison.py [--requests 200] [--seconds 10] [--poll-interval 2] [--at-once]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import math
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import aiohttp
from aiohttp import web
from upath import UPath

from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from multiprocessing.connection import Connection

KEY = "benchmark-key"
MODEL = "meta-llama/llama-3.1-8b-instruct/fp-16"
#: Seconds between two samples of the event loop's lag.
SAMPLE = 0.02
#: A contender that has not ended so many seconds after the last request is stopped.
GIVE_UP = 30.0
#: What asks for all requests together is called.
ALL = "all"


class Trigger(Protocol):
    """What a triggerer sees of a trigger."""

    def run(self) -> AsyncIterator[Any]:
        """Yield one event."""
        ...


# The server -------------------------------------------------------------------------------------------


@dataclass
class Stub:
    """
    Both services. Everything has ended until :meth:`begin` is called.

    :ivar told: When somebody was first told that a request has ended, by its number.
    """

    first_end: float = -math.inf
    spacing: float = 0.0
    count: int = 0
    requests: int = 0
    connections: int = 0
    told: dict[int, float] = field(default_factory=dict)

    def routes(self) -> list[web.RouteDef]:
        """Everything that is answered."""
        return [
            web.post("/v1/slow/chat/completions", self.submit),
            web.get("/v1/generation/{id}", self.generation),
            web.get("/v1/batches/{id}", self.batch),
            web.post("/begin", self.begin),
            web.get("/seen", self.seen),
        ]

    async def begin(self, request: web.Request) -> web.Response:
        """Let ``count`` requests end one by one, ``spacing`` seconds apart; count from now on."""
        order = await request.json()
        self.count, self.spacing = order["count"], order["spacing"]
        self.first_end = time.time() + order["first_end"]
        self.requests = self.connections = 0
        self.told.clear()
        return web.Response()

    async def seen(self, request: web.Request) -> web.Response:
        """Say what was counted."""
        delays = [at - self._end(number) for number, at in self.told.items()]
        seen = {"requests": self.requests, "connections": self.connections, "delays": delays}
        return web.json_response(seen)

    async def submit(self, request: web.Request) -> web.Response:
        """Take a request; its prompt is its number."""
        prompt = (await request.json())["messages"][-1]["content"]
        return web.json_response({"id": prompt, "object": "chat.completion", "choices": [], "created": 1})

    async def generation(self, request: web.Request) -> web.Response:
        """Answer as inference.net does."""
        if not self._ended(request):
            error = {"message": "Generation not found", "type": "not_found"}
            return web.json_response({"error": error}, status=404)
        message = {"role": "assistant", "content": "An answer, in a sentence or two. " * 8}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 42, "completion_tokens": 80, "total_tokens": 122}
        answer = {"id": "id", "object": "chat.completion", "created": 1749061362, "model": MODEL}
        answer |= {"choices": [choice], "usage": usage}
        return web.json_response({"request": {"model": MODEL}, "response": answer, "state": "Success"})

    async def batch(self, request: web.Request) -> web.Response:
        """Answer as OpenAI does."""
        status = "completed" if self._ended(request) else "in_progress"
        batch = {"id": request.match_info["id"], "object": "batch", "endpoint": "/v1/chat/completions"}
        batch |= {"input_file_id": "file-1", "completion_window": "24h", "status": status}
        return web.json_response({**batch, "created_at": 1749061362})

    def _ended(self, request: web.Request) -> bool:
        self.requests += 1
        name, now = request.match_info["id"], time.time()
        numbers = range(self.count) if name == ALL else [int(name)]
        if ended := all(self._end(number) <= now for number in numbers):
            for number in numbers:
                self.told.setdefault(number, now)
        return ended

    def _end(self, number: int) -> float:
        return self.first_end + number * self.spacing


def serve(pipe: Connection) -> None:
    """Serve until told to stop."""

    async def main() -> None:
        stub = Stub()
        application = web.Application()
        application.add_routes(stub.routes())
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        protocol = runner.server
        assert protocol is not None

        def connected() -> asyncio.Protocol:
            stub.connections += 1
            return protocol()

        server = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        server.close()
        await runner.cleanup()

    asyncio.run(main())


# The contenders ---------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """
    What a contender waits for.

    :param session: Of the process, to the server.
    :param numbers: The requests.
    :param poll_interval: Seconds.
    :param run_uri: A bulk run that submitted these requests.
    """

    session: aiohttp.ClientSession
    numbers: list[str]
    poll_interval: float
    run_uri: str

    @property
    def deadline(self) -> float:
        """Epoch seconds; far away."""
        return time.time() + 3600


@dataclass
class BareLoop:
    """The floor: aiohttp and ``json``, a coroutine and a fixed interval for each request."""

    scene: Scene
    number: str

    async def run(self) -> AsyncIterator[Any]:
        """Ask until the answer is there."""
        while True:
            async with self.scene.session.get(f"/v1/generation/{self.number}") as answer:
                body = json.loads(await answer.read())
                if answer.status == 200:
                    yield body
                    return
            await asyncio.sleep(self.scene.poll_interval)


def bare_loop(scene: Scene) -> list[Trigger]:
    return [BareLoop(scene, number) for number in scene.numbers]


def http_sensors(scene: Scene) -> list[Trigger]:
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    return [
        HttpSensorTrigger(
            endpoint=f"/v1/generation/{number}",
            http_conn_id="bench_http",
            headers={"Authorization": f"Bearer {KEY}"},
            poke_interval=scene.poll_interval,
        )
        for number in scene.numbers
    ]


def llm_batches(scene: Scene) -> list[Trigger]:
    from airflow.providers.common.ai.triggers.llm_batch import LLMBatchTrigger

    return [
        LLMBatchTrigger(
            llm_conn_id="bench_openai",
            adapter="openai",
            batch_id=number,
            poll_interval=scene.poll_interval,  # type: ignore[arg-type]
            end_time=scene.deadline,
            cancel_on_kill=False,
            cancel_on_timeout=False,
        )
        for number in scene.numbers
    ]


def openai_batches(scene: Scene) -> list[Trigger]:
    from airflow.providers.openai.triggers.openai import OpenAIBatchTrigger

    return [
        OpenAIBatchTrigger("bench_openai", number, scene.poll_interval, timeout=3600)
        for number in scene.numbers
    ]


def our_sensors(scene: Scene) -> list[Trigger]:
    from airflow_provider_distribute.triggers.chat import AsyncChatTrigger

    return [
        AsyncChatTrigger("bench_ours", [number], scene.deadline, scene.poll_interval)
        for number in scene.numbers
    ]


def our_sensor_of_all(scene: Scene) -> list[Trigger]:
    from airflow_provider_distribute.triggers.chat import AsyncChatTrigger

    return [AsyncChatTrigger("bench_ours", scene.numbers, scene.deadline, scene.poll_interval)]


def our_bulk_run(scene: Scene) -> list[Trigger]:
    from airflow_provider_distribute.triggers.bulk import AsyncChatBulkTrigger

    return [AsyncChatBulkTrigger("bench_ours", scene.run_uri, scene.deadline, scene.poll_interval)]


def one_batch(contender: Callable[[Scene], list[Trigger]]) -> Callable[[Scene], list[Trigger]]:
    """Let a contender wait for all requests as one batch."""
    return lambda scene: contender(scene._replace(numbers=[ALL]))


CONTENDERS: dict[str, Callable[[Scene], list[Trigger]]] = {
    "a bare aiohttp loop": bare_loop,
    "AsyncChatTrigger, a trigger each": our_sensors,
    "AsyncChatTrigger, one for all": our_sensor_of_all,
    "AsyncChatBulkTrigger": our_bulk_run,
    "HttpSensorTrigger, a trigger each": http_sensors,
    "LLMBatchTrigger, a batch each": llm_batches,
    "LLMBatchTrigger, one batch": one_batch(llm_batches),
    "OpenAIBatchTrigger, a batch each": openai_batches,
    "OpenAIBatchTrigger, one batch": one_batch(openai_batches),
}


# Measuring --------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """
    What one contender took, for each request unless it says otherwise.

    :param cpu: Milliseconds.
    :param asked: Requests to the server.
    :param connections: Opened, by all together.
    :param lag: Of the event loop in milliseconds, 99th percentile.
    :param longest: Lag.
    :param memory: KiB that the process grew by while all were waiting.
    :param delay: Seconds, mean, until the server could say that a request has ended.
    :param untold: Requests, of all, whose end nobody had asked for when the contender was stopped.
    """

    cpu: float
    asked: float
    connections: float
    lag: float
    longest: float
    memory: float
    delay: float
    untold: int


class Options(NamedTuple):
    """What is waited for; ``runs`` has a bulk run of one request, and one of all."""

    url: str
    requests: int
    seconds: float
    poll_interval: float
    at_once: bool
    runs: Path


async def measure(name: str, options: Options) -> Measured:
    """Let one contender wait once for a request that has ended, then for all of them."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(options.url, headers=headers) as session:
        numbers = [str(number) for number in range(options.requests)]
        scene = Scene(session, numbers, options.poll_interval, (options.runs / "all").as_uri())
        warm = scene._replace(numbers=["0"], run_uri=(options.runs / "one").as_uri())
        await all_of(CONTENDERS[name](warm), over=0.0)
        idle = await idling(1.0)
        order = {
            "count": options.requests,
            "first_end": options.poll_interval,
            "spacing": options.seconds / options.requests,
        }
        async with session.post("/begin", json=order):
            pass
        gc.collect()
        memory, cpu, started = resident_kib(), time.process_time(), time.monotonic()
        sampling = asyncio.create_task(samples(options.poll_interval))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(options.poll_interval + options.seconds + GIVE_UP):
                await all_of(CONTENDERS[name](scene), over=0.0 if options.at_once else options.poll_interval)
        cpu = time.process_time() - cpu - idle * (time.monotonic() - started)
        sampling.cancel()
        lags, peak = await sampling
        async with session.get("/seen") as answer:
            seen = await answer.json()
    count, delays = options.requests, seen["delays"]
    return Measured(
        cpu=cpu / count * 1000,
        asked=seen["requests"] / count,
        connections=seen["connections"],
        lag=sorted(lags)[int(len(lags) * 0.99)] * 1000,
        longest=max(lags) * 1000,
        memory=max(0.0, peak - memory) / count,
        delay=statistics.fmean(delays) if delays else math.inf,
        untold=count - len(delays),
    )


async def all_of(triggers: list[Trigger], *, over: float) -> None:
    """Run triggers as a triggerer does, started evenly over so many seconds, until each has fired."""

    async def fire(trigger: Trigger) -> None:
        async for _ in trigger.run():
            return

    async with asyncio.TaskGroup() as group:
        for trigger in triggers:
            group.create_task(fire(trigger))
            await asyncio.sleep(over / len(triggers) if len(triggers) > 1 else 0.0)


async def idling(seconds: float) -> float:
    """Return the CPU seconds that a second of sampling takes when nobody waits."""
    cpu, sampling = time.process_time(), asyncio.create_task(samples(seconds))
    await asyncio.sleep(seconds)
    sampling.cancel()
    await sampling
    return (time.process_time() - cpu) / seconds


async def samples(seconds: float) -> tuple[list[float], float]:
    """Return the event loop's lags until cancelled, and the memory in KiB after so many seconds."""
    lags: list[float] = []
    memory, until = 0.0, time.monotonic() + seconds
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            asked = time.monotonic()
            await asyncio.sleep(SAMPLE)
            lags.append(time.monotonic() - asked - SAMPLE)
            if not memory and time.monotonic() > until:
                memory = resident_kib()
    return lags, memory


def resident_kib() -> float:
    """Return what this process occupies now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


# The run ----------------------------------------------------------------------------------------------


def contend(name: str, options: Options, results: Any) -> None:
    """Be a triggerer with one contender, whose log nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    results.put(asyncio.run(measure(name, options)))


def submit(options: Options) -> None:
    """Submit the bulk runs."""
    logging.disable(logging.CRITICAL)
    fields = {"api_key": KEY, "base_url": options.url, "model": MODEL}
    settings = SERVICES["inference_net"].settings.parse("bench_ours", fields)

    async def send(run: Run, costs: Any) -> None:
        async with await AsyncClient.open(settings) as client:
            await Submission(run, client, run.budget(costs), deadline=time.time() + 60).run()

    for folder, count in (("one", 1), ("all", options.requests)):
        run = Run(Directory(UPath(options.runs / folder)), Plan(settings, Owner("dag", "run", "task")))
        staged = run.take_up(
            source_of([str(number) for number in range(count)], open_path=UPath), now=time.time()
        )
        asyncio.run(send(run, staged.costs))


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run the server in a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        here.send("stop")
        process.join()


def in_a_process(target: Callable[..., None], *arguments: Any) -> None:
    """Run something where it leaves nothing behind."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0, help="in which the requests end")
    parser.add_argument("--poll-interval", type=float, default=2.0, help="seconds")
    parser.add_argument("--at-once", action="store_true", help="start all triggers at one instant")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="comparison-") as root, server() as url:
        connection = {"host": url, "password": KEY}
        os.environ |= {
            "AIRFLOW_HOME": root,
            "AIRFLOW_CONN_BENCH_HTTP": json.dumps({"conn_type": "http", "host": url}),
            "AIRFLOW_CONN_BENCH_OPENAI": json.dumps(
                {**connection, "conn_type": "openai", "host": f"{url}/v1"}
            ),
            "AIRFLOW_CONN_BENCH_OURS": json.dumps(
                {**connection, "conn_type": "inference_net", "extra": {"model": MODEL}}
            ),
        }
        options = Options(url, given.requests, given.seconds, given.poll_interval, given.at_once, Path(root))
        in_a_process(submit, options)
        print(
            f"{given.requests} requests that end one by one within {given.seconds:g} s, looked at every "
            f"{given.poll_interval:g} s"
        )
        columns = ("CPU ms", "to bare", "requests", "connections", "lag ms", "longest", "KiB", "delay s")
        print(f"{'':36}" + "".join(f"{column:>12}" for column in columns))
        floor = math.nan
        results = multiprocessing.get_context("spawn").Queue()
        for name in CONTENDERS:
            if given.only not in name:
                continue
            in_a_process(contend, name, options, results)
            measured: Measured = results.get()
            if name == "a bare aiohttp loop":
                floor = measured.cpu
            print(
                f"{name:36}{measured.cpu:12.2f}{measured.cpu / floor:12.1f}{measured.asked:12.2f}"
                f"{measured.connections:12.0f}{measured.lag:12.1f}{measured.longest:12.1f}"
                f"{measured.memory:12.1f}{measured.delay:12.2f}"
                + (f"  ({measured.untold} not told)" if measured.untold else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
