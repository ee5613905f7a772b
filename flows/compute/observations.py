"""What a training run reports to MLflow, delivered when MLflow is there to take it.

Observation never ends a training: metrics and pictures are noted in the run's folder first, and a
thread sends them on. A server that does not answer is tried again, and said once. What is left at
the end stands in the folder, and the next attempt at the run sends it.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from storage.models.registry import Registry

logger = logging.getLogger("hqinet.observations")

SECONDS_BETWEEN = 3.0
"""Between two deliveries, each of which is a request or two."""
SECONDS_AFTER_FAILURE = 30.0
SECONDS_AT_END = 20.0
"""That the last delivery may take."""
_LINES_AT_ONCE = 1000


class Observations:
    """A run's reports, written down as they come and sent in their order.

    folder: of the run. connect: opens the registry, which may not be there yet.
    """

    def __init__(self, folder: Path, run: str, connect: Callable[[], Registry]) -> None:
        self._noted, self._sent = folder / "observed.jsonl", folder / "observed.sent"
        self._run, self._connect = run, connect
        self._registry: Registry | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._said = False

    def __enter__(self) -> Self:
        self._notes = self._noted.open("a", encoding="utf-8")
        if self._notes.tell():
            # A kill may have cut the last line off: what follows begins on one of its own.
            self._notes.write("\n")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._notes.close()
        self._stop.set()
        self._thread.join(SECONDS_AT_END)
        if any(self._waiting()):
            logger.warning(
                "not all that run %s reported has reached MLflow; `hqinet train --resume %s` "
                "sends the rest",
                self._run,
                self._run,
            )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note the metrics of a step."""
        self._note({"step": step, "metrics": dict(values)})

    def file(self, path: Path, folder: str = "") -> None:
        """Note a file that is to stand with the run."""
        self._note({"file": str(path), "folder": folder})

    def _note(self, entry: Mapping[str, Any]) -> None:
        self._notes.write(json.dumps(entry) + "\n")
        self._notes.flush()

    def _deliver(self) -> None:
        pause = SECONDS_BETWEEN
        while not self._stop.wait(pause):
            pause = SECONDS_BETWEEN if self._send() else SECONDS_AFTER_FAILURE
        self._send()

    def _send(self) -> bool:
        """Send what waits; return whether it arrived."""
        try:
            for entries, end in self._waiting():
                self._registry = self._registry or self._connect()
                _send(self._registry, self._run, entries)
                self._sent.write_text(str(end))
        except Exception as error:  # noqa: BLE001 - whatever a server, a disk or a network may raise
            self._registry = None
            if not self._said:
                said = " ".join(str(error).split())[:200]
                logger.warning("MLflow takes no reports, training goes on: %s", said)
            self._said = True
            return False
        if self._said:
            logger.warning("MLflow takes reports again")
        self._said = False
        return True

    def _waiting(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Yield what is yet to be sent, some lines at a time, and the offset behind them."""
        start = 0
        with suppress(OSError, ValueError):
            start = int(self._sent.read_text())
        with self._noted.open("rb") as notes:
            notes.seek(start)
            while True:
                lines = []
                for line in notes:
                    # The last line may be half written.
                    if line.endswith(b"\n"):
                        with suppress(ValueError):
                            lines.append(json.loads(line))
                        start += len(line)
                    if len(lines) == _LINES_AT_ONCE or not line.endswith(b"\n"):
                        break
                if not lines:
                    return
                yield lines, start
                notes.seek(start)


def _send(registry: Registry, run: str, entries: list[dict[str, Any]]) -> None:
    registry.log_metrics(
        run, [(entry["step"], entry["metrics"]) for entry in entries if "metrics" in entry]
    )
    for entry in entries:
        if "file" in entry and Path(entry["file"]).exists():
            registry.log_file(run, Path(entry["file"]), entry["folder"])
