"""How a download is described and shown on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as Speed

from storage.collections.idc import Selection


def describe(chosen: Selection) -> str:
    """How much a selection is."""
    return (
        f"{len(chosen.patients)} patients, {len(chosen.series)} series, {chosen.files} files, "
        f"{chosen.size / 1e9:.2f} GB"
    )


@contextmanager
def bar(chosen: Selection) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("download", total=chosen.size)

        def advance(_files: int, size: int) -> None:
            progress.advance(task, size)

        yield advance
