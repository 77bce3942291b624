# SPDX-License-Identifier: Apache-2.0

"""
Landing: from 100,000 answers of 4 KiB in the order they came to one file in input order, on one core.

Also says how much memory each step takes: checking an input file, collecting on the triggerer's side (without
the pool's own share, which ``waiting_pool.py`` measures), landing. Each step runs in a process of its own, so
that its peak is its own.

    python benchmarks/bulk_landing.py [--rows 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.landing import land
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.ledger.records import Owner, Ticket
from airflow_provider_distribute.ledger.window import Window
from airflow_provider_distribute.models import Job, JobState
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.waiting.pool import Waited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SETTINGS = SERVICES["distribute"].settings.parse("bench", {"api_key": "k", "model": "Llama-3.1 8B"})
ANSWER = "The answer, in a few hundred words. " * 114
PROMPT = "Summarise this text, please. " * 70


def directory_of(root: Path) -> Directory:
    return Directory(UPath(root / "run"))


def check(root: Path) -> None:
    """Read, check and keep the input."""
    run = Run(directory_of(root), Plan(SETTINGS, Owner("dag", "run", "task")))
    run.take_up(source_of(str(root / "input.jsonl"), open_path=UPath), now=time.time())


def record(root: Path) -> None:
    """Write the journal that sending all of it would write."""
    run = Run(directory_of(root), Plan(SETTINGS, Owner("dag", "run", "task")))
    window, rows = Window(64), iter(sorted(run.state.open))
    sent: list[int] = []
    while True:
        intended = [row for _, row in zip(range(window.free), rows, strict=False)]
        if not intended and not window.known and window.settled:
            return
        run.journal.append(window.entry(intended))
        window.written()
        for row in sent:
            window.accepted(Ticket(f"00000000-0000-4000-8000-{row:012d}", str(row), 1.0))
        sent = intended


class Answering:
    """A pool that hands out every job at once, in another order than asked."""

    async def wait(self, job_ids: Iterable[str], *, on_end: Callable[[Job], bool], **_: Any) -> Waited:
        """Answer for every job."""
        shuffled = list(job_ids)
        random.shuffle(shuffled)
        for number, job_id in enumerate(shuffled):
            assert on_end(
                Job(
                    job_id=job_id,
                    service="distribute",
                    state=JobState.SUCCEEDED,
                    status="COMPLETED",
                    content=ANSWER,
                    finish_reason="stop",
                    choices=({"index": 0, "finish_reason": "stop"},),
                    usage={"prompt_tokens": 500, "completion_tokens": 600},
                    model="Llama-3.1 8B",
                )
            )
            if number % 50 == 0:
                await asyncio.sleep(0.01)
        return Waited(len(shuffled), (), (), {})


def collect(root: Path) -> None:
    """Keep what comes back, as the triggerer does."""

    async def main() -> None:
        collection = Collection(directory_of(root), SETTINGS)
        await asyncio.to_thread(collection.read)
        await collection.run(Answering(), deadline=time.time() + 600, poke_interval=30.0)  # type: ignore[arg-type]

    asyncio.run(main())


def merge(root: Path) -> None:
    """Land."""
    run = Run(directory_of(root), Plan(SETTINGS, Owner("dag", "run", "task")))
    landing = land(run, format_from("jsonl"))
    assert landing.counts["succeeded"] == run.state.count


def measured(step: Callable[[Path], None], root: Path, results: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, cpu = time.perf_counter(), time.process_time()
    step(root)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put((time.perf_counter() - started, time.process_time() - cpu, before, after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    root = Path(tempfile.mkdtemp(prefix="bulk-landing-"))
    context = multiprocessing.get_context("spawn")
    try:
        with (root / "input.jsonl").open("w") as file:
            for number in range(rows):
                file.write(json.dumps({"custom_id": f"q{number}", "prompt": f"{number}: {PROMPT}"}) + "\n")
        print(f"{rows} rows, prompts of {len(PROMPT)} bytes, answers of {len(ANSWER)} bytes")
        print(f"{'step':10} {'seconds':>8} {'CPU s':>8} {'MiB before':>11} {'MiB peak':>9}")
        for step in (check, record, collect, merge):
            results = context.Queue()
            process = context.Process(target=measured, args=(step, root, results))
            process.start()
            seconds, cpu, before, after = results.get()
            process.join()
            print(f"{step.__name__:10} {seconds:8.1f} {cpu:8.1f} {before:11.0f} {after:9.0f}")
        print(f"results: {(root / 'run' / 'results.jsonl').stat().st_size / 2**20:.0f} MiB")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
