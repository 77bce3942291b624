# SPDX-License-Identifier: Apache-2.0

"""The link from a task to the service's dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

__all__ = ["DashboardLink"]

_KEY = "dashboard_url"


class DashboardLink(BaseOperatorLink):
    """Leads to where the service shows people their jobs; the connection's ``dashboard_url``."""

    name = "Inference dashboard"

    @staticmethod
    def remember(context: Context, url: str) -> None:
        """Leave the link for :meth:`get_link`: before a deferral, so that it shows while the task waits."""
        context["ti"].xcom_push(key=_KEY, value=url)

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the link, or nothing for a task that has not run."""
        return XCom.get_value(ti_key=ti_key, key=_KEY) or ""
