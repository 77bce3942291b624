# SPDX-License-Identifier: Apache-2.0

"""Operators: what DAG authors call."""

from __future__ import annotations
