# SPDX-License-Identifier: Apache-2.0

"""A real Airflow under test: a :class:`demo.deployment.Deployment` and what only a test does to it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import sqlalchemy

from demo.deployment import Deployment, Run, label
from demo.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


class AirflowUnderTest(Deployment):
    """
    One Airflow, shared by all tests of a session; every test file adds Dags of its own.

    :param home: an existing, empty directory.
    :param database_url: an empty database.
    """

    def __init__(self, home: Path, *, database_url: str, **more: Any) -> None:
        dags = home / "dags"
        dags.mkdir()
        super().__init__(home, dags_folder=dags, database_url=database_url, **more)
        self._engine = sqlalchemy.create_engine(database_url)

    def stop(self) -> None:
        """End every process and leave the database."""
        super().stop()
        self._engine.dispose()

    def add_dag(self, dag_id: str, source: str | Path) -> str:
        """
        Put a Dag file into the Dags folder and wait until the scheduler knows the Dag.

        :param source: Python source, or a file to copy.
        :return: ``dag_id``.
        """
        text = source.read_text() if isinstance(source, Path) else source
        complete = self.home / "incoming.py"
        complete.write_text(text)
        complete.replace(self.dags_folder / f"{dag_id}.py")
        self.wait_for_dag(dag_id)
        return dag_id

    def add_connection(self, conn_id: str, **fields: Any) -> None:
        """
        Store a connection in the database, replacing one of the same id.

        :param fields: as the REST API takes them: ``conn_type``, ``host``, ``password``, ``extra`` (JSON).
        """
        create = {
            "action": "create",
            "entities": [{"connection_id": conn_id, **fields}],
            "action_on_existence": "overwrite",
        }
        self.request("PATCH", "/connections", json={"actions": [create]})

    def wait_until(self, predicate: Callable[[], T], *, timeout: float = 180, what: str) -> T:
        """
        Poll ``predicate`` until it is true, failing at once when a part of Airflow dies meanwhile.

        :param timeout: seconds.
        :param what: the condition in words.
        """

        def checked() -> T:
            self.check()
            return predicate()

        return wait_until(checked, timeout=timeout, what=what)

    def wait_for_task(
        self, run: Run, task: str, *states: str | None, attempt: int | None = None, timeout: float = 180
    ) -> str | None:
        """
        Wait until a task (``task_id`` or ``task_id[index]``) is in one of the states, and return which.

        :param attempt: the attempt that has to be in it; default any.
        :param timeout: seconds.
        """
        found: list[str | None] = self.wait_until(
            lambda: [
                ti["state"]
                for ti in self.task_instances(run)
                if label(ti) == task and ti["state"] in states and attempt in (None, ti["try_number"])
            ],
            timeout=timeout,
            what=f"{task} of {run.dag_id} is in {states}" + (f", attempt {attempt}" if attempt else ""),
        )
        if found == ["deferred"]:
            self._wait_until_worker_has_left(run, task, timeout=timeout)
        return found[0]

    def _wait_until_worker_has_left(self, run: Run, task: str, *, timeout: float) -> None:
        # A scheduler that hears of the end of the process that deferred only when the task runs again takes
        # the task for lost; on a busy machine that happens to a task which is resumed at once.
        [pid] = [ti["pid"] for ti in self.task_instances(run) if label(ti) == task]
        self.wait_until(
            lambda: not psutil.pid_exists(pid), timeout=timeout, what=f"process of {task} has ended"
        )

    def add_pool(self, name: str, *, slots: int) -> None:
        """Create one of Airflow's pools, replacing one of the same name."""
        entity = {"name": name, "slots": slots, "include_deferred": False}
        create = {"action": "create", "entities": [entity], "action_on_existence": "overwrite"}
        self.request("PATCH", "/pools", json={"actions": [create]})

    def running_slots(self, pool: str = "default_pool") -> int:
        """Return how many worker slots tasks hold at this moment; a deferred task holds none."""
        slots: int = self.request("GET", f"/pools/{pool}")["running_slots"]
        return slots

    def tries(self, run: Run) -> dict[str, int]:
        """Return how many attempts each task has had, by its label."""
        return {label(ti): ti["try_number"] for ti in self.task_instances(run)}

    def clear(self, run: Run, *task_ids: str) -> None:
        """Clear tasks of the run, so that they run again."""
        body = {"dry_run": False, "dag_run_id": run.run_id, "task_ids": task_ids, "only_failed": False}
        self.request("POST", f"/dags/{run.dag_id}/clearTaskInstances", json=body)

    def mark(self, run: Run, task_id: str, state: str, *, map_index: int = -1) -> None:
        """Set the state of a task by hand, as a user does in the UI."""
        path = f"/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/{task_id}"
        mapped = f"/{map_index}" if map_index >= 0 else ""
        self.request("PATCH", path + mapped, json={"new_state": state})

    def mark_run(self, run: Run, state: str) -> None:
        """Set the state of a run by hand; tasks that have not ended are ended with it."""
        self.request("PATCH", f"/dags/{run.dag_id}/dagRuns/{run.run_id}", json={"state": state})

    def links(self, run: Run, task_id: str) -> dict[str, str | None]:
        """Return what the task's extra links lead to, by their names."""
        path = f"/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/{task_id}/links"
        links: dict[str, str | None] = self.request("GET", path)["extra_links"]
        return links

    def component_log(self, component: str) -> str:
        """Return all that a component has printed."""
        return self.processes[component].log.read_text()

    def sql(self, query: str, **parameters: Any) -> list[Mapping[str, Any]]:
        """
        Run one statement on the metadata database, in a transaction, and return its rows.

        :param query: SQL with ``:name`` for each parameter.
        """
        with self._engine.begin() as connection:
            result = connection.execute(sqlalchemy.text(query), parameters)
            return [dict(row._mapping) for row in result] if result.returns_rows else []

    def trigger_rows(self, run: Run) -> dict[str, dict[str, Any]]:
        """Return the id and the stored arguments of each waiting task's trigger, by task id."""
        rows = self.sql(
            "SELECT task_id, trigger.id, kwargs FROM trigger JOIN task_instance ON trigger_id = trigger.id"
            " WHERE run_id = :run_id AND dag_id = :dag_id",
            run_id=run.run_id,
            dag_id=run.dag_id,
        )
        return {row["task_id"]: {"id": row["id"], "kwargs": row["kwargs"]} for row in rows}

    def files_with(self, text: str) -> set[str]:
        """Return the files below Airflow's home, logs of tasks and parts among them, that hold a text."""
        files = (path for path in self.home.rglob("*") if path.is_file())
        return {str(path.relative_to(self.home)) for path in files if text.encode() in path.read_bytes()}

    def tables_with(self, text: str) -> set[str]:
        """Return the tables of Airflow's database that hold a text, in whatever column and row."""
        tables = self.sql(
            "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'"
        )
        return {
            table["name"]
            for table in tables
            # A whole row as text shows bytes as hexadecimal digits.
            if self.sql(
                f'SELECT 1 FROM "{table["name"]}" AS a_row'  # noqa: S608  the database's own names
                " WHERE strpos(a_row::text, :plain) > 0 OR strpos(a_row::text, :hexadecimal) > 0 LIMIT 1",
                plain=text,
                hexadecimal=text.encode().hex(),
            )
        }

    def kill(self, component: str) -> None:
        """SIGKILL a component with all its children, as if its machine were lost."""
        self.processes[component].kill()

    def start(self, component: str) -> None:
        """Start a component again after :meth:`kill`."""
        self.processes[component].start()

    def kill_task(self, run: Run, task_id: str, *, map_index: int = -1, with_worker: bool = False) -> None:
        """
        SIGKILL the process that runs a task.

        :param with_worker: kill its supervisor in the executor as well. Nobody is left to report the end; the
            scheduler misses the task's heartbeat after ``scheduler.task_instance_heartbeat_timeout``.
        """
        [row] = self.sql(
            "SELECT pid FROM task_instance WHERE dag_id = :dag_id AND run_id = :run_id AND task_id = :task_id"
            " AND map_index = :map_index",
            dag_id=run.dag_id,
            run_id=run.run_id,
            task_id=task_id,
            map_index=map_index,
        )
        task = psutil.Process(row["pid"])
        victims = [task, *([parent] if with_worker and (parent := task.parent()) else [])]
        ours = {process.pid for process in self.processes.values() if process.running}
        for victim in reversed(victims):
            if os.getsid(victim.pid) not in ours:
                raise RuntimeError(f"process {victim} does not belong to this Airflow")
            victim.send_signal(signal.SIGKILL)
