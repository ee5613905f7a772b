"""Lines of a service's log. It lies on the home's disk, which may be full: that ends nothing."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime


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
