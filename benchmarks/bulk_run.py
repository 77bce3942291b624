# SPDX-License-Identifier: Apache-2.0

"""
A bulk run from file to file: what sending, waiting and landing take, at 1,000, 10,000 and 100,000 rows.

Prompts of 2 KiB, answers of 4 KiB, a file on the local disk. Each step is done in a process of its own that
has imported what its process has in Airflow: the worker's task runner and the operator, the triggerer's
trigger. The service is the emulator, on the loopback interface; it works on the jobs in order, at a steady
pace that begins with the first of them.

    python benchmarks/bulk_run.py [--rows 1000 10000 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_distribute.bulk.run import Run

KEY = "benchmark-key"
PROMPT = "Summarise this text, please. " * 70
#: Words of an answer; those of the prompt, again and again.
TOKENS = 560
#: Seconds in which the service works on a run of moderate size.
SPAN = 60.0
#: Jobs that the service ends in a second at most.
FASTEST = 400.0
#: Seconds between two samples of the event loop's lag.
SAMPLE = 0.02


class Task(NamedTuple):
    """A run: where it is, and the service's address."""

    root: Path
    url: str

    def run(self) -> Run:
        """Take the run's record up as the operator does."""
        from upath import UPath

        from airflow_provider_distribute.bulk.run import Plan, Run
        from airflow_provider_distribute.ledger.directory import Directory
        from airflow_provider_distribute.ledger.records import Owner
        from airflow_provider_distribute.services import SERVICES

        fields = {"api_key": KEY, "base_url": self.url, "model": "Llama-3.1 8B"}
        settings = SERVICES["distribute"].settings.parse("bench", fields)
        return Run(Directory(UPath(self.root / "run")), Plan(settings, Owner("dag", "run", "task")))


class Took(NamedTuple):
    """
    What a step took.

    :param seconds: By the clock.
    :param cpu: Seconds, of all threads.
    :param before: MiB that the process occupied when it began.
    :param peak: MiB that it occupied at most.
    :param lag: Of the event loop in milliseconds, 99th percentile.
    """

    seconds: float
    cpu: float
    before: float
    peak: float
    lag: float


# The steps --------------------------------------------------------------------------------------------


def check(task: Task) -> None:
    """Check the input, as before anything is sent."""
    from upath import UPath

    from airflow_provider_distribute.bulk.inputs import source_of
    from airflow_provider_distribute.bulk.run import stage

    stage(source_of(str(task.root / "input.jsonl"), open_path=UPath), task.run().plan)


def send(task: Task) -> None:
    """Check the input and send it."""
    from upath import UPath

    from airflow_provider_distribute.bulk.inputs import source_of
    from airflow_provider_distribute.bulk.submission import Submission
    from airflow_provider_distribute.client import AsyncClient

    run = task.run()
    staged = run.take_up(source_of(str(task.root / "input.jsonl"), open_path=UPath), now=time.time())

    async def submit() -> None:
        async with await AsyncClient.open(run.plan.settings) as client:
            submission = Submission(run, client, run.budget(staged.costs), deadline=time.time() + 3600)
            assert (await submission.run()).accepted == staged.count

    asyncio.run(submit())


def wait(task: Task) -> float:
    """Wait for all jobs; return the event loop's lag."""
    from airflow_provider_distribute.triggers.bulk import AsyncChatBulkTrigger

    async def main() -> float:
        trigger = AsyncChatBulkTrigger("bench", (task.root / "run").as_uri(), time.time() + 3600, 30.0)
        lags: list[float] = []
        sampling = asyncio.create_task(sample(lags))
        async for event in trigger.run():
            assert event.payload["verdict"] == "ended", event
        sampling.cancel()
        return sorted(lags)[int(len(lags) * 0.99)] * 1000

    return asyncio.run(main())


async def sample(lags: list[float]) -> None:
    """Note how late the event loop is."""
    while True:
        asked = time.monotonic()
        await asyncio.sleep(SAMPLE)
        lags.append(time.monotonic() - asked - SAMPLE)


def land(task: Task) -> None:
    """Write the results, in input order."""
    from airflow_provider_distribute.bulk.formats import format_from
    from airflow_provider_distribute.bulk.landing import land as land_

    run = task.run()
    landing = land_(run, format_from("jsonl"))
    assert landing.counts["succeeded"] == run.state.count


#: What has been imported before, in a task's process and in a triggerer's.
WORKER = ("airflow.sdk.execution_time.task_runner", "airflow_provider_distribute.operators.bulk")
TRIGGERER = ("airflow.jobs.triggerer_job_runner", "airflow_provider_distribute.triggers.bulk")

STEPS: dict[str, tuple[tuple[str, ...], Callable[[Task], float | None]]] = {
    "check": (WORKER, check),
    "check and send": (WORKER, send),
    "wait": (TRIGGERER, wait),
    "land": (WORKER, land),
}


# Measuring --------------------------------------------------------------------------------------------


def measured(name: str, task: Task, results: Any) -> None:
    """Do a step in this process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.INFO)
    modules, step = STEPS[name]
    for module in modules:
        importlib.import_module(module)
    before, started, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    lag = step(task) or 0.0
    took = Took(time.perf_counter() - started, time.process_time() - cpu, before, resident("VmHWM"), lag)
    results.put(took)


def resident(field: str) -> float:
    """Return the MiB that this process occupies (``VmRSS``), or did at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def done(name: str, task: Task) -> Took:
    """Do a step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measured, args=(name, task, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    took: Took = results.get()
    return took


@contextmanager
def emulator(rate: float) -> Iterator[str]:
    """Run the emulator in a process of its own; it ends jobs in order, ``rate`` a second."""
    command = [sys.executable, "-m", "airflow_provider_distribute.emulator", "--port", "0", "--key", KEY]
    command += ["--latency", f"fifo:rate={rate}", "--keep", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = (process.stdout.readline() if process.stdout else "").split()
            yield next(word for word in ready if word.startswith("distribute=")).partition("=")[2]
        finally:
            process.terminate()


def delays(task: Task, since: float) -> list[float]:
    """Return how long after its end each job was seen, of those that ended while somebody waited."""
    from upath import UPath

    from airflow_provider_distribute.ledger.directory import Directory
    from airflow_provider_distribute.ledger.rows import read_rows, result_in

    seen = ((head.seen_at, result_in(text)) for head, text in read_rows(Directory(UPath(task.root / "run"))))
    ended = ((at, datetime.fromisoformat(result["finished_at"]).timestamp()) for at, result in seen)
    return [at - end for at, end in ended if end > since]


def measure(rows: int) -> None:
    """Do all steps for so many rows, and print what they took."""
    with (
        tempfile.TemporaryDirectory(prefix="bulk-run-") as folder,
        emulator(min(rows / SPAN, FASTEST)) as url,
    ):
        task = Task(Path(folder), url)
        connection = {"conn_type": "distribute", "host": url, "password": KEY}
        os.environ["AIRFLOW_HOME"] = folder
        os.environ["AIRFLOW_CONN_BENCH"] = json.dumps({**connection, "extra": {"model": "Llama-3.1 8B"}})
        with (task.root / "input.jsonl").open("w") as file:
            for row in range(rows):
                prompt = f"[emulate: tokens={TOKENS}] {row}: {PROMPT}"
                file.write(json.dumps({"custom_id": f"q{row}", "prompt": prompt}) + "\n")
        waited_since = 0.0
        for name in STEPS:
            if name == "wait":
                waited_since = time.time()
            took = done(name, task)
            print(
                f"{rows:7} {name:16}{took.seconds:9.1f}{took.cpu:9.1f}{took.cpu / rows * 1000:9.2f}"
                f"{took.before:8.0f}{took.peak:8.0f}{took.peak - took.before:8.0f}",
                end="",
            )
            if name == "wait":
                with urllib.request.urlopen(f"{url.removesuffix('/distribute')}/_emulator/stats") as answer:  # noqa: S310
                    looks = json.load(answer)["looks"]["distribute"]
                print(
                    f"   {looks['mean_per_job']:.2f} looks a job, {took.cpu / looks['total'] * 1000:.2f} ms "
                    f"a look, seen {statistics.fmean(delays(task, waited_since)):.1f} s after its end, "
                    f"lag {took.lag:.1f} ms",
                    end="",
                )
            print(flush=True)
        size = (task.root / "run" / "results.jsonl").stat().st_size
        print(f"{rows:7} results: {size / 2**20:.0f} MiB, {size / rows / 1024:.1f} KiB a row")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    print(f"{'':24}{'seconds':>9}{'CPU s':>9}{'ms/row':>9}{'MiB':>8}{'peak':>8}{'grown':>8}")
    for rows in parser.parse_args().rows:
        measure(rows)


if __name__ == "__main__":
    main()
