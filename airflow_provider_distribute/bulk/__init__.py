# SPDX-License-Identifier: Apache-2.0

"""
A bulk run, step by step and without Airflow: read and check, submit, collect, land.

``inputs``, ``output_types`` and ``costs`` say what is asked, what may come back and what it costs; ``run``
takes the record of a run up and closes it; ``submission`` sends, on the worker; ``collection`` waits and
keeps what comes back, on the triggerer; ``landing`` puts everything in input order and ``formats`` writes it
down. ``attempt`` does one after the other and asks again what is invalid, and ``verdict`` says how it ends.
"""

from __future__ import annotations
