"""Every derived series that this home has made, and where it was written: what a recall needs.

One file a series and place, so that no writer waits for another and no kill loses an entry.
"""

import hashlib
from glob import escape
from pathlib import Path

from pydantic import BaseModel, ValidationError

from storage.dicom.archive import SeriesRecord
from storage.errors import StoreError
from storage.stores import files


class Entry(BaseModel):
    """A derived series, and the folder that it was given."""

    record: SeriesRecord
    folder: str


class SeriesIndex:
    """The entries below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, record: SeriesRecord, folder: Path) -> None:
        """Keep an entry, before the series has its name: what is there is always listed."""
        place = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        entry = Entry(record=record, folder=str(folder))
        files.write(
            self._folder / f"{record.series}-{place}.json",
            entry.model_dump_json(by_alias=True).encode(),
        )

    def uids(self) -> frozenset[str]:
        """SeriesInstanceUIDs of all that was made here."""
        return frozenset(file.name.partition("-")[0] for file in self._folder.glob("*.json"))

    def lists(self, series: str) -> bool:
        """Whether a series of this SeriesInstanceUID was made here."""
        return any(self._folder.glob(f"{escape(series)}-*.json"))

    def entries(self) -> list[Entry]:
        """All of them, by the time at which each restoration began.

        Raises:
            StoreError: an entry cannot be read: a list that lacks one is no list.
        """
        found = []
        for file in self._folder.glob("*.json"):
            try:
                found.append(Entry.model_validate_json(file.read_text("utf-8")))
            except (ValidationError, ValueError) as error:
                raise StoreError(
                    f"{file}: is no entry of a derived series: restore it from a backup, or "
                    "remove it and know that the list lacks one"
                ) from error
        return sorted(found, key=lambda entry: (entry.record.begun, entry.folder))
