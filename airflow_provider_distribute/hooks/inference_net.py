# SPDX-License-Identifier: Apache-2.0

"""Hook for inference.net."""

from __future__ import annotations

from typing import ClassVar

from airflow_provider_distribute.hooks.base import ServiceHook

__all__ = ["InferenceNetHook"]


class InferenceNetHook(ServiceHook):
    """
    Talks to inference.net's background API.

    Source: docs.inference.net, "Async inference".

    :param conn_id: Connection of type ``inference_net``. Its extra takes the fields of
        :class:`~airflow_provider_distribute.services.inference_net.InferenceNetSettings`.
    """

    default_conn_name: ClassVar[str] = "inference_net_default"
    conn_type: ClassVar[str] = "inference_net"
    hook_name: ClassVar[str] = "inference.net"
