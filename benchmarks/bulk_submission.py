# SPDX-License-Identifier: Apache-2.0

"""
Submission against a bare loop over the same transport, and against a rate limit.

The emulator runs in a process of its own, on the loopback interface. Both contenders run in turn, several
times, in one process; figures are ratios of medians.

    python benchmarks/bulk_submission.py [--requests 3000] [--rate 200]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from upath import UPath

from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.client import AsyncClient, aiohttp_transport, certificates
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.testing import InferenceEmulator

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from airflow_provider_distribute.models import Settings

PROMPT = "Summarise this text, please. " * 70


def serve(pipe: Connection) -> None:
    with InferenceEmulator() as emulator:
        pipe.send(emulator.base_url("distribute"))
        pipe.recv()


def settings_for(url: str, **fields: Any) -> Settings:
    given = {"api_key": "emulator-key", "base_url": url, "model": "Llama-3.1 8B", **fields}
    return SERVICES["distribute"].settings.parse("bench", given)


async def bare(settings: Settings, prompts: list[str]) -> float:
    """Send with as many coroutines as there are connections, read each id, and keep nothing."""
    transport = aiohttp_transport(settings, certificates())
    headers = {"Authorization": settings.api_key.get_secret_value()}
    waiting = iter(prompts)

    async def send(client: httpx.AsyncClient) -> None:
        for prompt in waiting:
            body = {
                "model": settings.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_completion_tokens": 600,
            }
            answer = await client.post("/async/chat/create", json=body)
            assert answer.json()["id"]

    async with httpx.AsyncClient(
        base_url=settings.base_url, headers=headers, timeout=60, transport=transport
    ) as client:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(settings.max_connections):
                group.create_task(send(client))
        return time.perf_counter() - started


def recorded(settings: Settings, prompts: list[str], sent: list[float] | None = None) -> float:
    """Send as a bulk run does; the input is checked and kept before the clock starts."""
    root = Path(tempfile.mkdtemp(prefix="bulk-submission-"))
    try:
        run = Run(Directory(UPath(root)), Plan(settings, Owner("dag", "run", "task")))
        staged = run.take_up(source_of(prompts, open_path=UPath), now=time.time())

        async def main() -> float:
            async with await AsyncClient.open(settings) as client:
                if sent is not None:
                    take = client.limit.take

                    def noted(now: float) -> float:
                        wait = take(now)
                        if wait <= 0:
                            sent.append(now)
                        return wait

                    client.limit.take = noted  # type: ignore[method-assign]
                started = time.perf_counter()
                budget = run.budget(staged.costs)
                submitted = await Submission(run, client, budget, deadline=time.time() + 600).run()
                assert submitted.accepted == len(prompts)
                return time.perf_counter() - started

        return asyncio.run(main())
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    emulator = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    emulator.start()
    try:
        url = here.recv()
        prompts = [f"{number}: {PROMPT}" for number in range(options.requests)]
        settings = settings_for(url)
        pairs = [
            (asyncio.run(bare(settings, prompts)), recorded(settings, prompts)) for _ in range(options.rounds)
        ]
        loop, run = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"bare loop {options.requests / loop:6.0f} requests/s")
        print(f"bulk run  {options.requests / run:6.0f} requests/s, {loop / run:.2f} of the bare loop")
        sent: list[float] = []
        count = int(options.rate * 10)
        seconds = recorded(settings_for(url, requests_per_second=options.rate), prompts[:count], sent)
        busiest = max(sum(1 for at in sent if start <= at < start + 1.0) for start in sent)
        share = count / seconds / options.rate
        print(f"limit {options.rate:.0f}/s: {share:.3f} of it, at most {busiest} in one second")
    finally:
        here.send("stop")
        emulator.join()


if __name__ == "__main__":
    main()
