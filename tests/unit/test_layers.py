# SPDX-License-Identifier: Apache-2.0

"""The house rules that an architect would otherwise have to remember."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import airflow_provider_distribute

ROOT = Path(airflow_provider_distribute.__file__).parent
PACKAGE = ROOT.name

#: From the top down. A layer may import what is on its own line and below it.
LAYERS = [
    {"plugins"},
    {"operators", "sensors", "decorators"},
    {"links"},
    {"triggers"},
    {"hooks"},
    {"bulk"},
    {"waiting"},
    {"ledger"},
    {"client"},
    {"pacing"},
    {"services"},
    {"models"},
    {"exceptions"},
    {"get_provider_info"},
]
#: These stand beside the house: the emulator must not share a misreading of the contract with it.
STAND_ALONE = {"emulator", "testing", "__init__"}
#: Errors carry jobs, and jobs raise errors: the one name that points up is for type checkers only.
FOR_TYPE_CHECKERS = {"exceptions": {"models"}}
AIRFLOW_FREE = {
    "bulk",
    "waiting",
    "ledger",
    "client",
    "pacing",
    "services",
    "models",
    "exceptions",
    "emulator",
    "testing",
}
SPEAKS_HTTP = {"services", "client"}

HEIGHT = {name: len(LAYERS) - floor for floor, names in enumerate(LAYERS) for name in names}
MODULES = sorted(ROOT.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return every module named in an import of a file, wherever in it, for type checking or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path.name} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layers_imported(path: Path) -> set[str]:
    """Return the layers of this package that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith(f"{PACKAGE}.")} - {"__version__"}


def in_layers(layers: set[str]) -> list[Path]:
    return [path for path in MODULES if layer_of(path) in layers]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_is_in_a_layer() -> None:
    """A new folder has to be given its place here."""
    assert {layer_of(path) for path in MODULES} <= HEIGHT.keys() | STAND_ALONE


@pytest.mark.parametrize("path", in_layers(set(HEIGHT)), ids=named)
def test_imports_point_down(path: Path) -> None:
    """Whoever reads a layer need only know what is below it."""
    mine = layer_of(path)
    above = {name for name in layers_imported(path) if HEIGHT.get(name, 99) > HEIGHT[mine]}
    assert above <= FOR_TYPE_CHECKERS.get(mine, set())


@pytest.mark.parametrize("path", in_layers(AIRFLOW_FREE), ids=named)
def test_nothing_below_the_hooks_knows_airflow(path: Path) -> None:
    """It is usable and testable without."""
    assert {name for name in imported(path) if name.split(".")[0] == "airflow"} == set()


@pytest.mark.parametrize("path", in_layers(set(HEIGHT) - SPEAKS_HTTP), ids=named)
def test_httpx_is_the_clients_business(path: Path) -> None:
    """Nobody else sees a status code: neither httpx nor aiohttp is imported elsewhere."""
    assert {name.split(".")[0] for name in imported(path)} & {"httpx", "httpx_aiohttp", "aiohttp"} == set()


@pytest.mark.parametrize("path", in_layers({"emulator"}), ids=named)
def test_the_emulator_stands_alone(path: Path) -> None:
    """It imports nothing of the layers it is there to test."""
    assert layers_imported(path) <= {"emulator"}


@pytest.mark.parametrize("path", in_layers({"testing"}), ids=named)
def test_the_fixtures_know_only_the_emulator(path: Path) -> None:
    """DAG authors use them beside their own operators: they must not depend on ours."""
    assert layers_imported(path) <= {"testing", "emulator"}


EXPORTING = [path for path in in_layers(AIRFLOW_FREE) if "\n__all__ = " in path.read_text()]


@pytest.mark.parametrize("path", EXPORTING, ids=named)
def test_exports_are_sorted_and_there(path: Path) -> None:
    """Where a module says what it exports, that is in order and exists."""
    name = ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    module = importlib.import_module(name)
    # The order of ruff: constants, classes, then the rest.
    ordered = sorted(set(module.__all__), key=lambda it: (not it.isupper(), not it[0].isupper(), it))
    assert list(module.__all__) == ordered
    assert all(hasattr(module, exported) for exported in module.__all__)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_file_has_its_licence_and_its_purpose(path: Path) -> None:
    """Two lines of licence, then what it is for."""
    source = path.read_text()
    assert source.startswith("# SPDX-License-Identifier: Apache-2.0\n\n")
    assert ast.get_docstring(ast.parse(source))


def test_the_changelog_begins_with_the_version() -> None:
    """What is released is what is described."""
    changelog = (ROOT.parent / "CHANGELOG.md").read_text()
    match = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert match
    assert match[1] == airflow_provider_distribute.__version__
