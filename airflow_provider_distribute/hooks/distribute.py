# SPDX-License-Identifier: Apache-2.0

"""Hook for Distribute.AI."""

from __future__ import annotations

from typing import ClassVar

from airflow_provider_distribute.hooks.base import ServiceHook

__all__ = ["DistributeHook"]


class DistributeHook(ServiceHook):
    """
    Talks to Distribute.AI's asynchronous API.

    Source: docs.distribute.ai, "Enterprise inference API", "Async API".

    :param conn_id: Connection of type ``distribute``. Its extra takes the fields of
        :class:`~airflow_provider_distribute.services.distribute.DistributeSettings`.
    """

    default_conn_name: ClassVar[str] = "distribute_default"
    conn_type: ClassVar[str] = "distribute"
    hook_name: ClassVar[str] = "Distribute.AI"
