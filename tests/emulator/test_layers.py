# SPDX-License-Identifier: Apache-2.0

"""The emulator stands on its own: a misreading of a contract cannot hide on both sides."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.find_spec("airflow_provider_distribute.emulator")
assert SPEC is not None
assert SPEC.origin is not None
EMULATOR = Path(SPEC.origin).parent
ALLOWED = {
    "airflow_provider_distribute.emulator": EMULATOR,
    "airflow_provider_distribute.testing": EMULATOR.parent / "testing",
}


@pytest.mark.parametrize(
    "path", [p for root in ALLOWED.values() for p in root.rglob("*.py")], ids=lambda p: p.name
)
def test_it_imports_nothing_else_of_the_package_and_no_airflow(path: Path) -> None:
    """Not even under TYPE_CHECKING."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    ours = {name for name in imported if name.split(".")[0] in ("airflow_provider_distribute", "airflow")}
    assert all(name.startswith(tuple(ALLOWED)) for name in ours), ours
