# SPDX-License-Identifier: Apache-2.0

"""Hooks, one a service. The connection's type says which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_distribute.hooks.base import ServiceHook, settings_from
from airflow_provider_distribute.hooks.distribute import DistributeHook
from airflow_provider_distribute.hooks.inference_net import InferenceNetHook

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HOOKS", "hook_for"]

HOOKS: Mapping[str, type[ServiceHook]] = {hook.conn_type: hook for hook in (DistributeHook, InferenceNetHook)}


def hook_for(conn_id: str) -> ServiceHook:
    """
    Return the hook of a connection, by its type.

    :raises ConnectionInvalid: naming every missing or wrong field.
    """
    settings = settings_from(BaseHook.get_connection(conn_id))
    hook = HOOKS[settings.service](conn_id)
    hook.use(settings)
    return hook
