"""The catalog: a Delta Lake table whose versions are the commits of the dataset.

A commit replaces the whole set of rows, compare-and-swap from the version that was read: who
decided on older rows gets `Conflict`, reads again and decides again. History is kept for ever.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from storage.errors import Conflict, DatasetError, StorageError
from storage.stores.location import Location, storage_errors

Status = Literal["accepted", "refused", "reserved"]

_FOREVER = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
_METADATA = "hqinet"
# Of the delivery, not of the data: another copy of the same files changes them and nothing else.
_NOT_IN_DIGEST = ("fingerprint", "studies")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the catalog: a pair, a refused patient, series or folder, or a reserved split.

    Attributes:
        key: what the row is about: `patient:...` (accepted or reserved, one a patient), or, one
            a cohort, `refused:...` (a patient), `series:...` or `file:...`.
        status: `accepted`; `refused` with code and reason; `reserved`, a patient without data in
            this commit whose split is remembered (rolled back, or fixed by hand beforehand).
        source, files: folder or file below the delivery, and the files that show what is wrong
            (hashed when pseudonymising).
        spacing_z, spacing_y, spacing_x: mm.
        note: what ingestion did to the data that the reader should know (cropped, clipped).
        fingerprint: of the files and the rules it was decided from.
        pixels, sketch: see `storage.dataset.volumes.Written`.
        studies: digests of the UIDs of studies and frames of reference, and of the folder they
            were read from: what shows that a changed volume is of the same person.
    """

    key: str
    cohort: str
    status: Status
    patient: str | None = None
    split: str | None = None
    code: str | None = None
    reason: str | None = None
    source: str | None = None
    files: tuple[str, ...] = ()
    path: str | None = None
    digest: str | None = None
    slices: int | None = None
    rows: int | None = None
    columns: int | None = None
    spacing_z: float | None = None
    spacing_y: float | None = None
    spacing_x: float | None = None
    anatomy: str | None = None
    dose_fraction: float | None = None
    vendor: str | None = None
    kernel: str | None = None
    note: str | None = None
    fingerprint: str | None = None
    pixels: str | None = None
    sketch: str = ""
    studies: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """What a refusal is of; a series without patient and role, for mending changes both."""
        if not self.key.startswith("series:"):
            return self.key
        _, series, _ = self.key.rsplit(":", 2)
        return f"series:{series}"


_LISTS = ("files", "studies")
_TYPES = {"int | None": pa.int64(), "float | None": pa.float64()}
SCHEMA = pa.schema(
    [
        (f.name, pa.list_(pa.string()) if f.name in _LISTS else pa.string())
        if str(f.type) not in _TYPES
        else (f.name, _TYPES[str(f.type)])
        for f in fields(Row)
    ]
)


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


def rows_digest(rows: Iterable[Row]) -> str:
    """SHA-256 of the rows that are data (accepted and refused), whatever their order."""
    lines = (json.dumps(_data(row)) for row in rows if row.status != "reserved")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


_data = attrgetter(*(name for name in SCHEMA.names if name not in _NOT_IN_DIGEST))


class Catalog:
    """The Delta table at a location."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def create(self, metadata: Mapping[str, Any]) -> None:
        """Make the empty table, commit 0, unless there is one."""
        if self.exists():
            return
        try:
            with storage_errors(str(self.location)):
                if not self.location.remote:
                    self.location.store(create=True)
                DeltaTable.create(
                    self.location.url,
                    SCHEMA,
                    configuration=_FOREVER,
                    storage_options=self.location.options,
                    commit_properties=_properties(metadata),
                )
        except StorageError:
            # Two first ingests at once: one of them made it.
            if not self.exists():
                raise

    def exists(self) -> bool:
        """Whether there is a table here."""
        with storage_errors(str(self.location)):
            return DeltaTable.is_deltatable(self.location.url, self.location.options)

    def read(self, commit: int | None = None) -> tuple[int, list[Row]]:
        """The number of a commit (the latest by default) and its rows.

        Raises:
            DatasetError: no dataset here, or no such commit.
        """
        table = self._table(commit)
        with storage_errors(str(self.location)):
            content = content_of(table, SCHEMA)
        columns = [column.to_pylist() for column in content.columns]
        for index, name in enumerate(SCHEMA.names):
            if name in _LISTS:
                columns[index] = [tuple(value or ()) for value in columns[index]]
        rows = (
            Row(**dict(zip(SCHEMA.names, values, strict=True)))
            for values in zip(*columns, strict=True)
        )
        return table.version(), sorted(rows, key=lambda r: (r.key, r.cohort))

    def commit(self, rows: Iterable[Row], *, parent: int, metadata: Mapping[str, Any]) -> int:
        """Replace all rows, if `parent` is still the latest commit; return the new number.

        Raises:
            Conflict: another commit came after `parent`.
        """
        table = self._table(parent)
        rows = list(rows)
        columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
        content = pa.Table.from_pydict(columns, schema=SCHEMA)
        # Delta's writer would print a trace of its own beside the error.
        self.location.require_writable()
        try:
            write_deltalake(
                table,
                content,
                mode="overwrite",
                commit_properties=_properties(metadata),
            )
        except CommitFailedError as error:
            raise Conflict(f"{self.location}: a commit after {parent} came first") from error
        except (OSError, DeltaError):
            with storage_errors(str(self.location)):
                raise
        return parent + 1

    def history(self) -> list[Commit]:
        """All commits, newest first."""
        table = self._table(None)
        with storage_errors(str(self.location)):
            return [_commit(entry) for entry in table.history()]

    def values_ever(self, name: str) -> set[str]:
        """All values that a column ever had, in any commit."""
        values: set[str] = set()
        for commit in range(self._table(None).version() + 1):
            with storage_errors(str(self.location)):
                column = content_of(self._table(commit), pa.schema([SCHEMA.field(name)])).column(
                    name
                )
            values.update(v for v in column.to_pylist() if v is not None)
        return values

    def unneeded_files(self, hours: int) -> list[str]:
        """Files older than `hours` that no commit needs: what a killed writer left.

        They are listed, not removed: the table's own vacuum would note itself as a version.
        """
        table = self._table(None)
        with storage_errors(str(self.location)):
            return table.vacuum(
                retention_hours=hours,
                dry_run=True,
                enforce_retention_duration=False,
                full=True,
                keep_versions=list(range(table.version() + 1)),
            )

    def _table(self, commit: int | None) -> DeltaTable:
        try:
            return DeltaTable(
                self.location.url, version=commit, storage_options=self.location.options
            )
        except TableNotFoundError as error:
            root = self.location.url.removesuffix("/catalog")
            raise DatasetError(
                f"there is no dataset at {root}: make one with `hqinet ingest SOURCE`"
            ) from error
        except (OSError, OverflowError, DeltaError) as error:
            if commit is not None:
                latest = self._table(None).version()
                if not 0 <= commit <= latest:
                    raise DatasetError(
                        f"there is no commit {commit} at {self.location}: it has 0 to {latest}"
                    ) from error
            with storage_errors(str(self.location)):
                raise


def content_of(table: DeltaTable, schema: pa.Schema) -> pa.Table:
    """The rows of a Delta table, read by Delta's own engine.

    Arrow's reader threads may outlive a short command, and then abort it at its end.
    """
    query = QueryBuilder().register("rows", table)
    names = ", ".join(f'"{name}"' for name in schema.names)
    rows = query.execute(f"select {names} from rows").read_all()  # noqa: S608 - our own names
    return pa.table(rows).cast(schema)


def _properties(metadata: Mapping[str, Any]) -> CommitProperties:
    # A string: Delta readers may reorder or retype nested values. No retries: a retry would
    # replace rows that were never read.
    return CommitProperties(
        custom_metadata={_METADATA: json.dumps(dict(metadata), sort_keys=True)},
        max_commit_retries=0,
    )


def _commit(entry: Mapping[str, Any]) -> Commit:
    noted = json.loads(entry.get(_METADATA, "{}"))
    return Commit(
        commit=entry["version"],
        parent=noted.get("parent"),
        time=datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
        action=noted.get("action", entry.get("operation", "unknown").lower()),
        cohort=noted.get("cohort"),
        counts=noted.get("counts", {}),
        code_version=noted.get("code_version"),
        details=noted.get("details", {}),
    )
