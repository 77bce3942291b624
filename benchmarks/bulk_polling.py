# SPDX-License-Identifier: Apache-2.0

"""
Looks per job and detection delay of a whole bulk run, on a simulated clock.

``schedule_simulation.py`` measures the schedule alone; here it is the collection, the pool, the client and
the ledger as they run in a triggerer. Only the network and the clock are not real: a service that works on
the jobs in order for an hour, give or take, and answers each look after 50 ms; and a clock that jumps to the
next thing that happens.

    python benchmarks/bulk_polling.py [--jobs 10000] [--seeds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import random
import selectors
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import httpx
from upath import UPath

from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.waiting.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from airflow_provider_distribute.models import Settings

EPOCH, HOUR = 1_750_000_000.0, 3600.0
#: Seconds of a look.
LATENCY = 0.05
POKE_INTERVAL = 30.0
#: What lives by the clock.
LIVES_BY_IT = ("bulk.collection", "client", "waiting.pool")


class Clock:
    """
    Stands in for the module ``time``.

    :ivar now: Seconds of the monotonic clock; few, for a large one knows no microseconds.
    """

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def time(self) -> float:
        """Seconds since 1970."""
        return EPOCH + self.now


class Jumping(selectors.DefaultSelector):
    """Lets time pass instead of waiting, when nothing is ready and no thread works."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.threads = 0
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See :class:`selectors.BaseSelector`."""
        ready = super().select(None if self.threads and timeout != 0 else 0)
        if not ready and timeout:
            self._clock.now += timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    """An event loop that lives by a clock; while a thread works for it, time stands still."""

    def __init__(self, clock: Clock) -> None:
        self._jumping = Jumping(clock)
        self._clock = clock
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds."""
        return self._clock.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """See :class:`asyncio.AbstractEventLoop`."""
        self._jumping.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._returned)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """See :class:`asyncio.AbstractEventLoop`."""
        self._jumping.threads += 1
        await super().shutdown_default_executor()

    def _returned(self, _: object) -> None:
        self._jumping.threads -= 1


class Service(httpx.AsyncBaseTransport):
    """
    Distribute, as far as a bulk run needs it. A job's id is the place of its end in the order of ends.

    :param ends: Seconds on the clock, for each job.
    """

    def __init__(self, clock: Clock, ends: list[float]) -> None:
        self._clock = clock
        self._ends = ends
        self.looks = 0
        self.delays: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Take a request, whose prompt is its number, or say how a job is doing."""
        body = json.loads(request.content)
        if "messages" in body:
            return httpx.Response(200, json={"id": body["messages"][-1]["content"]})
        self.looks += 1
        end = self._ends[int(body["id"])]
        await asyncio.sleep(LATENCY / 2)
        answer = {"id": body["id"], "status": "ASSIGNED_CONNECTIONS", "created": 1750000000123, "choices": []}
        if end <= self._clock.now:
            message = {"role": "assistant", "content": "Paris."}
            answer |= {"status": "COMPLETED", "model": "Llama-3.1 8B", "finished": int((EPOCH + end) * 1000)}
            answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self.delays.append(self._clock.now + LATENCY / 2 - end)
        await asyncio.sleep(LATENCY / 2)
        return httpx.Response(200, json=answer)


def measure(jobs: int, noise: float, seed: int) -> tuple[float, float]:
    """Return the looks per job and the mean delay in seconds of one run."""
    rng, clock = random.Random(seed), Clock()
    ends = [clock.now + max(1.0, HOUR * (job + 1) / jobs + rng.gauss(0, noise)) for job in range(jobs)]
    service = Service(clock, ends)
    fields = {"api_key": "k", "model": "Llama-3.1 8B"}
    settings = SERVICES["distribute"].settings.parse("bench", fields)

    @contextlib.asynccontextmanager
    async def client(settings: Settings) -> AsyncIterator[AsyncClient]:
        async with AsyncClient(settings, transport=service) as client:
            yield client

    async def submit(run: Run, costs: Any) -> None:
        async with client(settings) as opened:
            await Submission(run, opened, run.budget(costs), deadline=time.time() + 600).run()

    async def collect(directory: Directory) -> None:
        collection = Collection(directory, settings)
        await asyncio.to_thread(collection.read)
        pool = Pool(settings, open_client=client)
        await collection.run(pool, deadline=clock.time() + 72 * HOUR, poke_interval=POKE_INTERVAL)

    with tempfile.TemporaryDirectory(prefix="bulk-polling-") as folder, contextlib.ExitStack() as stack:
        directory = Directory(UPath(Path(folder) / "run"))
        run = Run(directory, Plan(settings, Owner("dag", "run", "task")))
        staged = run.take_up(source_of([str(job) for job in range(jobs)], open_path=UPath), now=time.time())
        asyncio.run(submit(run, staged.costs))
        for module in LIVES_BY_IT:
            stack.enter_context(patch(f"airflow_provider_distribute.{module}.time", clock))
        with asyncio.Runner(loop_factory=lambda: Loop(clock)) as runner:
            runner.run(collect(directory))
    assert len(service.delays) == jobs
    return service.looks / jobs, statistics.fmean(service.delays)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, nargs="*", default=[0.0, 60.0], help="seconds")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"{given.jobs} jobs that end in order over an hour, poke_interval {POKE_INTERVAL:g} s")
    print(f"{'noise, s':>10}{'seed':>6}{'looks per job':>15}{'mean delay, s':>15}")
    for noise in given.noise:
        for seed in range(given.seeds):
            looks, delay = measure(given.jobs, noise, seed)
            print(f"{noise:10g}{seed:6}{looks:15.2f}{delay:15.1f}", flush=True)


if __name__ == "__main__":
    main()
