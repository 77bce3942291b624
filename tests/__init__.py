# SPDX-License-Identifier: Apache-2.0

"""Unit tests by layer, and tests on a real Airflow in `integration`."""

from __future__ import annotations
