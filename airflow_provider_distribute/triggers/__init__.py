# SPDX-License-Identifier: Apache-2.0

"""Triggers: read what to wait for, ask the pool, yield one event."""

from __future__ import annotations
