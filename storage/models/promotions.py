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
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from storage.dataset.catalog import content_of
from storage.errors import Conflict, StorageError
from storage.stores.location import Location, storage_errors

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

# A retry would land after entries that were never read.
_ONCE = CommitProperties(max_commit_retries=0)


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
        self._location = location

    def read(self) -> History:
        """The history so far; empty, and made, where there is none yet."""
        self._create()
        table = self._table()
        with storage_errors(str(self._location)):
            rows = content_of(table, SCHEMA).sort_by("number").to_pylist()
        return History(table.version(), tuple(map(_entry, rows)))

    def append(self, entry: Entry, after: History) -> None:
        """Write one entry, if nothing was written since `after` was read; else raises Conflict."""
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
        table = self._table(after.version)
        try:
            write_deltalake(
                table,
                pa.Table.from_pylist([row], schema=SCHEMA),
                mode="append",
                commit_properties=_ONCE,
            )
        except CommitFailedError as error:
            raise Conflict(f"{self._location}: another promotion came first") from error
        except (OSError, DeltaError):
            with storage_errors(str(self._location)):
                raise

    def _create(self) -> None:
        with storage_errors(str(self._location)):
            if DeltaTable.is_deltatable(self._location.url, self._location.options):
                return
        try:
            with storage_errors(str(self._location)):
                self._location.store(create=True)
                DeltaTable.create(
                    self._location.url,
                    SCHEMA,
                    configuration={
                        "delta.appendOnly": "true",
                        "delta.enableExpiredLogCleanup": "false",
                    },
                    storage_options=self._location.options,
                    commit_properties=_ONCE,
                )
        except StorageError:
            # Two first promotions at once: one of them made it.
            if not DeltaTable.is_deltatable(self._location.url, self._location.options):
                raise

    def _table(self, version: int | None = None) -> DeltaTable:
        with storage_errors(str(self._location)):
            return DeltaTable(
                self._location.url, version=version, storage_options=self._location.options
            )


def _entry(row: dict[str, Any]) -> Entry:
    values = {name: value for name, value in row.items() if name != "number"} | {
        "time": datetime.fromisoformat(row["time"]),
        "details": json.loads(row["details"]),
    }
    return Entry(**values)
