# SPDX-License-Identifier: Apache-2.0

"""What the hooks of all services share: from an Airflow connection to a client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from functools import cached_property
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, ClassVar, overload
from urllib.parse import urlsplit

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook
from asgiref.sync import sync_to_async

from airflow_provider_distribute.client import RESEND_WINDOW, AsyncClient, Client, limit_of
from airflow_provider_distribute.exceptions import ConnectionInvalid, DeadlinePassed, InferenceError
from airflow_provider_distribute.get_provider_info import FORMS
from airflow_provider_distribute.models import (
    DEFAULT_POKE_INTERVAL,
    DEFAULT_TIMEOUT,
    ChatRequest,
    Job,
    Settings,
)
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.waiting.results import wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_distribute.pacing import RateLimit


def settings_from(connection: Connection) -> Settings:
    """
    Read an Airflow connection of one of our types.

    :raises ConnectionInvalid: naming every missing or wrong field.
    """
    conn_id = connection.conn_id
    conn_type = str(connection.conn_type).replace("-", "_")
    if conn_type not in SERVICES:
        known = " or ".join(repr(name) for name in SERVICES)
        raise ConnectionInvalid(conn_id, [f"its type is {connection.conn_type!r}, not {known}"])
    service = SERVICES[conn_type]
    extras = service.settings.extras()
    problems, extra = [], _extra_of(connection)
    if extra is None:
        problems, extra = ["extra: is not a JSON object"], {}
    # What has a field of its own in the form, or none at all, is not to slip in by its name in our code.
    fields = {name if name in extras else f"extra.{name}": it for name, it in extra.items()}
    fields["api_key"] = connection.password
    if connection.host:
        try:
            fields["base_url"] = _base_url_of(connection)
        except ValueError as error:
            problems = [*problems, str(error)]
    try:
        settings = service.settings.parse(conn_id, fields)
    except ConnectionInvalid as error:
        raise ConnectionInvalid(conn_id, [*problems, *error.problems]) from None
    if problems:
        raise ConnectionInvalid(conn_id, problems)
    return settings


def _extra_of(connection: Connection) -> dict[str, Any] | None:
    # Connection.extra_dejson answers {} to an extra that is not JSON, which would hide a typo.
    with contextlib.suppress(ValueError):
        extra = json.loads(connection.extra or "{}")
        return extra if isinstance(extra, dict) else None
    return None


def _base_url_of(connection: Connection) -> str:
    """
    Return the URL that host, port and schema make together.

    :raises ValueError: the host names another port.
    """
    host, port = str(connection.host).strip(), connection.port
    with contextlib.suppress(ValueError):
        host = f"[{IPv6Address(host)}]"
    url = host if "://" in host else f"{connection.schema or 'https'}://{host}"
    try:
        parts, named = urlsplit(url), urlsplit(url).port
    except ValueError:
        return url  # Whoever checks it says what is wrong with it.
    if not port or port == named:
        return url
    if named:
        raise ValueError(f"port: {port} is not the one that the host names, {named}")
    return parts._replace(netloc=f"{parts.netloc}:{port}").geturl()


async def async_settings(conn_id: str) -> Settings:
    """
    Read an Airflow connection on an event loop, without blocking it, on every Airflow from 3.0 on.

    :raises ConnectionInvalid: naming every missing or wrong field.
    """
    try:
        connection = await get_async_connection(conn_id)
    except AirflowNotFoundException:
        # dag.test() has no asynchronous way to a connection that is stored in the database.
        connection = await sync_to_async(BaseHook.get_connection)(conn_id)
    return settings_from(connection)


def _refuse_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "wait() was called on an event loop and would block it. In a coroutine use "
        "`await asyncio.to_thread(hook.wait, job_ids)`; in a Dag AsyncChatSensor waits without a worker."
    )


class ServiceHook(BaseHook):
    """
    Talks to one service through an Airflow connection.

    Connection: ``password`` is the API key, ``host`` the base URL (default: the vendor's), and ``extra`` may
    hold the fields of the service's :class:`~airflow_provider_distribute.models.Settings`.

    Errors are those of :mod:`airflow_provider_distribute.exceptions`.

    :param conn_id: Connection id.
    """

    conn_name_attr = "conn_id"
    default_conn_name: ClassVar[str]
    conn_type: ClassVar[str]
    hook_name: ClassVar[str]

    def __init__(self, conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id or self.default_conn_name
        self._settings: Settings | None = None
        self._opening: asyncio.Future[AsyncClient] | None = None
        self._users = 0

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form of Airflow below 3.2, which knows no typed fields: they go to ``extra`` as JSON."""
        behaviour = FORMS[cls.conn_type]["ui-field-behaviour"]
        example = {
            name: field["schema"].get("default")
            for name, field in FORMS[cls.conn_type]["conn-fields"].items()
        }
        return {
            "hidden_fields": [name for name in behaviour["hidden-fields"] if name != "extra"],
            "relabeling": behaviour["relabeling"],
            "placeholders": {**behaviour["placeholders"], "extra": json.dumps(example, indent=1)},
        }

    @property
    def settings(self) -> Settings:
        """
        The connection, read once and checked.

        :raises ConnectionInvalid: naming every missing or wrong field.
        """
        return self._settings or self.use(settings_from(self.get_connection(self.conn_id)))

    def use(self, settings: Settings) -> Settings:
        """
        Use a connection that was read already.

        :raises ConnectionInvalid: it is another service's.
        """
        if settings.service != self.conn_type:
            raise ConnectionInvalid(
                self.conn_id,
                [f"its type is {settings.service!r}; {type(self).__name__} takes {self.conn_type!r}"],
            )
        self._settings = settings
        return settings

    @property
    def limit(self) -> RateLimit:
        """The rate limit that whatever this process sends through the connection keeps."""
        return limit_of(self.settings)

    @cached_property
    def client(self) -> Client:
        """The synchronous client."""
        return Client(self.settings, limit=self.limit)

    def get_conn(self) -> Client:
        """Return the synchronous client."""
        return self.client

    def request_from(self, request: Any) -> ChatRequest:
        """
        Read a prompt, a message list, a mapping with either, or a :class:`ChatRequest`.

        :raises InvalidRequest: naming everything that is wrong.
        """
        return ChatRequest.parse(request, model=self.settings.model)

    def submit(self, request: Any, *, resend_for: float = RESEND_WINDOW) -> str:
        """
        Submit a request; it is accepted, and billed, when this returns.

        What was surely not accepted is sent again; what was sent and not answered never is.

        :param request: A prompt, a message list, a mapping with ``prompt`` or ``messages`` and optionally
            ``model``, ``params``, ``metadata`` and ``system_prompt``, or a :class:`ChatRequest`.
        :param resend_for: Seconds for which it is sent again.
        :returns: The job id.
        :raises OutcomeUnknown: it may have been accepted.
        :raises InvalidRequest, AccessDenied, RequestRefused, NotAccepted: it was not.
        """
        return self.client.submit(self.request_from(request), deadline=time.time() + resend_for)

    def get_job(self, job_id: str) -> Job:
        """
        Look at a job once.

        :raises JobNotFound: the service does not know it (yet).
        :raises Unavailable: no usable answer; the job goes on.
        :raises AccessDenied: the key is not accepted.
        """
        return self.client.look_in_turn(job_id)

    @overload
    def wait(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too, and comes first
        self, job_ids: str, *, timeout: float = ..., poke_interval: float = ...
    ) -> Job: ...

    @overload
    def wait(
        self, job_ids: Sequence[str], *, timeout: float = ..., poke_interval: float = ...
    ) -> list[Job]: ...

    def wait(
        self,
        job_ids: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        poke_interval: float = DEFAULT_POKE_INTERVAL,
    ) -> Job | list[Job]:
        """
        Wait until jobs have ended, well or badly. Occupies the worker; a sensor does not.

        :param job_ids: One job id, or several.
        :param timeout: Seconds to wait at most.
        :param poke_interval: Seconds between looks of a fixed schedule; jobs are found as soon on average.
        :returns: The job, or the jobs in the order given.
        :raises DeadlinePassed: naming the jobs that were still pending. They go on and are billed.
        :raises AccessDenied: the key is not accepted.
        :raises RuntimeError: called on an event loop, which it would block.
        """
        _refuse_event_loop()
        asked = [job_ids] if isinstance(job_ids, str) else list(job_ids)
        deadline = time.time() + timeout
        results = asyncio.run(
            wait_for(asked, self.settings, deadline=deadline, poke_interval=poke_interval, logger=self.log)
        )
        if results.pending:
            raise DeadlinePassed(results.pending, total=len(set(asked)))
        return results.ended[job_ids] if isinstance(job_ids, str) else [results.ended[it] for it in asked]

    def test_connection(self) -> tuple[bool, str]:
        """Ask for a job that cannot exist: it costs nothing and shows whether the key is accepted."""
        try:
            self.client.probe()
        except InferenceError as error:
            return False, str(error)
        return True, f"{self.client.service.title} answers and accepts the key."

    async def asubmit(self, request: Any, *, resend_for: float = RESEND_WINDOW) -> str:
        """Submit a request, asynchronously; see :meth:`submit`."""
        async with self._async_client() as client:
            return await client.submit(self.request_from(request), deadline=time.time() + resend_for)

    async def aget_job(self, job_id: str) -> Job:
        """Look at a job once, asynchronously; see :meth:`get_job`."""
        async with self._async_client() as client:
            return await client.look_in_turn(job_id)

    @contextlib.asynccontextmanager
    async def _async_client(self) -> AsyncIterator[AsyncClient]:
        """Share one client among the calls that overlap; the last one out closes it."""
        opening = self._opening = self._opening or asyncio.ensure_future(self._open())
        self._users += 1
        try:
            yield await asyncio.shield(opening)
        finally:
            self._users -= 1
            if not self._users:
                self._opening = None
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await (await opening).close()

    async def _open(self) -> AsyncClient:
        settings = self._settings or self.use(await async_settings(self.conn_id))
        return await AsyncClient.open(settings)
