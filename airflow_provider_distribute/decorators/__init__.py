# SPDX-License-Identifier: Apache-2.0

"""TaskFlow decorators."""

from __future__ import annotations
