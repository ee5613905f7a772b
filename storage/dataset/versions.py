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
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from storage.dataset import volumes
from storage.dataset.catalog import Catalog, Commit
from storage.dataset.rows import Accepted, Refused, Reserved, Row, order, rows_digest
from storage.dataset.splits import SPLITS, Split
from storage.dataset.volumes import StoredPair
from storage.errors import Conflict, DatasetError
from storage.provenance import code_version
from storage.stores.location import Location

_ATTEMPTS = 50


@dataclass(frozen=True)
class Snapshot:
    """One commit of the dataset; nothing that happens later changes it.

    Attributes:
        identity: UUID of the dataset; a copy of it has the same.
        parent: the commit it was decided from; None for the empty dataset.
        rows: all of them, sorted; reserved splits too.
    """

    location: Location
    identity: str
    commit: int
    parent: int | None
    rows: tuple[Row, ...] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the accepted and refused rows."""
        return rows_digest(self.rows)

    def patients(self, split: str | None = None) -> list[Accepted]:
        """The accepted patients, of one split or of all, sorted by patient.

        Raises:
            DatasetError: no such split.
        """
        if split is not None and split not in SPLITS:
            raise DatasetError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")
        return [row for row in self._accepted.values() if split in (None, row.split)]

    @property
    def refused(self) -> list[Refused]:
        """The refusals that stand."""
        return [row for row in self.rows if isinstance(row, Refused)]

    @property
    def cohorts(self) -> list[str]:
        """The names of the deliveries that accepted and refused rows came with, sorted."""
        return sorted({row.cohort for row in self.rows if not isinstance(row, Reserved)})

    @property
    def splits(self) -> dict[str, Split]:
        """The split of every patient who has one, reserved ones too."""
        placed = (row for row in self.rows if not isinstance(row, Refused))
        return {row.patient: row.split for row in placed if row.split}

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
        return volumes.open_volume(self.location, self._accepted[patient])

    @cached_property
    def _accepted(self) -> dict[str, Accepted]:
        accepted = (row for row in self.rows if isinstance(row, Accepted))
        return {row.patient: row for row in sorted(accepted, key=attrgetter("patient"))}


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
        content = self.catalog.read(commit)
        return self._snapshot(content.identity, content.commit, content.rows)

    @property
    def identity(self) -> str:
        """UUID of the dataset, made with it; models and evaluations belong to one dataset.

        Raises:
            DatasetError: there is no dataset here.
        """
        return self.catalog.read(0).identity

    def _snapshot(self, identity: str, commit: int, rows: Sequence[Row]) -> Snapshot:
        rows = tuple(sorted(rows, key=order))
        parent = commit - 1 if commit else None
        return Snapshot(self.location, identity, commit, parent, rows)

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
            return self._snapshot(current.identity, number, rows)
        raise Conflict(
            f"{self.location}: {_ATTEMPTS} commits of others came first; run again when it is quiet"
        )


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Accepted and refused rows, and accepted patients of each split."""
    accepted = [row for row in rows if isinstance(row, Accepted)]
    of_split = Counter(row.split for row in accepted)
    return {
        "accepted": len(accepted),
        "refused": sum(isinstance(row, Refused) for row in rows),
        **{split: of_split[split] for split in SPLITS},
    }
