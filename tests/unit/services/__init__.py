# SPDX-License-Identifier: Apache-2.0

"""Tests of what each service says."""

from __future__ import annotations
