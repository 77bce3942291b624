# SPDX-License-Identifier: Apache-2.0

"""Tests on Celery workers, two of them, and two triggerers."""

from __future__ import annotations
