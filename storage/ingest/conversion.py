"""A pair -> a volume in the store, as a row to be committed; the unit of work of a cluster."""

import json
import os
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from storage.dataset import volumes
from storage.dataset.catalog import Row
from storage.dicom.pixels import SliceReader
from storage.dicom.series import Series
from storage.ingest.pairing import Pair, Refusal
from storage.ingest.pseudonyms import Pseudonyms
from storage.refusals import Code, Refused
from storage.stores.location import Location, storage_errors

_RECENT = timedelta(hours=12)


@dataclass(frozen=True)
class Conversion:
    """Reads pairs of one delivery and writes them as volumes; picklable, for a cluster.

    Attributes:
        root: of the delivery.
        location: of the dataset.
        scratch: folder on a local disk of the worker for volumes under construction.
    """

    root: Path
    location: Location
    scratch: Path
    cohort: str
    names: Pseudonyms

    def __call__(self, pair: Pair) -> Row:
        """Convert one pair; the row is accepted, without split, or refused.

        Raises:
            StorageError: scratch or store cannot be written.
            OSError, MemoryError: the source's disk or the memory failed; another try may do.
        """
        try:
            return self._convert(pair)
        except Refused as refused:
            return refused_row(
                Refusal(
                    f"refused:{pair.patient}",
                    pair.patient,
                    refused.code,
                    refused.reason,
                    pair.source,
                    tuple(map(self.names.path, refused.files)),
                ),
                self.cohort,
                pair.fingerprint,
            )

    def _convert(self, pair: Pair) -> Row:
        low, full = SliceReader(self.root, pair.low), SliceReader(self.root, pair.full)
        shape = (len(pair.full.slices), pair.full.rows, pair.full.columns)
        written = volumes.write(
            self.location,
            self.scratch / f"{os.getpid()}-{uuid.uuid4().hex[:8]}",
            pair.patient,
            shape,
            describe(pair),
            {"low": low, "full": full},
        )
        if written.low_pixels == written.pixels:
            raise Refused(
                Code.IDENTICAL_DOSES,
                "low dose and full dose hold the same pixels; expected two different images",
                (pair.low.slices[0].path, pair.full.slices[0].path),
            )
        notes = [pair.note, *_notes("low", low, pair.low), *_notes("full", full, pair.full)]
        spacing = pair.full.spacing
        return Row(
            key=f"patient:{pair.patient}",
            cohort=self.cohort,
            status="accepted",
            patient=pair.patient,
            source=pair.source,
            path=written.path,
            digest=written.digest,
            slices=shape[0],
            rows=shape[1],
            columns=shape[2],
            spacing_z=spacing[0],
            spacing_y=spacing[1],
            spacing_x=spacing[2],
            anatomy=pair.anatomy,
            dose_fraction=pair.dose_fraction,
            vendor=pair.full.vendor,
            kernel=pair.full.kernel,
            note="; ".join(note for note in notes if note) or None,
            fingerprint=pair.fingerprint,
            pixels=written.pixels,
            sketch=written.sketch,
            studies=(*pair.studies, self._place(pair)),
        )

    def _place(self, pair: Pair) -> str:
        """Digest of the patient's folder: what replaces it there is of the same person."""
        return self.names.digest(f"place:{self.root / (pair.source or '')}:{pair.patient}")


def describe(pair: Pair) -> dict[str, object]:
    """The attributes of the volume's group: geometry in mm and words of fixed vocabularies."""
    return {
        "spacing": list(pair.full.spacing),
        "positions": [item.position for item in pair.full.slices],
        "orientation": list(pair.full.orientation),
        "origin": list(pair.full.origin),
        "anatomy": pair.anatomy,
        "dose_fraction": pair.dose_fraction,
        "vendor": pair.full.vendor,
        "kernel": {"low": pair.low.kernel, "full": pair.full.kernel},
        "unit": "HU",
    }


def _notes(dose: str, reader: SliceReader, series: Series) -> list[str]:
    notes = []
    # Taken as each slice says, for some scanners write it so; of others it is damage.
    if len({item.rescale for item in series.slices}) > 1:
        notes.append(f"{dose} dose: slices differ in rescale slope or intercept")
    if len({(item.stored.bits, item.stored.high) for item in series.slices}) > 1:
        notes.append(f"{dose} dose: slices differ in bits stored")
    if reader.rounded:
        notes.append(f"{dose} dose: HU rounded to whole numbers")
    if reader.padded:
        notes.append(f"{dose} dose: {reader.padded} pixels of padding set to air")
    if reader.clipped:
        notes.append(f"{dose} dose: {reader.clipped} pixels above 32767 HU set to 32767")
    return notes


def refused_row(refusal: Refusal, cohort: str, fingerprint: str | None = None) -> Row:
    """The row of a refusal.

    Args:
        fingerprint: of the pair, when pixels were read to know; it is not read again before
            something changes.
    """
    return Row(
        key=refusal.key,
        cohort=cohort,
        status="refused",
        patient=refusal.patient,
        code=str(refusal.code),
        reason=refusal.reason,
        source=refusal.source,
        files=refusal.files,
        fingerprint=fingerprint,
    )


class Memory:
    """Rows of conversions that are done, by fingerprint: a killed ingest goes on where it was.

    What is in here may be lost at any time; then a pair is simply read again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, pair: Pair) -> Row | None:
        """The row of a pair that was converted before; its volume may be gone."""
        try:
            values = json.loads((self._folder / f"{pair.fingerprint}.json").read_text("utf-8"))
            for name in ("files", "studies"):
                values[name] = tuple(values[name])
            row = Row(**values)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return row if row.patient == pair.patient else None

    def recall(self, pair: Pair, location: Location, named: Collection[str | None]) -> Row | None:
        """The row of a pair that was converted before, if its volume lies at the location.

        Args:
            named: paths of the volumes that the latest commit names.
        """
        row = self.get(pair)
        if row is None or row.path is None:
            return row
        # A volume without a commit is garbage one day: take none that is about to be collected.
        since = None if row.path in named else datetime.now(UTC) - _RECENT
        return row if volumes.is_complete(location, row.path, since) else None

    def remember(self, row: Row) -> None:
        """Keep the row of a conversion; whole or not at all."""
        with storage_errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f"{row.fingerprint}.{uuid.uuid4().hex}.draft"
            draft.write_text(json.dumps(asdict(row)), "utf-8")
            draft.replace(self._folder / f"{row.fingerprint}.json")
