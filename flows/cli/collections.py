"""The verb that downloads a public collection."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import Json
from flows.errors import FlowError

if TYPE_CHECKING:
    from storage.collections.idc import Selection

ASK_FROM = 1_000_000_000
"""Bytes from which a download asks first."""


def fetch(
    collection: Annotated[str, typer.Argument(help="As ldct_and_projection_data.")],
    destination: Annotated[Path, typer.Argument(help="Folder to download to.")],
    patients: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.")] = None,
    anatomy: Annotated[str | None, typer.Option(help="chest or abdomen.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many patients.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(envvar="HQINET_FETCH_ENDPOINT", help="Another S3 server.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before gigabytes.")] = False,
    as_json: Json = False,
) -> None:
    """Download the image pairs of a public collection; run again to go on or to check."""
    from flows.cli import output
    from storage.collections import idc

    chosen = idc.select(collection, patients=split_names(patients), anatomy=anatomy, limit=limit)
    if chosen.size > ASK_FROM and not yes:
        if not sys.stdin.isatty():
            raise FlowError(f"{describe(chosen)}: nobody can be asked here: say --yes, or --limit")
        typer.confirm(f"{describe(chosen)} to {destination}?", abort=True, err=True)
    with bar(chosen) as progress:
        fetched = idc.fetch(chosen, destination, endpoint=endpoint, progress=progress)
    made = {"patients": list(chosen.patients), **asdict(fetched)}

    def show(made: dict[str, Any]) -> None:
        output.print_line(f"{describe(chosen)}: {destination}")
        output.print_line(f"{made['files']} files downloaded, {made['present']} were there")

    output.answer(made, show, as_json=as_json)


def split_names(names: list[str] | None) -> list[str] | None:
    """Patients given as `--patients A --patients B` or as `--patients A,B`."""
    return [name for part in names for name in part.split(",") if name] if names else None


def describe(chosen: "Selection") -> str:
    """How much a selection is."""
    return (
        f"{len(chosen.patients)} patients, {len(chosen.series)} series, {chosen.files} files, "
        f"{chosen.size / 1e9:.2f} GB"
    )


@contextmanager
def bar(chosen: "Selection") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("download", total=chosen.size)

        def advance(_files: int, size: int) -> None:
            progress.advance(task, size)

        yield advance
