# SPDX-License-Identifier: Apache-2.0

"""The demo does what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress

import psutil

from demo.run import LEFTOVERS, ROOT


def demo_processes() -> set[int]:
    """Return the ids of the processes whose Airflow home is a demo's."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("AIRFLOW_HOME", "").startswith(str(LEFTOVERS)):
                found.add(process.pid)
    return found


def test_demo_prints_all_results_and_leaves_nothing() -> None:
    """Fifty prompts succeed on each service; no process and no file of the run is left."""
    files, processes = set(LEFTOVERS.glob("*")), demo_processes()
    demo = subprocess.run(
        [sys.executable, "-m", "demo.run"], cwd=ROOT, capture_output=True, text=True, timeout=560, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    counts = re.findall(r"^(distribute|inference_net) +(\d+) +(\d+) +(\d+) ", demo.stdout, re.MULTILINE)
    assert counts == [("distribute", "50", "50", "0"), ("inference_net", "50", "50", "0")]
    assert "http://127.0.0.1:" in demo.stdout
    assert set(LEFTOVERS.glob("*")) == files
    assert demo_processes() <= processes
