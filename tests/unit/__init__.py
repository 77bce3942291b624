# SPDX-License-Identifier: Apache-2.0

"""Tests of values and clients: no Airflow, and no network but servers of their own."""

from __future__ import annotations
