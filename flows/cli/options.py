"""Options that several verbs of the command share, and what each does first and last."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from flows.operations import home as homes
from flows.operations.server import end_orphans, server, use_running

Home = Annotated[
    Path, typer.Option("--home", envvar="HQINET_HOME", help="Everything that a run leaves.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Commit = Annotated[int | None, typer.Option(help="Commit of the dataset; default: the latest.")]
Model = Annotated[str, typer.Option("--model", help="Version, champion or latest.")]
Split = Annotated[str, typer.Option("--split", help="train, validation or test.")]
PolicyName = Annotated[
    str,
    typer.Option("--policy", envvar="HQINET_POLICY", help="Name of a policy, or a TOML file."),
]

REFUSED = 3


def require(home: Path) -> None:
    """Raise HomeError if a verb that reads would find no home."""
    homes.require(home)


def enter(home: Path) -> None:
    """Make `home` this command's home, and keep Prefect's own log off the terminal."""
    if not home.expanduser().is_dir():
        print(f"hqinet: made the home {home.expanduser().absolute()}", file=sys.stderr)
    entered = homes.enter(home)
    end_orphans(entered)
    use_running(entered)
    # What a user must know is printed by the command itself; the log is kept with the run.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


@contextmanager
def orchestrated() -> Iterator[None]:
    """Flows run in here: their server is there, and standard output is left to the result."""
    with quiet(), server():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print off standard output, which is the result's alone."""
    with redirect_stdout(sys.stderr):
        yield


def leave(*, refused: bool) -> None:
    """End the command, saying whether something was refused."""
    if refused:
        raise typer.Exit(REFUSED)
