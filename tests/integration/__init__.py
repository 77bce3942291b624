# SPDX-License-Identifier: Apache-2.0

"""Tests on a real scheduler, triggerer and worker."""

from __future__ import annotations
