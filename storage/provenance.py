"""Which code made a commit or a model."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """The installed version, with the git revision where the code runs from a checkout.

    As `0.1.0+1a2b3c4d5e6f`, `-dirty` at the end where files differ from that revision.
    """
    try:
        installed = version("hqinet")
    except PackageNotFoundError:
        return "not installed"
    revision = _revision(Path(__file__).parents[1])
    return f"{installed}+{revision}" if revision else installed


def is_exact(code: str) -> bool:
    """Whether code of an equal `code_version` is the same code."""
    return code[:1].isdigit() and not code.endswith("-dirty")


def _revision(checkout: Path) -> str:
    """Empty where the folder itself is no checkout: an environment may lie inside another one."""
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
