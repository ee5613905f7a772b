"""Which rows of the dataset a delivery changes: decided on the latest commit, again if it moved.

- A patient who is there and whose volume is the same is unchanged.
- A patient who is there and whose volume differs is changed: the new one replaces it, the split
  stays. Only where a common study, frame of reference, slice or folder shows the same person: the
  name of the cohort shows nothing, for every inbox is called alike.
- Pixels that stand under another patient are refused, unless this delivery replaces that one too:
  so two patients who were swapped are put right.
- A refusal never removes an accepted volume; an acceptance removes the patient's refusals.
- Rows of patients, series and files that the delivery does not hold stay as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from storage.dataset import splits
from storage.dataset.catalog import Row
from storage.ingest.cohort import OTHER
from storage.refusals import Code

Key = tuple[str, str]

_GO_BACK = "`hqinet dataset rollback` to the commit before that, and ingest again"


@dataclass
class Merged:
    """What became of a delivery.

    Attributes:
        rows: all rows of the next commit; None when nothing changes.
        accepted: new and changed patients' rows.
        refused: all refusals of this delivery, those already known too.
        unchanged: patients whose volume stands already.
        changed: patients whose volume was replaced.
    """

    rows: list[Row] | None = None
    accepted: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def merge_delivery(
    current: Sequence[Row],
    incoming: Iterable[Row],
    seen: frozenset[str],
    cohort: str,
    targets: Mapping[splits.Split, float] = splits.TARGETS,
) -> Merged:
    """Decide what a delivery changes.

    Args:
        current: rows of the latest commit.
        incoming: accepted rows without a split and refused rows, of all that the delivery holds.
        seen: subjects that the delivery says something about: refusals of them that it does not
            repeat are over.
    """
    rows = {_identity(row): row for row in current}
    merged = Merged()
    incoming = sorted(incoming, key=lambda row: row.key)
    accepted = _accept(rows, [r for r in incoming if r.status == "accepted"], merged)
    repeated = {_identity(row): row for row in merged.refused}
    repeated.update((_identity(row), row) for row in incoming if row.status == "refused")
    for key, row in list(rows.items()):
        over = row.status == "refused" and row.cohort == cohort and row.subject in seen
        mended = row.key.startswith("refused:") and row.patient in accepted
        if over or mended:
            del rows[key]
    known = {_identity(row): row for row in current}
    for key, row in repeated.items():
        before = known.get(key)
        rows[key] = before if before and _same(before, row) else row
    merged.refused = [rows[key] for key in sorted(repeated)]
    _place(rows, accepted, targets)
    merged.accepted = [rows["", f"patient:{patient}"] for patient in sorted(accepted)]
    after = sorted(rows.values(), key=lambda row: (row.key, row.cohort))
    before_all = sorted(current, key=lambda row: (row.key, row.cohort))
    merged.rows = after if after != before_all else None
    return merged


def _identity(row: Row) -> Key:
    """One row a patient; one refusal a cohort and patient, series or folder."""
    return ("" if row.status != "refused" else row.cohort, row.key)


def _same(a: Row, b: Row) -> bool:
    return replace(a, fingerprint=None) == replace(b, fingerprint=None)


def _accept(rows: dict[Key, Row], candidates: Sequence[Row], merged: Merged) -> set[str]:
    """Put accepted rows in, refuse the pixels of others; return the new and changed patients."""
    standing = {r.patient or "": r for r in rows.values() if r.status == "accepted"}
    differing = []
    for row in candidates:
        before = standing.get(row.patient or "")
        if before and before.digest == row.digest:
            merged.unchanged.append(before.patient or "")
        else:
            differing.append(row)
    refused = _judge(standing, differing)
    merged.refused.extend(refused.values())
    accepted = {row.patient or "": row for row in differing if row.patient not in refused}
    for patient, row in accepted.items():
        if patient in standing:
            merged.changed.append(patient)
        before = rows.get(_identity(row))
        rows[_identity(row)] = replace(row, split=before.split if before else None)
    return set(accepted)


def _judge(standing: Mapping[str, Row], candidates: Sequence[Row]) -> dict[str, Row]:
    """Refusals among new and changed volumes, by patient."""
    leaving = {row.patient or "" for row in candidates} & standing.keys()
    while True:
        refused = _refusals(standing, candidates, leaving)
        if not leaving & refused.keys():
            return refused
        # Who is refused stays, and what was decided on its leaving is decided again.
        leaving -= refused.keys()


def _refusals(
    standing: Mapping[str, Row], candidates: Sequence[Row], leaving: set[str]
) -> dict[str, Row]:
    """What is refused if the volumes of the patients `leaving` are replaced."""
    owners = {m: p for p, row in standing.items() if p not in leaving for m in _marks(row)}
    replaced = {evidence for patient in leaving for evidence in _evidence(standing[patient])}
    refused = {}
    for row in candidates:
        patient = row.patient or ""
        before = standing.get(patient)
        other = next((o for m in _marks(row) if (o := owners.get(m, patient)) != patient), None)
        if other is not None:
            reason = (
                f"pixels of {patient} stand under {other} already, all or some: one person has one "
                f"ID; if it was {other} that was delivered under a wrong one, {_GO_BACK}"
            )
            refused[patient] = _refused(row, Code.DUPLICATE_PATIENT, reason)
        elif before and not (_evidence(before) | replaced) & _evidence(row):
            refused[patient] = _refused(row, Code.PATIENT_CONFLICT, _conflict(before))
        else:
            owners.update((mark, patient) for mark in _marks(row))
    return refused


def _marks(row: Row) -> tuple[str, ...]:
    return (row.pixels or "", *row.sketch.split())


def _evidence(row: Row) -> set[str]:
    """What two volumes of one person may share."""
    return {*_marks(row), *row.studies} - {""}


def _conflict(before: Row) -> str:
    return (
        f"{before.patient} stands from cohort {before.cohort!r}, and this volume has no study, "
        "frame of reference, slice or folder in common with it: if it is another person, give "
        "the patients of this delivery a prefix in its cohort file; if it is the same one, do so "
        f"too and put both into the split {before.split} with `hqinet dataset splits import`; if "
        f"what stands was delivered under a wrong ID, {_GO_BACK}"
    )


def _refused(row: Row, code: Code, reason: str) -> Row:
    """No fingerprint: what else the dataset holds decided, and may decide otherwise next time."""
    return Row(
        key=f"refused:{row.patient}",
        cohort=row.cohort,
        status="refused",
        patient=row.patient,
        code=str(code),
        reason=reason,
        source=row.source,
    )


def _place(
    rows: dict[Key, Row], accepted: Iterable[str], targets: Mapping[splits.Split, float]
) -> None:
    """Give a split to each accepted patient who has none."""
    new = {p: _stratum(row) for p in accepted if not (row := rows["", f"patient:{p}"]).split}
    settled = [
        (_stratum(r), s)
        for r in rows.values()
        if r.status == "accepted"
        for s in splits.SPLITS
        if s == r.split
    ]
    for patient, split in splits.assign(settled, new, targets).items():
        key = "", f"patient:{patient}"
        rows[key] = replace(rows[key], split=split)


def _stratum(row: Row) -> splits.Stratum:
    return row.anatomy or "unknown", row.vendor or OTHER
