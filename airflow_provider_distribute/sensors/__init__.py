# SPDX-License-Identifier: Apache-2.0

"""Sensors: what DAG authors wait with."""

from __future__ import annotations
