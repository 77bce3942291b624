# SPDX-License-Identifier: Apache-2.0

"""The run's record, hit at every instant."""

from __future__ import annotations
