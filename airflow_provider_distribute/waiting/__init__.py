# SPDX-License-Identifier: Apache-2.0

"""The pool one triggerer process shares: what to look at, when, and how fast."""

from __future__ import annotations
