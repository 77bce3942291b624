# SPDX-License-Identifier: Apache-2.0

"""Everything that looks random comes from here, so that one seed repeats a whole session."""

from __future__ import annotations

import hashlib
import random


def digest(*parts: object, size: int = 16) -> bytes:
    """``size`` bytes that depend on all ``parts`` and on nothing else."""
    return hashlib.blake2b(
        "\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=size
    ).digest()


def generator(*parts: object) -> random.Random:
    """A generator of its own for every use, so that one use does not disturb another's sequence."""
    return random.Random(digest(*parts))  # noqa: S311 - repeatability is the point, nothing here is a secret
