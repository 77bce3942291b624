# SPDX-License-Identifier: Apache-2.0

"""The emulator: its decisions without a network, the server, and clients and schemas we did not write."""

from __future__ import annotations
