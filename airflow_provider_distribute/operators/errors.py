# SPDX-License-Identifier: Apache-2.0

"""Which of this provider's errors Airflow is to retry."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_distribute.exceptions import InferenceError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["airflow_errors"]


@contextlib.contextmanager
def airflow_errors() -> Iterator[None]:
    """Fail the task for good where no retry can help; leave the rest to Airflow's ``retries``."""
    try:
        yield
    except InferenceError as error:
        raise (AirflowException if error.transient else AirflowFailException)(str(error)) from error
