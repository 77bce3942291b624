# SPDX-License-Identifier: Apache-2.0

"""
A stand-in for both services, to develop and test against without a key, a bill or a wait.

.. code-block:: console

    python -m airflow_provider_distribute.emulator --port 8000 --latency lognormal:median=5,sigma=0.5

It follows the services' public documents and shares no code with the rest of this package, so that a
misreading of a contract cannot hide on both sides.
"""

from __future__ import annotations
