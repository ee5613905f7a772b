"""The house: imports go one way, and each room holds only what it may touch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "hqinet": {"flows", "storage", "prefect", "mlflow", "pydicom", "zarr", "dask", "deltalake"},
    "storage": {"flows", "hqinet", "torch", "prefect"},
    "flows": set(),
}
"""Packages that no module of a room may import."""


def imported(file: Path) -> set[str]:
    """Top-level packages that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_what_it_must_not_know(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    broken = {str(file.relative_to(ROOT)): imported(file) & ROOMS[room] for file in files}
    assert {file: names for file, names in broken.items() if names} == {}


def test_nothing_imports_the_tests():
    for file in ROOT.glob("[fhs]*/**/*.py"):
        assert "tests" not in imported(file), file


def test_no_drawer_for_odds_and_ends():
    names = {file.stem for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "misc"}


def test_every_package_is_typed():
    assert all((ROOT / room / "py.typed").exists() for room in ROOMS)
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.returns is not None, f"{file.name}: {node.name}"
