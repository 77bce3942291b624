# SPDX-License-Identifier: Apache-2.0

"""Bulk runs, from input to results."""

from __future__ import annotations
