# SPDX-License-Identifier: Apache-2.0

"""
What Airflow sees, on every supported Airflow: hooks, operators, sensors, triggers, example Dags.

Tasks run in Airflow's own task runner and triggers on a real event loop. The wire leads to the emulator:
without a network, and then time is a test's own, or over the loopback interface.
"""

from __future__ import annotations

import os
import warnings

import structlog

# The machine's own name need not resolve, and must not be asked for on the network.
os.environ["AIRFLOW__CORE__HOSTNAME_CALLABLE"] = "socket.gethostname"

with warnings.catch_warnings():
    # Older releases use what their dependencies have deprecated since; that is not ours to fail for.
    warnings.simplefilter("ignore")
    import airflow.models.dagbag
    import airflow.serialization.serialized_objects  # noqa: F401
    from sqlalchemy.orm import configure_mappers

    configure_mappers()

if not structlog.is_configured():
    # Before 3.1 importing Airflow leaves structlog's own defaults, which print the locals of every traceback.
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
