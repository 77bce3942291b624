# SPDX-License-Identifier: Apache-2.0

"""
Parse Dag files and run each of them with ``dag.test()``, in a process of its own.

Usage: ``python run_dags.py FILE[=JSON]...``, where the JSON is the run's conf. Prints one JSON object: what
was connected to while the files were parsed, the import errors, and for each run the states of its tasks.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

connected: list[str] = []
parsing = True


def _note_connections(event: str, arguments: tuple[Any, ...]) -> None:
    if parsing and event in ("sqlite3.connect", "socket.connect"):
        connected.append(f"{event} {arguments[-1]}")


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the Dags that the arguments name."""
    global parsing
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before 3.2
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

    runs = [
        (Path(name), json.loads(conf or "null")) for name, _, conf in (it.partition("=") for it in arguments)
    ]
    sys.addaudithook(_note_connections)
    bags = {path: DagBag(path) for path, _ in runs}
    parsing = False
    return {
        "connected": connected,
        "import_errors": {str(path): bag.import_errors for path, bag in bags.items() if bag.import_errors},
        "runs": [_run(bags[path], conf) for path, conf in runs],
    }


def _run(bag: Any, conf: Any) -> dict[str, Any]:
    [dag] = bag.dags.values()
    run = dag.test(run_conf=conf)
    instances = run.get_task_instances()
    return {
        "state": str(run.state),
        "tasks": {_name(ti): str(ti.state) for ti in instances},
        "returned": {_name(ti): repr(ti.xcom_pull(ti.task_id, map_indexes=ti.map_index)) for ti in instances},
    }


def _name(ti: Any) -> str:
    return str(ti.task_id) if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print("RESULT " + json.dumps(main(sys.argv[1:])))
