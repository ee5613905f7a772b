"""The logs of services: a JSON object a line. Their disk may be full, which ends nothing."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

LARGEST_LOG = 20_000_000
JSON_LINES = {
    "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": "flows.operations.log.JsonLines",
    "PREFECT_LOGGING_FORMATTERS_JSON_FORMAT": "%(message)s",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    "PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER": "json",
}
"""Environment in which Prefect's server, workers and runs log as we do."""
UVICORN = Path(__file__).with_name("uvicorn.json")
"""Configuration by which a server of uvicorn does so."""


def say(message: str) -> None:
    """Print a line; one that cannot be written is lost."""
    with suppress(OSError):
        print(_line(datetime.now(UTC), {"message": message}), flush=True)  # noqa: T201 - the log


def _line(time: datetime, said: dict[str, str]) -> str:
    return json.dumps({"time": time.isoformat(timespec="milliseconds"), **said})


class JsonLines(logging.Formatter):
    """What a library logs, as `say` prints it, with level, logger and a flow run's name."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, tracebacks within."""
        run = {"flow_run": record.flow_run_name} if hasattr(record, "flow_run_name") else {}
        said = {"level": record.levelname.lower(), "logger": record.name, **run}
        time = datetime.fromtimestamp(record.created, UTC)
        return _line(time, said | {"message": super().format(record)})


def unfailing(say: Callable[[str], None]) -> Callable[[str], None]:
    """The same `say`, but a line that cannot be written is lost."""

    def say_or_lose(line: str) -> None:
        with suppress(OSError):
            say(line)

    return say_or_lose


def open_log(file: Path) -> IO[bytes]:
    """A log that is appended to, also after `shorten`."""
    return file.open("ab")


def shorten(folder: Path) -> None:
    """Keep what grew large in the logs of a folder once as `.1`, and begin them anew.

    Services write on: what they print between the copy and the cut is lost.
    """
    for file in folder.glob("*.log"):
        if file.stat().st_size > LARGEST_LOG:
            shutil.copyfile(file, file.with_suffix(".log.1"))
            os.truncate(file, 0)
