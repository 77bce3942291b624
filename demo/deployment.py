# SPDX-License-Identifier: Apache-2.0

"""A real Airflow in a directory of its own: configured, started, asked and ended."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx

from demo.processes import Process, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

COMPONENTS: Mapping[str, Sequence[str]] = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer"],
}
"""What every deployment runs: name to arguments of the ``airflow`` command."""

SETTINGS = {
    "core.load_examples": "False",
    "core.dags_are_paused_at_creation": "False",
    "core.simple_auth_manager_all_admins": "True",
    "usage_data_collection.enabled": "False",
    "api.workers": "1",
    "api.enable_xcom_deserialize_support": "True",
    "api.maximum_page_limit": "10000",
    "dag_processor.refresh_interval": "1",
    "dag_processor.bundle_refresh_check_interval": "1",
    "dag_processor.min_file_process_interval": "2",
    "dag_processor.parsing_processes": "1",
    # On a busy machine a Dag counts as missing while its file is parsed, and its runs are not scheduled.
    "dag_processor.stale_dag_threshold": "86400",
    "scheduler.scheduler_heartbeat_sec": "1",
    "scheduler.scheduler_idle_sleep_time": "0.5",
    "scheduler.trigger_timeout_check_interval": "2",
    "scheduler.task_instance_heartbeat_sec": "3",
    "scheduler.task_instance_heartbeat_timeout": "15",
    "scheduler.task_instance_heartbeat_timeout_detection_interval": "2",
    "scheduler.orphaned_tasks_check_interval": "10",
    # A triggerer that was killed is missed after this time, and its triggers move to the next one.
    "triggerer.job_heartbeat_sec": "1",
    "triggerer.triggerer_health_check_threshold": "10",
    "logging.colored_console_log": "False",
}
"""``section.option`` to value; intervals in seconds, short where Airflow's own would only make us wait."""


@dataclass(frozen=True)
class Run:
    """One Dag run."""

    dag_id: str
    run_id: str


@dataclass(frozen=True)
class Result:
    """How a Dag run ended: its state and the state of each task, mapped ones as ``task_id[index]``."""

    state: str
    tasks: Mapping[str, str | None]


class Deployment:
    """
    Scheduler, dag-processor, triggerer and API server, each a process with a log in ``home``.

    :param home: ``AIRFLOW_HOME``; an existing directory that belongs to this deployment alone.
    :param dags_folder: where its Dag files are.
    :param database_url: SQLAlchemy URL of an empty database; SQLite in ``home`` by default.
    :param settings: more ``section.option`` values.
    :param environment: more environment variables, e.g. connections.
    :param components: the processes to run; see :data:`COMPONENTS`.
    :param port: the API server's port, if it is free.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags_folder: Path,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        components: Mapping[str, Sequence[str]] = COMPONENTS,
        port: int = 0,
    ) -> None:
        self.home = home
        self.dags_folder = dags_folder
        self.database_url = database_url or f"sqlite:///{home}/airflow.db"
        port = free_port(port)
        self.url = f"http://127.0.0.1:{port}"
        self.environment = _environment(
            home,
            {
                **SETTINGS,
                "core.dags_folder": str(dags_folder),
                "core.fernet_key": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "core.execution_api_server_url": f"{self.url}/execution/",
                "database.sql_alchemy_conn": self.database_url,
                "api.host": "127.0.0.1",
                "api.port": str(port),
                "api.base_url": self.url,
                "api.secret_key": secrets.token_hex(),
                "api_auth.jwt_secret": secrets.token_hex(),
                "logging.base_log_folder": str(home / "logs"),
                "logging.worker_log_server_port": str(free_port()),
                "logging.trigger_log_server_port": str(free_port()),
                **(settings or {}),
            },
            environment or {},
        )
        self.processes = {
            name: Process(
                name,
                [sys.executable, "-m", "airflow", *arguments],
                env=self.environment,
                log=home / "logs" / f"{name}.log",
            )
            for name, arguments in components.items()
        }
        self._api = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        try:
            self.migrate()
            for process in self.processes.values():
                process.start()
            self.wait_healthy(timeout=180)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def migrate(self) -> None:
        """Create the metadata database."""
        log = self.home / "logs" / "db-migrate.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            status = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if status:
            raise RuntimeError(f"airflow db migrate ended with status {status}:\n{log.read_text()}")

    def stop(self) -> None:
        """End every process; those that do not go when asked are killed."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Process.stop, self.processes.values()))
        self._api.close()

    def check(self) -> None:
        """:raises ProcessDied: if a process ended that nobody told to."""
        for process in self.processes.values():
            process.check()

    def wait_healthy(self, *, timeout: float) -> None:
        """
        Wait until the API server answers and reports every other part healthy.

        :param timeout: seconds.
        """

        def healthy() -> bool:
            self.check()
            try:
                health = self._api.get("/api/v2/monitor/health").json()
            except (httpx.TransportError, ValueError):
                return False
            return all(
                health[part] and health[part]["status"] == "healthy"
                for part in ("metadatabase", "scheduler", "triggerer", "dag_processor")
            )

        wait_until(
            healthy, timeout=timeout, what=f"Airflow at {self.url} is healthy (logs: {self.home}/logs)"
        )
        token = self._api.get("/auth/token")
        token.raise_for_status()
        self._api.headers["Authorization"] = f"Bearer {token.json()['access_token']}"

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """
        Call Airflow's REST API and return the JSON it answers.

        :param path: below ``/api/v2``.
        :param arguments: those of :meth:`httpx.Client.request`.
        :raises httpx.HTTPStatusError: with the server's words in a note.
        """
        response = self._api.request(method, f"/api/v2{path}", **arguments)
        try:
            response.raise_for_status()
        except httpx.HTTPStatusError as error:
            error.add_note(response.text)
            raise
        return response.json() if response.content else None

    def wait_for_dag(self, dag_id: str, *, timeout: float = 120) -> None:
        """
        Wait until the dag-processor has parsed the Dag.

        :param timeout: seconds.
        :raises RuntimeError: when a file of the Dags folder cannot be imported.
        """

        def parsed() -> bool:
            self.check()
            if errors := self.request("GET", "/importErrors")["import_errors"]:
                raise RuntimeError("\n".join(f"{e['filename']}:\n{e['stack_trace']}" for e in errors))
            return self._api.get(f"/api/v2/dags/{dag_id}").is_success

        wait_until(parsed, timeout=timeout, what=f"Dag {dag_id!r} is parsed")

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> Run:
        """Start a run of a Dag that is parsed."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return Run(dag_id, self.request("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def state(self, run: Run) -> str:
        """Return the state of the run, e.g. ``running``."""
        state: str = self.request("GET", _path(run))["state"]
        return state

    def task_instances(self, run: Run) -> list[dict[str, Any]]:
        """Return the task instances of the run as the REST API gives them."""
        answer = self.request("GET", f"{_path(run)}/taskInstances", params={"limit": 10_000})
        instances: list[dict[str, Any]] = answer["task_instances"]
        return instances

    def task_states(self, run: Run) -> dict[str, str | None]:
        """Return each task's state, mapped ones under ``task_id[index]``; None before it is scheduled."""
        return {label(ti): ti["state"] for ti in self.task_instances(run)}

    def watch(self, run: Run, *, timeout: float) -> Iterator[dict[str, str | None]]:
        """
        Yield the tasks' states about twice a second, the last time when the run has ended.

        :param timeout: seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            ended = self.state(run) in ("success", "failed")
            states = self.task_states(run)
            yield states
            if ended:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"run {run.run_id!r} of {run.dag_id!r} not ended within {timeout:g} s: {states}"
                )
            time.sleep(0.5)

    def wait_for_run(self, run: Run, *, timeout: float = 180) -> Result:
        """
        Wait until the run has ended, well or badly.

        :param timeout: seconds.
        """
        *_, tasks = self.watch(run, timeout=timeout)
        return Result(self.state(run), tasks)

    def xcom(self, run: Run, task_id: str, *, map_index: int = -1, key: str = "return_value") -> Any:
        """Return a value which a task pushed."""
        return self.request(
            "GET",
            f"{_path(run)}/taskInstances/{task_id}/xcomEntries/{key}",
            params={"map_index": map_index, "deserialize": True, "stringify": False},
        )["value"]

    def task_log(self, run: Run, task_id: str, *, map_index: int = -1) -> str:
        """Return all that was logged for the task, by every attempt, on worker and triggerer."""
        mapped = f"map_index={map_index}/" if map_index >= 0 else ""
        pattern = f"dag_id={run.dag_id}/run_id={run.run_id}/task_id={task_id}/{mapped}attempt=*"
        return "".join(path.read_text() for path in sorted((self.home / "logs").glob(pattern)))


def label(task_instance: Mapping[str, Any]) -> str:
    """Return ``task_id``, or ``task_id[index]`` for a mapped task."""
    task_id: str = task_instance["task_id"]
    map_index: int = task_instance["map_index"]
    return task_id if map_index < 0 else f"{task_id}[{map_index}]"


def _environment(home: Path, settings: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    # Settings of the caller's own Airflow would change this one, and tracing it for coverage would slow it
    # down by a third without seeing more than the tests below it.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "COVERAGE_"))
    }
    options = {
        "AIRFLOW__{}__{}".format(*(part.upper() for part in name.split("."))): value
        for name, value in settings.items()
    }
    return {
        **inherited,
        "AIRFLOW_HOME": str(home),
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
        # setproctitle and requests crash forked children on macOS without it.
        "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
        **options,
        **more,
    }


def _path(run: Run) -> str:
    return f"/dags/{run.dag_id}/dagRuns/{run.run_id}"
