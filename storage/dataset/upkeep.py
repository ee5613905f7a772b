"""Looking after a dataset for years: compare, verify, roll back, collect garbage, fix splits."""

import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore

from storage.dataset import splits, volumes
from storage.dataset.catalog import Row
from storage.dataset.versions import Dataset, Snapshot
from storage.errors import DatasetError, StorageError
from storage.stores.location import Location, storage_errors

# A running ingest has volumes that no commit names yet; none runs longer than this.
GRACE = timedelta(hours=24)


@dataclass(frozen=True)
class Move:
    """A patient whose split differs."""

    patient: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Difference:
    """What one commit has that another has not, by patient.

    Attributes:
        changed: patients in both with another volume.
        moved: patients in both with another split; only a hand moves one.
        refused, mended: cohort, patient or source, and code, in `after` only, in `before` only.
    """

    before: int
    after: int
    added: list[str]
    removed: list[str]
    changed: list[str]
    moved: list[Move]
    refused: list[str]
    mended: list[str]


def diff(before: Snapshot, after: Snapshot) -> Difference:
    """Compare two commits."""
    old = {row.patient: row for row in before.patients()}
    new = {row.patient: row for row in after.patients()}
    both = sorted(old.keys() & new.keys())
    old_refusals, new_refusals = _refusals(before), _refusals(after)
    return Difference(
        before=before.commit,
        after=after.commit,
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        changed=[p for p in both if old[p].digest != new[p].digest],
        moved=[Move(p, old[p].split, new[p].split) for p in both if old[p].split != new[p].split],
        refused=sorted(new_refusals - old_refusals),
        mended=sorted(old_refusals - new_refusals),
    )


def _refusals(snapshot: Snapshot) -> set[str]:
    refused = (row for row in snapshot.entries if row.status == "refused")
    return {f"{row.cohort}: {row.patient or row.source}: {row.code}" for row in refused}


@dataclass(frozen=True)
class Problem:
    """A volume that is not what its commit says."""

    patient: str
    path: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found.

    Attributes:
        deep: whether every pixel was read and hashed, or only shapes and objects were compared.
    """

    commit: int
    deep: bool
    volumes: int
    problems: list[Problem]


def verify(snapshot: Snapshot, *, deep: bool = False) -> Verification:
    """Check that every volume of a commit is there; deep: that every pixel is as it was written."""
    problems = []
    patients = snapshot.patients()
    for row in patients:
        expected = (row.slices, *row.matrix)
        try:
            volumes.check(snapshot.location, row.path, expected)
            if deep and (found := volumes.digest(snapshot.location, row.path)) != row.digest:
                message = f"digest {found[:12]}, committed was {row.digest[:12]}"
                problems.append(Problem(row.patient, row.path, message))
        except StorageError as error:
            problems.append(Problem(row.patient, row.path, str(error)))
    return Verification(snapshot.commit, deep, len(patients), problems)


def rollback(dataset: Dataset, commit: int) -> Snapshot:
    """Make a new commit with the rows of an old one; nothing is lost, and no split forgotten.

    Every patient keeps the split of today, also one that a hand fixed after the old commit. Who is
    not in the old commit keeps it as a reservation, and is put back into it when ingested again.

    Raises:
        DatasetError: no such commit, or a volume of it is not there.
    """
    old = dataset.snapshot(commit)
    problems = verify(old).problems
    if problems:
        raise DatasetError(
            f"commit {commit} cannot be restored: {problems[0].patient}: {problems[0].problem}"
        )

    def decide(current: Snapshot) -> list[Row] | None:
        rows = {(row.cohort, row.key): row for row in old.entries if row.status != "reserved"}
        today = {row.patient: row.split for row in current.entries if row.split}
        for key, row in rows.items():
            if row.split:
                rows[key] = replace(row, split=today.get(row.patient, row.split))
        known = {row.patient for row in rows.values() if row.status == "accepted"}
        for row in current.entries:
            if row.split and row.patient not in known:
                reserved = reserve(row.patient or "", row.cohort, row.split)
                rows[reserved.cohort, reserved.key] = reserved
        after = sorted(rows.values(), key=lambda row: (row.key, row.cohort))
        return after if after != list(current.entries) else None

    return dataset.commit(decide, action="rollback", details=lambda: {"to": commit})


def reserve(patient: str, cohort: str, split: str) -> Row:
    """The row that remembers the split of a patient without data in a commit."""
    return Row(
        key=f"patient:{patient}", cohort=cohort, status="reserved", patient=patient, split=split
    )


def export_splits(snapshot: Snapshot) -> str:
    """CSV `patient,split` of all patients that have one, reserved ones too."""
    rows = ((row.patient, row.split) for row in snapshot.entries if row.split and row.patient)
    return splits.to_csv({p: s for p, name in rows for s in splits.SPLITS if s == name})


def import_splits(dataset: Dataset, text: str) -> tuple[Snapshot, list[Move]]:
    """Fix splits by hand from a CSV; patients who are yet to come are reserved.

    Returns:
        the new commit, or the latest if nothing moves, and what moved.

    Raises:
        StorageError: the CSV does not say what it should.
    """
    wanted = splits.from_csv(text)
    moves: list[Move] = []

    def decide(current: Snapshot) -> list[Row] | None:
        moves.clear()
        rows = {(row.cohort, row.key): row for row in current.entries}
        having = {row.patient: row for row in current.entries if row.status != "refused"}
        for patient, split in sorted(wanted.items()):
            row = having.get(patient)
            before = row.split if row else None
            if before == split:
                continue
            moves.append(Move(patient, before, split))
            new = replace(row, split=split) if row else reserve(patient, "", split)
            rows[new.cohort, new.key] = new
        return list(rows.values()) if moves else None

    def details() -> dict[str, object]:
        return {"moved": {move.patient: [move.before, move.after] for move in moves}}

    snapshot = dataset.commit(decide, action="splits", details=details)
    return snapshot, moves


@dataclass(frozen=True)
class Garbage:
    """What no commit needs.

    Attributes:
        volumes, files, scratch: paths; of volumes, of the catalog and half-written files, and of
            the scratch folder.
        bytes: that the volumes take.
        removed: False for a dry run.
    """

    volumes: list[str]
    files: list[str]
    scratch: list[str]
    bytes: int
    removed: bool


def collect_garbage(
    dataset: Dataset, scratch: Path | None = None, *, dry_run: bool, grace: timedelta = GRACE
) -> Garbage:
    """Remove volumes that no commit ever named, files of killed writers, and old scratch.

    Args:
        scratch: the home's scratch folder, to clear it too.
        dry_run: list, remove nothing.
        grace: what is younger is left alone: a running ingest may need it.
    """
    location = dataset.location
    before = datetime.now(UTC) - grace
    needed = dataset.catalog.values_ever("path")
    unneeded, size = _unneeded_volumes(location, needed, before)
    # The table counts whole hours: rather one file too many is left than one that is needed gone.
    hours = max(0, math.ceil(grace / timedelta(hours=1)))
    files = [f"catalog/{name}" for name in dataset.catalog.unneeded_files(hours)]
    halves = _half_written(location, before)
    leftovers = _old_scratch(scratch, before) if scratch else []
    if not dry_run:
        with storage_errors(str(location)):
            for path in unneeded:
                _remove_volume(location, path, before)
            if files:
                obstore.delete(location.store(), files)
            for file in halves:
                file.unlink(missing_ok=True)
            for entry in leftovers:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    return Garbage(
        unneeded,
        [*files, *(file.relative_to(location.url).as_posix() for file in halves)],
        [entry.name for entry in leftovers],
        size,
        removed=not dry_run,
    )


def _unneeded_volumes(
    location: Location, needed: Iterable[str], before: datetime
) -> tuple[list[str], int]:
    keep, newest, size = set(needed), {}, {}
    with storage_errors(str(location)):
        for batch in obstore.list(location.store(), "volumes"):
            for entry in batch:
                path = "/".join(entry["path"].split("/")[:3])
                newest[path] = max(newest.get(path, entry["last_modified"]), entry["last_modified"])
                size[path] = size.get(path, 0) + entry["size"]
    found = sorted(path for path in newest if path not in keep and newest[path] < before)
    return found, sum(size[path] for path in found)


def _remove_volume(location: Location, path: str, before: datetime) -> None:
    """Remove a volume, its marker of completeness first; not if it was written again just now."""
    store = location.store()
    objects = [entry for batch in obstore.list(store, path) for entry in batch]
    if any(entry["last_modified"] >= before for entry in objects):
        return
    marker = f"{path}/zarr.json"
    obstore.delete(store, [e["path"] for e in objects if e["path"] == marker])
    obstore.delete(store, [e["path"] for e in objects if e["path"] != marker])
    if not location.remote:
        shutil.rmtree(Path(location.url) / path, ignore_errors=True)


def _half_written(location: Location, before: datetime) -> list[Path]:
    """Staged files of a killed local writer (`name#1`); an object store has none."""
    if location.remote:
        return []
    files = (f for f in Path(location.url).rglob("*#*") if re.search(r"#\d+$", f.name))
    return [file for file in files if file.is_file() and _modified(file) < before]


def _old_scratch(scratch: Path, before: datetime) -> list[Path]:
    if not scratch.is_dir():
        return []
    return [
        entry
        for entry in sorted(scratch.iterdir())
        if max(map(_modified, [entry, *entry.rglob("*")])) < before
    ]


def _modified(file: Path) -> datetime:
    try:
        return datetime.fromtimestamp(file.lstat().st_mtime, UTC)
    except FileNotFoundError:
        # Someone is at work here: as young as can be.
        return datetime.now(UTC)
