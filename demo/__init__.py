# SPDX-License-Identifier: Apache-2.0

"""`make demo`, and the real Airflow which it shares with the integration tests."""

from __future__ import annotations
