"""What is remembered between two ingests; it may be lost at any time, and is then worked out again.

Each file on disk is a model with the number of its schema: one of another number is forgotten.
What is remembered holds no name, UID or path, only digests of them (keyed when pseudonymising).
"""

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import stat_result
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from storage.dataset import volumes
from storage.dataset.rows import Accepted, Refused
from storage.ingest.delivery import Delivery
from storage.ingest.pairing import Pair
from storage.ingest.records import Record
from storage.stores import files
from storage.stores.location import Location, storage_errors

_RECENT = timedelta(hours=12)


class RememberedRecords(BaseModel):
    """The records of one delivery, by the digest of their file's path."""

    schema_number: Literal[2] = 2
    records: dict[str, Record]


class RememberedConversion(BaseModel):
    """What became of one pair that was read."""

    schema_number: Literal[5] = 5
    row: Annotated[Accepted | Refused, Field(discriminator="status")]


class InventoryMemory:
    """Records of an earlier inventory of the same source under the same rules."""

    def __init__(self, delivery: Delivery) -> None:
        self._names = delivery.names
        key = json.dumps([str(delivery.root), delivery.rules.model_dump_json()])
        self._file = delivery.memory / f"{self._names.digest(f'inventory:{key}')}.json"
        self._known: dict[str, Record] = {}
        with suppress(OSError, ValidationError):
            content = self._file.read_bytes()
            self._known = RememberedRecords.model_validate_json(content).records
            # Garbage collection goes by when a file was last used.
            self._file.touch()

    def __len__(self) -> int:
        """Return how many records are remembered."""
        return len(self._known)

    def get(self, path: str, status: stat_result) -> Record | None:
        """What is remembered of a file, if it has not changed since."""
        record = self._known.get(self._names.digest(path))
        if record is None:
            return None
        header = record.header
        if (header.size, header.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return None
        return replace(record, header=replace(header, path=path))

    def save(self, records: Iterable[Record]) -> None:
        """Remember these records and no others."""
        known = {
            self._names.digest(record.path): replace(record, header=replace(record.header, path=""))
            for record in records
        }
        content = RememberedRecords.model_construct(records=known).model_dump_json()
        with storage_errors(str(self._file.parent)):
            files.write(self._file, content.encode())


class ConversionMemory:
    """Rows of pairs that were read, by fingerprint: a killed ingest goes on where it was."""

    def __init__(self, delivery: Delivery) -> None:
        self._folder = delivery.memory / "converted"

    def get(self, pair: Pair) -> Accepted | Refused | None:
        """The row of a pair that was read before; its volume may be gone."""
        file = self._file(pair.fingerprint)
        try:
            row = RememberedConversion.model_validate_json(file.read_bytes()).row
        except (OSError, ValidationError):
            return None
        return row if row.patient == pair.patient else None

    def recall(
        self, pair: Pair, location: Location, named: Collection[str]
    ) -> Accepted | Refused | None:
        """The row of a pair that was read before, if its volume lies whole at the location.

        Args:
            named: paths of the volumes that the latest commit names.
        """
        row = self.get(pair)
        if not isinstance(row, Accepted):
            return row
        # A volume without a commit is garbage one day: take none that is about to be collected.
        since = None if row.path in named else datetime.now(UTC) - _RECENT
        return row if volumes.is_whole(location, row, since) else None

    def remember(self, row: Accepted | Refused) -> None:
        """Keep the row of a pair, unless it must be read again next time."""
        if row.fingerprint:
            content = RememberedConversion.model_construct(row=row).model_dump_json()
            with storage_errors(str(self._folder)):
                files.write(self._file(row.fingerprint), content.encode())

    def _file(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint}.json"
