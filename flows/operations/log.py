"""The logs of services. They lie on the disk of the home, which may be full: that ends nothing."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

LARGEST_LOG = 20_000_000


def say(line: str) -> None:
    """Print a line with the time; one that cannot be written is lost."""
    with suppress(OSError):
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}", flush=True)  # noqa: T201 - the log


def unfailing(say: Callable[[str], None]) -> Callable[[str], None]:
    """The same `say`, but a line that cannot be written is lost."""

    def say_or_lose(line: str) -> None:
        with suppress(OSError):
            say(line)

    return say_or_lose


def open_log(file: Path) -> IO[bytes]:
    """A log that is appended to; what grew large is kept once as `.1`."""
    if file.exists() and file.stat().st_size > LARGEST_LOG:
        file.replace(file.with_suffix(".log.1"))
    return file.open("ab")
