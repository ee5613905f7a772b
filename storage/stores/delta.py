"""One Delta Lake table: versions that are written compare-and-swap, and kept for ever.

Both the catalog of the dataset and the history of promotions are such a table. A version is
written from the version that was read: of two writers at once one gets `Conflict`, reads again
and decides again. Data lies on the disk before the log names it.
"""

import io
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, QueryBuilder
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from storage.errors import Conflict, StoreError
from storage.stores import files
from storage.stores.location import Location, storage_errors

_FOREVER = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
_NOTE = "hqinet"
"""What the log calls our own metadata of a version; JSON, for readers may retype nested values."""
_SCHEMA_NUMBER = "hqinet.schema"


@dataclass(frozen=True)
class Version:
    """One version of a table, as it was read.

    Attributes:
        identity: UUID of the table, made at its creation.
        schema: number of the schema that the version is written in.
    """

    number: int
    identity: str
    schema: int
    content: pa.Table


@dataclass(frozen=True)
class LogEntry:
    """What the log says of a version: when, by what operation, and our own note."""

    number: int
    milliseconds: int
    operation: str
    note: Mapping[str, Any]


def schema(columns: Mapping[str, pa.DataType], number: int) -> pa.Schema:
    """A schema that states its number: as metadata of the first column, which Delta keeps.

    The number stands in the table's metadata, so that each version says in which it is written.
    """
    (first, kind), *others = columns.items()
    stated = pa.field(first, kind, metadata={_SCHEMA_NUMBER: str(number)})
    return pa.schema([stated, *others])


class Table:
    """The Delta table at a location."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def exists(self) -> bool:
        """Whether there is a table here."""
        with storage_errors(str(self.location)):
            return DeltaTable.is_deltatable(self.location.url, self.location.options)

    def create(
        self, columns: pa.Schema, note: Mapping[str, Any], *, append_only: bool = False
    ) -> None:
        """Make the empty table, version 0, unless there is one."""
        if self.exists():
            return
        try:
            with storage_errors(str(self.location)):
                if not self.location.remote:
                    self.location.store(create=True)
                DeltaTable.create(
                    self.location.url,
                    columns,
                    configuration=_FOREVER | {"delta.appendOnly": str(append_only).lower()},
                    storage_options=self.location.options,
                    commit_properties=_properties(note),
                )
                self._sync_log(0)
        except StoreError:
            # Two first writers at once: one of them made it.
            if not self.exists():
                raise

    def latest(self) -> int:
        """The number of the latest version.

        Raises:
            FileNotFoundError: there is no table.
        """
        return self._open(None).version()

    def read(self, number: int | None = None, columns: Sequence[str] = ()) -> Version:
        """A version, the latest by default, with some columns or all.

        Raises:
            FileNotFoundError: there is no table.
            LookupError: there is no such version.
        """
        table = self._open(number)
        with storage_errors(str(self.location)):
            there = pa.schema(table.schema().to_arrow())
            stated = (there.field(0).metadata or {}).get(_SCHEMA_NUMBER.encode(), b"1")
            content = _content(table, columns or there.names)
            return Version(table.version(), table.metadata().id, int(stated), content)

    def write(
        self,
        content: pa.Table,
        mode: Literal["append", "overwrite"],
        *,
        after: int,
        note: Mapping[str, Any],
    ) -> int:
        """Write the version that follows `after`; returns its number.

        Args:
            mode: whether the rows are added to those of `after`, or replace them; the schema of
                the content becomes the table's in the latter case.

        Raises:
            Conflict: another version came after `after`.
            StoreError: the store does not take it; the last version is intact.
        """
        table = self._open(after)
        self.location.require_writable()
        with storage_errors(str(self.location)):
            added = self._write_data(content)
            try:
                table.create_write_transaction(
                    [added], mode, content.schema, commit_properties=_properties(note)
                )
            except CommitFailedError as error:
                raise Conflict(f"{self.location}: a commit after {after} came first") from error
            self._sync_log(after + 1)
        return after + 1

    def log(self) -> list[LogEntry]:
        """What the log says of all versions, newest first."""
        table = self._open(None)
        with storage_errors(str(self.location)):
            return [
                LogEntry(
                    entry["version"],
                    entry["timestamp"],
                    entry.get("operation", "unknown"),
                    json.loads(entry.get(_NOTE, "{}")),
                )
                for entry in table.history()
            ]

    def unneeded_files(self, hours: int) -> list[str]:
        """Files older than `hours` that no version needs: what a killed writer left.

        They are listed, not removed: the table's own vacuum would note itself as a version.
        """
        table = self._open(None)
        with storage_errors(str(self.location)):
            return table.vacuum(
                retention_hours=hours,
                dry_run=True,
                enforce_retention_duration=False,
                full=True,
                keep_versions=list(range(table.version() + 1)),
            )

    def _open(self, number: int | None) -> DeltaTable:
        try:
            return DeltaTable(
                self.location.url, version=number, storage_options=self.location.options
            )
        except TableNotFoundError as error:
            raise FileNotFoundError(str(self.location)) from error
        except (OSError, OverflowError, DeltaError) as error:
            if number is not None and not 0 <= number <= self._open(None).version():
                raise LookupError(number) from error
            with storage_errors(str(self.location)):
                raise

    def _write_data(self, content: pa.Table) -> AddAction:
        """Put the rows beside the log, which does not name them yet."""
        buffer = io.BytesIO()
        pq.write_table(content, buffer, compression="zstd")
        name, data = f"part-{uuid.uuid4()}.zstd.parquet", buffer.getvalue()
        if self.location.remote:
            obstore.put(self.location.store(), name, data)
        else:
            files.write(Path(self.location.url) / name, data)
        return AddAction(
            path=name,
            size=len(data),
            partition_values={},
            modification_time=time.time_ns() // 1_000_000,
            data_change=True,
            stats=json.dumps({"numRecords": content.num_rows}),
        )

    def _sync_log(self, number: int) -> None:
        if not self.location.remote:
            log = Path(self.location.url) / "_delta_log"
            files.sync([log / f"{number:020}.json", log, log.parent, log.parent.parent])


def _content(table: DeltaTable, names: Sequence[str]) -> pa.Table:
    """The rows, read by Delta's own engine.

    Arrow's reader threads may outlive a short command, and then abort it at its end.
    """
    query = QueryBuilder().register("rows", table)
    columns = ", ".join(f'"{name}"' for name in names)
    rows = query.execute(f"select {columns} from rows")  # noqa: S608 - our own names
    # `pa.table` would import pandas, to ask whether these are a frame.
    return pa.RecordBatchReader.from_stream(rows).read_all()


def _properties(note: Mapping[str, Any]) -> CommitProperties:
    # No retries: a retry would come after rows that were never read.
    return CommitProperties(
        custom_metadata={_NOTE: json.dumps(dict(note), sort_keys=True)}, max_commit_retries=0
    )
