"""Where derived series are written: a folder a series, there whole or not at all.

`DEST/<SeriesInstanceUID>/0001.dcm ...`, and beside it `<SeriesInstanceUID>.json`, which says what
it was made of. A draft has another name until every file was read back, and belongs to one process.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydicom.dataset import Dataset

from storage.dicom.headers import FileHeader
from storage.errors import StoreError
from storage.stores import files

SCHEMA = 2


class SeriesRecord(BaseModel):
    """What a derived series was made of, when, and how it went; `<SeriesInstanceUID>.json`.

    Attributes:
        series: SeriesInstanceUID of the derived series.
        source: digest of the source's files.
        source_path: a folder, zip or file that holds them.
        begun: when its restoration began first, which a restoration that was killed keeps.
        compression: as in `storage.dicom.derived.SYNTAXES`; None: none.
        software: version of the code.
        precision: in which the model computed; a restoration that was killed keeps it, too.
        instances: how many there are; 0 while they are not.
        seconds: that it took.
        warnings: why it lies outside of what the model was trained on.
        unjudged: what of that is not known.
        quarantined: why it must not be used; empty if it may. `code` says of which kind that is,
            `limits` what it was judged by.
        measured: of the source and of what was removed, as `flows/compute/restoration.py` has it.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: int = Field(SCHEMA, alias="schema")
    series: str
    source: str
    source_series: str
    source_path: str
    model: str
    identity: str
    options: str
    compression: str | None = None
    software: str
    precision: Literal["float32", "mixed"] = "float32"
    begun: datetime
    instances: int = 0
    seconds: float = 0.0
    warnings: list[str] = []
    unjudged: list[str] = []
    quarantined: list[str] = []
    code: str = ""
    limits: str = ""
    measured: dict[str, Any] = {}
    lineage: dict[str, Any] = {}

    def text(self) -> bytes:
        """As it stands in a file."""
        return self.model_dump_json(by_alias=True, indent=1).encode()

    @classmethod
    def read(cls, file: Path) -> "SeriesRecord | None":
        """What a file holds; None where there is none, or none of this schema."""
        try:
            record = cls.model_validate_json(file.read_text("utf-8"))
        except (OSError, ValidationError, ValueError):
            return None
        return record if record.schema_ == SCHEMA else None


def source_digest(root: Path, headers: Iterable[FileHeader]) -> str:
    """Digest of a series' files by their content, whatever their names, order and times."""
    digests = []
    for header in headers:
        with (root / header.path).open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


class Destination:
    """The place of one derived series below a destination folder."""

    def __init__(self, folder: Path, uid: str) -> None:
        self.final = folder / uid
        self._record = folder / f"{uid}.json"
        self._draft = folder / f"{uid}.draft"
        self._former = folder / f"{uid}.former.draft"

    def record(self) -> SeriesRecord | None:
        """What is known of the series; None where nothing is, or nothing that can be read."""
        return SeriesRecord.read(self._record)

    def is_done(self, source: str, compression: str | None) -> bool:
        """Whether the series is there, made of this source and compressed so."""
        record = self.record()
        return (
            record is not None
            and (record.source, record.compression) == (source, compression)
            and record.instances > 0
            and self.final.is_dir()
            and len(list(self.final.glob("*.dcm"))) == record.instances
        )

    def quarantined(self, source: str, limits: str) -> SeriesRecord | None:
        """Why the series, made of this source and judged by these limits, must not be used."""
        record = self.record()
        if record is None or not record.quarantined:
            return None
        return record if (record.source, record.limits) == (source, limits) else None

    @contextmanager
    def begin(self, record: SeriesRecord) -> Iterator[SeriesRecord]:
        """Note that the restoration begins, and keep every other process out of it meanwhile.

        Yields the record with the time and precision of the first attempt, if that was killed, so
        that the same bytes come out. A draft that is not finished is removed.

        Raises:
            StoreError: another process restores this series into this folder.
        """
        before = self.record()
        if before is not None and before.source == record.source:
            kept = {"begun": before.begun, "precision": before.precision}
            record = record.model_copy(update=kept)
        with self._own_draft():
            files.write(self._record, record.text())
            try:
                yield record
            finally:
                shutil.rmtree(self._draft, ignore_errors=True)

    @contextmanager
    def _own_draft(self) -> Iterator[None]:
        """An empty draft that is locked; the lock goes with the process, however it ends."""
        self._draft.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._draft, os.O_RDONLY)
        try:
            if not self._locked(descriptor):
                raise StoreError(
                    f"{self.final}: another process restores this series now; wait for it, or "
                    "choose another destination"
                )
            for stale in (
                *self._draft.iterdir(),
                *self._record.parent.glob(f"{self._record.name}.*"),
            ):
                stale.unlink()
            shutil.rmtree(self._former, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)

    def _locked(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held the lock may have given the draft its name before letting go.
            return os.path.samestat(os.fstat(descriptor), self._draft.stat())
        except OSError:
            return False

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
        """Give the draft its name, and note that it is done.

        Raises:
            StoreError: the draft does not hold as many instances as the record says.
        """
        found = len(list(self._draft.iterdir()))
        if found != record.instances:
            raise StoreError(
                f"{self._draft} holds {found} instances, expected {record.instances}: run again"
            )
        files.sync([self._draft])
        self._set_aside()
        self._draft.rename(self.final)
        files.sync([self.final.parent])
        files.write(self._record, record.text())
        shutil.rmtree(self._former, ignore_errors=True)

    def quarantine(self, record: SeriesRecord) -> None:
        """Keep nothing of a series that must not be used, but why."""
        self._set_aside()
        files.write(self._record, record.text())
        shutil.rmtree(self._former, ignore_errors=True)

    def _set_aside(self) -> None:
        """Take the name from a former series at once: no kill leaves a part of it there."""
        if self.final.exists():
            self.final.rename(self._former)
