"""Looking after a dataset for years: compare, verify, roll back, fix splits by hand."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from storage.dataset import splits, volumes
from storage.dataset.rows import Refused, Reserved, Row, order
from storage.dataset.splits import Split
from storage.dataset.versions import Dataset, Snapshot
from storage.errors import DatasetError, SplitError, StorageError


@dataclass(frozen=True)
class Move:
    """A patient whose split differs; None for one who has none."""

    patient: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Difference:
    """What one commit has that another has not, by patient.

    Attributes:
        changed: patients in both with another volume.
        moved: patients in both with another split; only a hand moves one.
        refused, resolved: cohort, patient or source, and code, in `after` only, in `before` only.
    """

    before: int
    after: int
    added: list[str]
    removed: list[str]
    changed: list[str]
    moved: list[Move]
    refused: list[str]
    resolved: list[str]


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
        resolved=sorted(old_refusals - new_refusals),
    )


def _refusals(snapshot: Snapshot) -> set[str]:
    return {f"{row.cohort}: {row.patient or row.source}: {row.code}" for row in snapshot.refused}


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


def verify(
    snapshot: Snapshot, *, deep: bool = False, only: Collection[str] | None = None
) -> Verification:
    """Check that every volume of a commit is whole; deep: that every pixel is as it was written.

    only: patients to look at; None: all.
    """
    problems = []
    patients = [row for row in snapshot.patients() if only is None or row.patient in only]
    for row in patients:
        try:
            volumes.check(snapshot.location, row)
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
        today = current.splits
        rows: list[Row] = [*old.refused]
        rows += [replace(row, split=today.get(row.patient, row.split)) for row in old.patients()]
        known = {row.patient for row in old.patients()}
        rows += [
            Reserved(patient=row.patient, cohort=row.cohort, split=row.split)
            for row in current.rows
            if not isinstance(row, Refused) and row.split and row.patient not in known
        ]
        after = sorted(rows, key=order)
        return after if after != list(current.rows) else None

    return dataset.commit(decide, action="rollback", details=lambda: {"to": commit})


def export_splits(snapshot: Snapshot) -> str:
    """CSV `patient,split` of all patients that have one, reserved ones too."""
    return splits.to_csv(snapshot.splits)


def import_splits(
    dataset: Dataset, text: str, *, reserve: bool = False
) -> tuple[Snapshot, list[Move]]:
    """Fix splits by hand from a CSV.

    Args:
        reserve: remember splits of patients who are yet to come; without it, an ID that is not in
            the dataset is treated as a typing error.

    Returns:
        the new commit, or the latest if nothing moves, and what moved.

    Raises:
        SplitError: the CSV does not say what it should, or names a patient who is not there.
    """
    wanted = splits.from_csv(text)
    moves: list[Move] = []

    def decide(current: Snapshot) -> list[Row] | None:
        today = current.splits
        if not reserve:
            _require_known(wanted.keys() - today.keys(), len(wanted))
        moves[:] = [
            Move(patient, today.get(patient), split)
            for patient, split in sorted(wanted.items())
            if today.get(patient) != split
        ]
        new = [
            Reserved(patient=move.patient, cohort="", split=wanted[move.patient])
            for move in moves
            if move.before is None
        ]
        rows = [_moved(row, wanted) for row in current.rows]
        return sorted([*rows, *new], key=order) if moves else None

    def details() -> dict[str, object]:
        return {"moved": {move.patient: [move.before, move.after] for move in moves}}

    snapshot = dataset.commit(decide, action="splits", details=details)
    return snapshot, moves


def release_splits(dataset: Dataset, patients: list[str]) -> tuple[Snapshot, list[Move]]:
    """Forget the reserved splits of patients without data.

    Raises:
        SplitError: one of them has data, whose split never goes, or no split.
    """
    moves: list[Move] = []

    def decide(current: Snapshot) -> list[Row]:
        reserved = {row.patient: row.split for row in current.rows if isinstance(row, Reserved)}
        for patient in patients:
            if patient not in reserved:
                has = "has data in the dataset" if patient in current.splits else "has no split"
                raise SplitError(
                    f"patient {patient!r} {has}: only a reserved split can be released; "
                    "`hqinet dataset splits export FILE` lists all"
                )
        moves[:] = [Move(patient, reserved[patient], None) for patient in sorted(set(patients))]
        return [
            row
            for row in current.rows
            if not (isinstance(row, Reserved) and row.patient in patients)
        ]

    def details() -> dict[str, object]:
        return {"released": {move.patient: move.before for move in moves}}

    snapshot = dataset.commit(decide, action="splits", details=details)
    return snapshot, moves


def _require_known(unknown: set[str], count: int) -> None:
    if unknown:
        raise SplitError(
            f"{len(unknown)} of {count} patients of the split file are not in the dataset, the "
            f"first is {min(unknown)!r}: look at the spelling (`hqinet dataset show`), or reserve "
            "splits for patients who are yet to come with --reserve"
        )


def _moved(row: Row, wanted: dict[str, Split]) -> Row:
    if isinstance(row, Refused) or row.patient not in wanted:
        return row
    return replace(row, split=wanted[row.patient])
