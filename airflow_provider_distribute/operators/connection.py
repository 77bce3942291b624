# SPDX-License-Identifier: Apache-2.0

"""A task's connection: used for the first time, and used again after a wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_distribute.exceptions import InferenceError
from airflow_provider_distribute.hooks import hook_for
from airflow_provider_distribute.links import DashboardLink

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_distribute.hooks.base import ServiceHook

__all__ = ["hook_again", "hook_with_link"]

#: Seconds between look-ups of a connection that cannot be read although it was before.
_LOOK_UPS_APART = (2.0, 5.0, 10.0)


def hook_with_link(conn_id: str, context: Context) -> ServiceHook:
    """
    Return a connection's hook, and leave the link to its dashboard.

    :raises ConnectionInvalid: naming every missing or wrong field.
    """
    hook = hook_for(conn_id)
    DashboardLink.remember(context, hook.settings.dashboard_url)
    return hook


def hook_again(conn_id: str, tell: Callable[[str], str]) -> ServiceHook:
    """
    Return the hook of a connection that a task has used before.

    :param tell: Adds to the reason, a sentence, what goes on all the same.
    :raises ConnectionInvalid: naming every missing or wrong field.
    :raises AirflowException: it cannot be read, which need not last: Airflow also says that a connection is
        not defined when its secrets backend or its API server does not answer.
    """
    waits = iter(_LOOK_UPS_APART)
    while True:
        try:
            return hook_for(conn_id)
        except InferenceError:
            raise
        except Exception as error:
            wait = next(waits, None)
            if wait is None:
                why = (
                    f"Connection {conn_id!r}, which this task has used before, cannot be read now: "
                    f"{type(error).__name__}: {str(error).rstrip('.')}."
                )
                raise AirflowException(tell(why)) from error
        time.sleep(wait)
