"""Where derived series are written: a folder a series, there whole or not at all.

`DEST/<SeriesInstanceUID>/0001.dcm ...`, and beside it `<SeriesInstanceUID>.json`, which says what
it was made of. A draft has another name until every file was read back.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydicom.dataset import Dataset

from storage.dicom.headers import FileHeader
from storage.errors import StoreError
from storage.stores import files

SCHEMA = 1


class SeriesRecord(BaseModel):
    """What a derived series was made of, when, and how it went; `<SeriesInstanceUID>.json`.

    Attributes:
        source: digest of the source's files.
        begun: when its restoration began first, which a restoration that was killed keeps.
        instances: how many there are; 0 while they are not.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: int = Field(SCHEMA, alias="schema")
    source: str
    source_series: str
    source_folder: str
    model: str
    identity: str
    options: str
    begun: datetime
    instances: int = 0
    seconds: float = 0.0
    warnings: list[str] = []
    quarantined: list[str] = []
    lineage: dict[str, Any] = {}


def source_digest(headers: Iterable[FileHeader]) -> str:
    """Digest of a series' files by what their headers and the disk say; no pixel is read."""
    known = sorted((h.instance, h.size, h.mtime_ns) for h in headers)
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


class Destination:
    """The place of one derived series below a destination folder."""

    def __init__(self, folder: Path, uid: str) -> None:
        self.final = folder / uid
        self._record = folder / f"{uid}.json"
        self._draft = folder / f"{uid}.draft"

    def record(self) -> SeriesRecord | None:
        """What is known of the series; None where nothing is, or nothing that can be read."""
        try:
            record = SeriesRecord.model_validate_json(self._record.read_text("utf-8"))
        except (OSError, ValidationError, ValueError):
            return None
        return record if record.schema_ == SCHEMA else None

    def is_done(self, source: str) -> bool:
        """Whether the series is there, made of this source."""
        record = self.record()
        return (
            record is not None
            and record.source == source
            and record.instances > 0
            and self.final.is_dir()
            and len(list(self.final.iterdir())) == record.instances
        )

    def begin(self, record: SeriesRecord) -> SeriesRecord:
        """Note that the restoration begins; one that was killed keeps its time."""
        before = self.record()
        if before is not None and before.source == record.source:
            record = record.model_copy(update={"begun": before.begun})
        files.write(self._record, _text(record))
        shutil.rmtree(self._draft, ignore_errors=True)
        self._draft.mkdir(parents=True)
        return record

    def put(self, number: int, image: Dataset, values: NDArray[np.integer]) -> None:
        """Write one instance into the draft and read it back.

        Raises:
            StoreError: what was read back is not what was written.
        """
        file = self._draft / f"{number:04d}.dcm"
        image.save_as(file, enforce_file_format=True)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        back = pydicom.dcmread(file)
        if back.SOPInstanceUID != image.SOPInstanceUID or not np.array_equal(
            back.pixel_array, values
        ):
            raise StoreError(f"{file} reads back otherwise than it was written: check the disk")

    def finish(self, record: SeriesRecord) -> None:
        """Give the draft its name, and note that it is done."""
        record = record.model_copy(update={"instances": len(list(self._draft.iterdir()))})
        files.sync([self._draft])
        shutil.rmtree(self.final, ignore_errors=True)
        self._draft.rename(self.final)
        files.sync([self.final.parent])
        files.write(self._record, _text(record))

    def quarantine(self, record: SeriesRecord) -> None:
        """Keep nothing of a series that must not be used, but why."""
        shutil.rmtree(self._draft, ignore_errors=True)
        files.write(self._record, _text(record))


def now() -> datetime:
    """The present time."""
    return datetime.now(UTC)


def _text(record: SeriesRecord) -> bytes:
    return record.model_dump_json(by_alias=True, indent=1).encode()
