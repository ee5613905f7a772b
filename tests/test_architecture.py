"""The house: imports go one way, and each room touches only what it may."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "hqinet": {"flows", "storage", "prefect", "mlflow", "pydicom", "zarr", "dask", "deltalake"},
    "storage": {"flows", "hqinet", "torch", "prefect"},
    "flows": set(),
}
"""Packages that no module of a package may import."""
ORDER = {
    "storage": {
        "stores": set(),
        "dicom": {"stores"},
        "dataset": {"stores"},
        "models": {"stores", "dataset"},
        "collections": {"stores"},
        "ingest": {"stores", "dicom", "dataset"},
    },
    "hqinet": {
        "networks": set(),
        "samples": set(),
        "physics": set(),
        "restoration": {"networks", "samples"},
        "training": {"networks", "samples", "restoration"},
        "quality": {"samples", "restoration"},
        "report": {"quality", "samples"},
    },
    "flows": {"operations": set(), "compute": {"operations"}, "cli": {"operations", "compute"}},
}
"""Rooms of each package, and the other rooms of it that a room may import."""


def imported(file: Path) -> set[str]:
    """Top-level packages that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def rooms_imported(file: Path, package: str) -> set[str]:
    """Rooms of the package that a module imports from, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, _, rest = node.module.partition(".")
            if first == package:
                names |= {rest.split(".")[0]} if rest else {alias.name for alias in node.names}
    return names & ORDER[package].keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_what_it_must_not_know(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    broken = {str(file.relative_to(ROOT)): imported(file) & PACKAGES[package] for file in files}
    assert {file: names for file, names in broken.items() if names} == {}


@pytest.mark.parametrize("package", ORDER)
def test_rooms_import_one_way(package):
    found = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
    assert found == ORDER[package].keys()
    broken = {
        str(file.relative_to(ROOT)): beyond
        for room, allowed in ORDER[package].items()
        for file in sorted((ROOT / package / room).rglob("*.py"))
        if (beyond := rooms_imported(file, package) - allowed - {room})
    }
    assert broken == {}


@pytest.mark.parametrize("package", ORDER)
def test_every_room_says_at_its_door_what_it_is_for(package):
    for room in ORDER[package]:
        door = ast.get_docstring(ast.parse((ROOT / package / room / "__init__.py").read_text()))
        assert door, room
        assert "In:" in door, room
        assert "Out:" in door, room
        assert "mport" in door, room


def test_nothing_imports_the_tests():
    for file in ROOT.glob("[fhs]*/**/*.py"):
        assert "tests" not in imported(file), file


def test_no_drawer_for_odds_and_ends():
    names = {file.stem for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "misc"}


def test_every_package_is_typed():
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.returns is not None, f"{file.name}: {node.name}"
