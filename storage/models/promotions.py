"""The append-only history of promotions: who was judged, against whom, and with what outcome.

A Delta table beside the catalog. An entry is appended compare-and-swap from the entries that were
read, so of two promotions at once one is written and the other must judge again, against a new
champion. The registry's alias follows the history, never the other way round.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from storage.stores.delta import Table
from storage.stores.location import Location

SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("time", pa.string()),
        ("action", pa.string()),
        ("candidate", pa.int64()),
        ("champion", pa.int64()),
        ("passed", pa.bool_()),
        ("commit", pa.int64()),
        ("details", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One judgement.

    action: "promote" or "rollback". candidate: the version judged. champion: the champion until
    then, if there was one. passed: whether the candidate is champion from here on.
    commit: of the dataset, that the judgement was made on. details: the verdict.
    """

    action: str
    candidate: int
    champion: int | None
    passed: bool
    commit: int | None
    details: dict[str, Any]
    time: datetime | None = None


@dataclass(frozen=True)
class History:
    """The entries at one moment, oldest first."""

    version: int
    entries: tuple[Entry, ...]

    @property
    def last_pass(self) -> Entry | None:
        """The entry that made the present champion; None before the first."""
        return next((entry for entry in reversed(self.entries) if entry.passed), None)

    @property
    def succession(self) -> list[int]:
        """The champions that a rollback can go back along, the present one last."""
        line: list[int] = []
        for entry in self.entries:
            if entry.action == "rollback":
                line.pop()
                # Champions that were deleted since are passed over.
                while line[-1] != entry.candidate:
                    line.pop()
            elif entry.passed:
                line.append(entry.candidate)
        return line


class Promotions:
    """The history at a location."""

    def __init__(self, location: Location) -> None:
        self._table = Table(location)

    def read(self) -> History:
        """The history so far; empty, and made, where there is none yet."""
        self._table.create(SCHEMA, {}, append_only=True)
        version = self._table.read()
        rows = sorted(version.content.to_pylist(), key=lambda row: row["number"])
        return History(version.number, tuple(map(_entry, rows)))

    def append(self, entry: Entry, after: History) -> None:
        """Write one entry, if nothing was written since `after` was read.

        Raises:
            Conflict: another entry came first.
        """
        row = {
            "number": after.version + 1,
            "time": datetime.now(UTC).isoformat(),
            "action": entry.action,
            "candidate": entry.candidate,
            "champion": entry.champion,
            "passed": entry.passed,
            "commit": entry.commit,
            "details": json.dumps(entry.details, sort_keys=True),
        }
        content = pa.Table.from_pylist([row], schema=SCHEMA)
        self._table.write(content, "append", after=after.version, note={})


def _entry(row: dict[str, Any]) -> Entry:
    values = {name: value for name, value in row.items() if name != "number"} | {
        "time": datetime.fromisoformat(row["time"]),
        "details": json.loads(row["details"]),
    }
    return Entry(**values)
