"""The versioned dataset: commits of a catalog (Delta) that name volumes (Zarr).

>>> dataset = Dataset("hqinet-home/dataset")
>>> snapshot = dataset.snapshot()          # the latest commit, frozen
>>> [p.patient for p in snapshot.patients("train")]
>>> snapshot.volume("L067").full[10:13]    # int16 HU
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from storage.dataset import volumes
from storage.dataset.catalog import SCHEMA, Catalog, Commit, Row, rows_digest
from storage.dataset.splits import SPLITS
from storage.dataset.volumes import StoredPair
from storage.errors import Conflict, DatasetError
from storage.ingest.cohort import OTHER
from storage.provenance import code_version
from storage.stores.location import Location

_ATTEMPTS = 50


@dataclass(frozen=True)
class PatientRow:
    """An accepted patient of a commit.

    Attributes:
        matrix: (rows, columns).
        spacing: (z, y, x) in mm.
        dose_fraction: dose of the low series as a share of the full dose, where it is known.
        path: of the volume below the dataset's root.
        note: what ingestion did to the data (cropped, rounded, clipped, chosen); None if nothing.
    """

    patient: str
    cohort: str
    split: str
    slices: int
    matrix: tuple[int, int]
    spacing: tuple[float, float, float]
    anatomy: str
    dose_fraction: float | None
    vendor: str
    digest: str
    path: str
    note: str | None


@dataclass(frozen=True)
class Snapshot:
    """One commit of the dataset; nothing that happens later changes it.

    Attributes:
        parent: the commit it was decided from; None for the empty dataset.
        digest: SHA-256 of the accepted and refused rows.
        entries: all rows of the catalog, reserved splits too.
    """

    location: Location
    commit: int
    parent: int | None
    digest: str
    entries: tuple[Row, ...] = field(repr=False)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Accepted and refused rows, one column an attribute of `storage.dataset.catalog.Row`."""
        kept = [asdict(row) for row in self.entries if row.status != "reserved"]
        return pd.DataFrame(kept, columns=SCHEMA.names)

    def patients(self, split: str | None = None) -> list[PatientRow]:
        """The accepted patients, of one split or of all, sorted by patient.

        Raises:
            DatasetError: no such split.
        """
        if split is not None and split not in SPLITS:
            raise DatasetError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")
        chosen = (row for row in self._accepted.values() if split in (None, row.split))
        return sorted(map(_patient_row, chosen), key=lambda row: row.patient)

    def volume(self, patient: str) -> StoredPair:
        """The pair of a patient, read lazily.

        Raises:
            DatasetError: the patient is not accepted in this commit, or the volume is lost.
        """
        if patient not in self._accepted:
            raise DatasetError(
                f"patient {patient!r} is not in commit {self.commit}; "
                "`hqinet dataset show` lists who is"
            )
        return volumes.open_volume(self.location, self._accepted[patient].path or "", patient)

    @cached_property
    def _accepted(self) -> dict[str, Row]:
        return {row.patient or "": row for row in self.entries if row.status == "accepted"}


class Dataset:
    """The dataset at a folder or object-store URL.

    Args:
        url: a path, or `s3://bucket/prefix`, `gs://...`, `az://...`.
        options: of the object store; see `storage.stores.location.Location`.
    """

    def __init__(self, url: str | Path, options: Mapping[str, str] | None = None) -> None:
        self.location = Location(url, options)
        self.catalog = Catalog(self.location.child("catalog"))

    def create(self) -> None:
        """Make the empty dataset, commit 0, unless there is one here."""
        self.catalog.create({"action": "create", "parent": None, "code_version": code_version()})

    def snapshot(self, commit: int | None = None) -> Snapshot:
        """A commit, the latest by default.

        Raises:
            DatasetError: there is no dataset here, or no such commit.
        """
        return self._snapshot(*self.catalog.read(commit))

    def _snapshot(self, commit: int, rows: Sequence[Row]) -> Snapshot:
        rows = tuple(sorted(rows, key=lambda row: (row.key, row.cohort)))
        parent = commit - 1 if commit else None
        return Snapshot(self.location, commit, parent, rows_digest(rows), rows)

    def log(self) -> list[Commit]:
        """All commits, newest first."""
        return self.catalog.history()

    def commit(
        self,
        decide: Callable[[Snapshot], Sequence[Row] | None],
        *,
        action: str,
        cohort: str | None = None,
        details: Callable[[], Mapping[str, Any]] = dict,
    ) -> Snapshot:
        """Commit what `decide` makes of the latest rows; nothing, if it returns None.

        When another writer commits first, `decide` is asked again with the newer rows.

        Args:
            decide: all rows of the new commit, from the snapshot of the latest one.
            details: asked after each decision: what else to note in the log.

        Raises:
            StorageError: the store cannot be written; the last commit is intact.
        """
        for attempt in range(_ATTEMPTS):
            current = self.snapshot()
            rows = decide(current)
            if rows is None:
                return current
            metadata = {
                "action": action,
                "cohort": cohort,
                "parent": current.commit,
                "counts": counts(rows),
                "code_version": code_version(),
                "details": dict(details()),
            }
            try:
                number = self.catalog.commit(rows, parent=current.commit, metadata=metadata)
            except Conflict:
                # Many writers at once must not meet again at the same moment.
                time.sleep(random.uniform(0, 0.05 * min(attempt + 1, 20)))  # noqa: S311
                continue
            return self._snapshot(number, rows)
        raise Conflict(
            f"{self.location}: {_ATTEMPTS} commits of others came first; run again when it is quiet"
        )


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Accepted and refused rows, and accepted patients of each split."""
    of_status = Counter(row.status for row in rows)
    of_split = Counter(row.split for row in rows if row.status == "accepted")
    return {
        "accepted": of_status["accepted"],
        "refused": of_status["refused"],
        **{split: of_split[split] for split in SPLITS},
    }


def _patient_row(row: Row) -> PatientRow:
    return PatientRow(
        patient=row.patient or "",
        cohort=row.cohort,
        split=row.split or "",
        slices=row.slices or 0,
        matrix=(row.rows or 0, row.columns or 0),
        spacing=(row.spacing_z or 0.0, row.spacing_y or 0.0, row.spacing_x or 0.0),
        anatomy=row.anatomy or "unknown",
        dose_fraction=row.dose_fraction,
        vendor=row.vendor or OTHER,
        digest=row.digest or "",
        path=row.path or "",
        note=row.note,
    )
