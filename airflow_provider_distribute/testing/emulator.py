# SPDX-License-Identifier: Apache-2.0

"""The emulator in a background thread, with an API for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.faults import from_json
from airflow_provider_distribute.emulator.server import Server
from airflow_provider_distribute.emulator.settings import Settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

    from airflow_provider_distribute.emulator.core import JobView
    from airflow_provider_distribute.emulator.jobs import Job
    from airflow_provider_distribute.emulator.ledger import Entry

Result = TypeVar("Result")

KEY = "emulator-key"
MODELS = {"distribute": "Llama-3.1 8B", "inference_net": "meta-llama/llama-3.1-8b-instruct/fp-16"}
OUTAGE_SECONDS = 3600.0


class InferenceEmulator:
    """
    Both services on a free port of this machine, for as long as the ``with`` block lasts.

    .. code-block:: python

        with InferenceEmulator(latency="2") as emulator:
            os.environ["AIRFLOW_CONN_DISTRIBUTE_DEFAULT"] = emulator.connection("distribute")
            ...
            assert emulator.paid == 1

    It runs in a thread of this process; other processes reach it by its URL. All methods may be called
    from any thread.

    :ivar settings: the options in force.
    :param host: the address to listen on.
    :param port: 0 for a free one.
    :param tls: serve https with this context.
    :param settings: the fields of :class:`~airflow_provider_distribute.emulator.settings.Settings`. The
        key is ``emulator-key`` unless given, and jobs are finished at once unless there is a ``latency``.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None, **settings: Any
    ) -> None:
        self.settings = Settings(**{"key": KEY, **settings})
        self._server = Server(self.settings, host=host, port=port, tls=tls)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="inference-emulator", daemon=True)

    def __enter__(self) -> InferenceEmulator:
        """Start, and return when requests are answered."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and close all connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # handed to the thread that waits for the start
            self._failure = error
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self._server:
            self._started.set()
            await self._stop.wait()

    def _await(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _ask(self, question: Callable[[], Result]) -> Result:
        """Call ``question`` on the emulator's own thread, where nothing changes meanwhile."""

        async def work() -> Result:
            return question()

        return self._await(work())

    @property
    def url(self) -> str:
        """The root, where both services and the control requests are."""
        return self._server.url

    def base_url(self, service: str) -> str:
        """
        The base URL of one service.

        :param service: ``distribute`` or ``inference_net``.
        """
        return self._server.base_url(service)

    def connection(self, service: str, **extra: Any) -> str:
        """
        An Airflow connection to the emulator, as JSON for an ``AIRFLOW_CONN_...`` variable.

        :param service: ``distribute`` or ``inference_net``, which is the connection's type, too.
        :param extra: fields of its extra; ``model`` is one of the service's unless given.
        """
        return json.dumps(
            {
                "conn_type": service,
                "host": self.base_url(service),
                "password": self.settings.key or KEY,
                "extra": {"model": MODELS[service], **extra},
            }
        )

    @property
    def jobs(self) -> list[JobView]:
        """All jobs, in the order of submission, those of one service after those of the other."""
        emulator = self._server.emulator

        def views() -> list[JobView]:
            now = self._server.clock()
            return [emulator.describe(job, now) for job in emulator.jobs()]

        return self._ask(views)

    def job(self, job_id: str) -> JobView:
        """
        One job as it is now.

        :raises KeyError: if there is no such job.
        """
        server = self._server
        return self._ask(lambda: server.emulator.describe(self._job(job_id), server.clock()))

    @property
    def paid(self) -> int:
        """How many jobs were created, and so are billed."""
        return self._ask(lambda: sum(self._server.emulator.ledger.paid.values()))

    @property
    def looks(self) -> int:
        """How many requests asked how a job is doing, whatever they were answered."""
        answers = self._server.emulator.ledger.answers
        return self._ask(lambda: sum(n for (_, operation, _), n in answers.items() if operation == "look"))

    def requests(self, **wanted: Any) -> list[Entry]:
        """
        The requests it got, oldest first; all the ledger still holds.

        :param wanted: values of :class:`~airflow_provider_distribute.emulator.ledger.Entry`, for instance
            ``operation="submit", status=429``. A status of ``None`` stands for a reset connection.
        """
        ledger = self._server.emulator.ledger
        return self._ask(lambda: ledger.page(0, len(ledger.entries) + 1, **wanted)[0])

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of requests, jobs, looks, faults and connections, as ``GET /_emulator/stats`` gives them."""
        server = self._server
        return self._ask(lambda: {**server.emulator.stats(server.clock()), "connections": server.stats()})

    def fault(self, kind: str, **fields: Any) -> None:
        """
        Let something go wrong from now on.

        .. code-block:: python

            emulator.fault("429", operation="submit", retry_after=1, count=3)
            emulator.fault("reset", operation="submit", accepted=True, count=1)  # paid, but not answered
            emulator.fault("error", rate=0.1)  # a tenth of the new jobs fails

        :param kind: see :mod:`~airflow_provider_distribute.emulator.faults`, which also explains ``fields``.
        :raises ValueError: if the kind or a field is wrong.
        """
        fault = from_json({"kind": kind, **fields})
        self._ask(lambda: self._server.emulator.faults.add(fault))

    def no_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._ask(self._server.emulator.faults.remove)

    @contextlib.contextmanager
    def outage(self, mode: str = "503") -> Iterator[None]:
        """
        Let no request through while the ``with`` block lasts.

        :param mode: a status that is answered, ``reset`` (connections are reset) or ``refuse``
            (connections are refused).
        """
        self._ask(lambda: self._server.begin_outage(mode, OUTAGE_SECONDS))
        try:
            yield
        finally:
            self._await(self._server.end_outage())

    def finish(self, job_id: str, *, error: str | None = None) -> None:
        """
        End a job now.

        :param error: end it as failed, for this reason.
        :raises KeyError: if there is no such job.
        """
        emulator = self._server.emulator
        self._ask(lambda: emulator.finish(self._job(job_id), self._server.clock(), error=error))

    def _job(self, job_id: str) -> Job:
        job = self._server.emulator.job(job_id)
        if job is None:
            raise KeyError(job_id)
        return job

    def finish_all(self, *, error: str | None = None) -> int:
        """End all pending jobs, as failed if there is an ``error``; return how many that were."""
        return self._ask(lambda: self._server.emulator.finish_all(self._server.clock(), error=error))

    def reset(self) -> None:
        """Forget all jobs, requests and faults given at run time; ids begin again. Connections stay open."""
        self._ask(self._server.emulator.reset)

    def connections(self, **extra: Any) -> dict[str, str]:
        """
        The environment variables that point both default connections here.

        :param extra: as for :meth:`connection`.
        """
        return {f"AIRFLOW_CONN_{name.upper()}_DEFAULT": self.connection(name, **extra) for name in CONTRACTS}
