# SPDX-License-Identifier: Apache-2.0

"""``make demo``: a Dag run on a real Airflow against the emulator, from nothing to a table of answers."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_distribute.testing import InferenceEmulator
from demo.deployment import Deployment, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
LEFTOVERS = ROOT / ".demo"
DAG_ID = "distribute_demo"
SERVICES = ("distribute", "inference_net")
LATENCY = {"distribute": "fifo:rate=3,noise=2", "inference_net": "lognormal:median=8,sigma=0.5"}
RUN_TIMEOUT = 300.0
UI_PORT = 8080
SAMPLES = 3


class Progress:
    """One line of text that changes: in place on a terminal, else as a new line now and then."""

    PLAIN_INTERVAL = 5.0

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._printed_at = float("-inf")
        self._started_at = time.monotonic()

    def show(self, text: str, *, last: bool = False) -> None:
        """Show ``text``, with the seconds since the first line."""
        now = time.monotonic()
        line = f"{now - self._started_at:5.0f} s  {text}"
        if self._in_place:
            print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
        elif last or now - self._printed_at >= self.PLAIN_INTERVAL:
            print(line, flush=True)
            self._printed_at = now


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as text in columns."""
    texts = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in texts]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def status(stats: dict[str, Any], tasks: dict[str, str | None]) -> str:
    """Return how far the run is, in a line."""
    jobs = [
        f"{service} {counts['succeeded'] + counts['failed']}/{counts['created']} jobs done"
        for service, counts in stats["jobs"].items()
    ]
    states = Counter(state or "waiting" for state in tasks.values())
    return "   ".join([*jobs, "tasks: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items()))])


def report(results: dict[str, list[dict[str, Any]]], stats: dict[str, Any]) -> str:
    """Return the answers as a table of counts and a few samples."""
    counts = []
    samples = []
    for service, answers in results.items():
        states = Counter(answer["status"] for answer in answers)
        tokens = sum((answer["usage"] or {}).get("total_tokens", 0) for answer in answers)
        looks = stats["looks"][service]["mean_per_job"]
        counts.append((service, len(answers), states["succeeded"], states["failed"], tokens, f"{looks:.1f}"))
        samples += [(service, answer["job_id"][:24], answer["content"][:60]) for answer in answers[:SAMPLES]]
    return "\n\n".join(
        [
            table(["service", "prompts", "succeeded", "failed", "tokens", "looks per job"], counts),
            table(["service", "job", "answer"], samples),
        ]
    )


def follow(airflow: Deployment, emulator: InferenceEmulator, run: Run) -> str:
    """Show progress until the run has ended, and return its state."""
    progress = Progress()
    tasks: dict[str, str | None] = {}
    for tasks in airflow.watch(run, timeout=RUN_TIMEOUT):
        progress.show(status(emulator.stats, tasks))
    progress.show(status(emulator.stats, tasks), last=True)
    return airflow.state(run)


def demo(home: Path, *, keep: bool) -> int:
    """Run the Dag once and return the exit status."""
    with InferenceEmulator(latency=LATENCY) as emulator:
        print(f"Emulator of both services at {emulator.url}")
        print("Starting Airflow: scheduler, dag-processor, triggerer, API server ...", flush=True)
        started_at = time.monotonic()
        with Deployment(
            home, dags_folder=ROOT / "demo" / "dags", environment=emulator.connections(), port=UI_PORT
        ) as airflow:
            airflow.wait_for_dag(DAG_ID)
            run = airflow.trigger(DAG_ID)
            print(f"Airflow is up after {time.monotonic() - started_at:.0f} s. The run, no login needed:")
            print(f"  {airflow.url}/dags/{DAG_ID}/runs/{run.run_id}", flush=True)
            state = follow(airflow, emulator, run)
            if state == "success":
                results = {service: airflow.xcom(run, f"wait_{service}") for service in SERVICES}
                print(f"\n{report(results, emulator.stats)}\n")
            else:
                failed = [task for task, state in airflow.task_states(run).items() if state == "failed"]
                for task in failed:
                    print(f"\nLog of {task}:\n{airflow.task_log(run, task)}")
                print(f"\nThe run ended in state {state!r}; failed tasks: {', '.join(failed)}.")
            if keep:
                print(f"The UI stays up at {airflow.url} until you press Ctrl-C.", flush=True)
                with suppress(SystemExit):
                    signal.pause()
            else:
                print(f"Stopping Airflow; `make demo KEEP=1` leaves its UI up at {airflow.url}.", flush=True)
    return 0 if state == "success" else 1


def _interrupt(number: int, _: object) -> NoReturn:
    # Once is enough: what follows is the orderly end, which must not be interrupted itself.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    print("\nStopping ...", flush=True)
    raise SystemExit(128 + number)


def main() -> int:
    """Run the demo in a directory of its own, which stays only when something went wrong."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--keep", action="store_true", help="leave the UI up until Ctrl-C")
    keep: bool = arguments.parse_args().keep
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    LEFTOVERS.mkdir(exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="airflow-", dir=LEFTOVERS))
    try:
        exit_status = demo(home, keep=keep)
    except SystemExit:
        shutil.rmtree(home)
        raise
    except Exception:
        print(f"\nThe demo failed. Airflow's logs are in {home}/logs.", file=sys.stderr, flush=True)
        raise
    if exit_status:
        print(f"All logs are in {home}/logs.")
    else:
        shutil.rmtree(home)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
