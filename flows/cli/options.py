"""Options that several verbs of the command share, and what each does first."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.operations import home as homes
from flows.operations.server import end_orphans

Home = Annotated[
    Path, typer.Option("--home", envvar="HQINET_HOME", help="Everything that a run leaves.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Commit = Annotated[int | None, typer.Option(help="Commit of the dataset; default: the latest.")]


def enter(home: Path) -> None:
    """Make `home` this command's home, and keep Prefect's own log off the terminal."""
    end_orphans(homes.enter(home))
    # What a user must know is printed by the command itself; the log is kept with the run.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
