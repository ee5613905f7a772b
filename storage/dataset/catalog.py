"""The catalog: a Delta Lake table whose versions are the commits of the dataset.

A commit replaces the whole set of rows, compare-and-swap from the version that was read: who
decided on older rows gets `Conflict`, reads again and decides again. History is kept for ever.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from storage.dataset.rows import SCHEMA, Row, from_table, to_table
from storage.errors import DatasetError
from storage.stores.delta import LogEntry, Table
from storage.stores.location import Location


@dataclass(frozen=True)
class Commit:
    """One entry of the log.

    Attributes:
        parent: the commit whose rows it was decided from; None for the empty dataset.
        action: create, ingest, rollback or splits.
        counts: accepted, refused and per-split patients after the commit.
        details: what the action noted (parameters, changed patients).
    """

    commit: int
    parent: int | None
    time: datetime
    action: str
    cohort: str | None
    counts: Mapping[str, int]
    code_version: str | None
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """What a commit holds.

    Attributes:
        identity: UUID of the dataset, made with its first commit.
    """

    commit: int
    identity: str
    rows: tuple[Row, ...]


class Catalog:
    """The table at a location."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._table = Table(location)

    def create(self, metadata: Mapping[str, Any]) -> None:
        """Make the empty table, commit 0, unless there is one."""
        self._table.create(SCHEMA, metadata)

    def exists(self) -> bool:
        """Whether there is a table here."""
        return self._table.exists()

    def read(self, commit: int | None = None) -> Content:
        """A commit, the latest by default.

        Raises:
            DatasetError: no dataset here, or no such commit, or one of a later schema.
        """
        with self._errors(commit):
            version = self._table.read(commit)
        rows = tuple(from_table(version.content, version.schema))
        return Content(version.number, version.identity, rows)

    def commit(self, rows: Sequence[Row], *, parent: int, metadata: Mapping[str, Any]) -> int:
        """Replace all rows, if `parent` is still the latest commit; return the new number.

        Raises:
            Conflict: another commit came after `parent`.
        """
        return self._table.write(to_table(rows), "overwrite", after=parent, note=metadata)

    def history(self) -> list[Commit]:
        """All commits, newest first."""
        with self._errors():
            return [_commit(entry) for entry in self._table.log()]

    def paths_ever(self) -> set[str]:
        """The paths of all volumes that any commit ever named."""
        paths: set[str] = set()
        with self._errors():
            for commit in range(self._table.latest() + 1):
                content = self._table.read(commit, ["path"]).content
                paths.update(content.column("path").to_pylist())
        return paths - {None}

    def unneeded_files(self, hours: int) -> list[str]:
        """Files older than `hours` that no commit needs: what a killed writer left."""
        with self._errors():
            return self._table.unneeded_files(hours)

    @contextmanager
    def _errors(self, commit: int | None = None) -> Iterator[None]:
        """Explain a missing table or version in terms of the dataset."""
        try:
            yield
        except FileNotFoundError as error:
            root = self.location.url.removesuffix("/catalog")
            raise DatasetError(
                f"there is no dataset at {root}: make one with `hqinet ingest SOURCE`"
            ) from error
        except LookupError as error:
            raise DatasetError(
                f"there is no commit {commit} at {self.location}: it has 0 to "
                f"{self._table.latest()}"
            ) from error


def _commit(entry: LogEntry) -> Commit:
    note = entry.note
    return Commit(
        commit=entry.number,
        parent=note.get("parent"),
        time=datetime.fromtimestamp(entry.milliseconds / 1000, UTC),
        action=note.get("action", entry.operation.lower()),
        cohort=note.get("cohort"),
        counts=note.get("counts", {}),
        code_version=note.get("code_version"),
        details=note.get("details", {}),
    )
