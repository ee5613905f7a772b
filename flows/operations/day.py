"""The report of a day: as it stands in HOME/day.json, and as it is shown."""

from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from storage.stores import files

FILE = "day.json"


class DayReport(BaseModel):
    """What the last day brought.

    Attributes:
        restored: how many series were restored for use.
        seconds_a_slice: None where none was.
        refused: of the series that were not restored or not used, how many for which reason.
        bad_ends: runs that refused something or could not be done, one line each with the reason.
        unfinished: what the chain left lying, as where an event was lost; one line each.
        queue: a row a work pool, as `flows.operations.queue.look` has it.
        drift: what scanners send and the model was not trained on, one line each.
    """

    written: datetime
    hours: float
    restored: int
    seconds_a_slice: float | None
    bad_ends: list[str]
    refused: dict[str, int] = {}
    unfinished: list[str] = []
    queue: list[dict[str, Any]]
    free_gib: float
    drift: list[str]

    def write(self, home: Path) -> None:
        """Keep it in the home."""
        files.write(home / FILE, self.model_dump_json(indent=1).encode())

    @classmethod
    def read(cls, home: Path) -> "DayReport | None":
        """The latest report of a home; None where there is none."""
        try:
            return cls.model_validate_json((home / FILE).read_text())
        except FileNotFoundError:
            return None

    def markdown(self) -> str:
        """As Prefect's page shows it."""
        speed = "" if self.seconds_a_slice is None else f", {self.seconds_a_slice:g} s a slice"
        waiting = [
            f"{row['pool']}: {row['running']} running, {row['waiting']} waiting, {row['late']} "
            f"late, {row['workers']} workers"
            for row in self.queue
        ]
        refused = [f"{count} series: {code}" for code, count in self.refused.items()]
        first = (
            f"The {self.hours:g} hours before {self.written:%Y-%m-%d %H:%M} UTC: "
            f"{self.restored} series restored{speed}; {self.free_gib:g} GiB free."
        )
        return "\n".join(
            [
                first,
                *_listed("Series refused or quarantined", refused),
                *_listed("Runs that refused something or failed", self.bad_ends),
                *_listed("Left by the chain", self.unfinished),
                *_listed("Queue", waiting),
                *_listed("Drift", self.drift),
            ]
        )


def _listed(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", *[f"- {line}" for line in lines or ["nothing"]]]
