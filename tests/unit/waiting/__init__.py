# SPDX-License-Identifier: Apache-2.0

"""Tests of waiting."""

from __future__ import annotations
