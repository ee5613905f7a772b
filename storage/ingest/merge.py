"""Which rows of the dataset a delivery changes: decided on the latest commit, again if it moved.

- A patient who is there and whose volume is the same is unchanged.
- A patient who is there and whose volume differs is changed: the new one replaces it, the split
  stays. Only where a common study, frame of reference, slice or folder shows the same person: the
  name of the cohort shows nothing, for every inbox is called alike.
- Pixels that stand under another patient are refused, unless this delivery replaces that one too:
  so two patients who were swapped are put right.
- A refusal never removes an accepted volume; an acceptance removes the patient's refusals.
- A refusal that another cohort's name stands beside, of the same delivery, is the same refusal.
- Rows of patients, series and files that the delivery does not hold stay as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from storage.dataset import keys, splits
from storage.dataset.rows import Accepted, Refused, Row, order
from storage.ingest.delivery import Delivery
from storage.refusals import Code

Identity = tuple[str, str]

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
    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def merge_delivery(
    current: Sequence[Row],
    incoming: Iterable[Accepted | Refused],
    seen: frozenset[str],
    delivery: Delivery,
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
    accepted = _accept(rows, [r for r in incoming if isinstance(r, Accepted)], merged)
    repeated = [replace(row, delivery=delivery.digest) for row in merged.refused]
    repeated += [row for row in incoming if isinstance(row, Refused)]
    merged.refused = _refuse(rows, repeated, seen, accepted, delivery)
    _place(rows, accepted, delivery.split_targets)
    placed = (rows["", keys.patient(patient)] for patient in sorted(accepted))
    merged.accepted = [row for row in placed if isinstance(row, Accepted)]
    after = sorted(rows.values(), key=order)
    merged.rows = after if after != sorted(current, key=order) else None
    return merged


def _identity(row: Row) -> Identity:
    """One row a patient; one refusal a cohort and patient, series or folder."""
    return (row.cohort if isinstance(row, Refused) else "", row.key)


def _refuse(
    rows: dict[Identity, Row],
    repeated: Iterable[Refused],
    seen: frozenset[str],
    accepted: set[str],
    delivery: Delivery,
) -> list[Refused]:
    """Put the refusals of this delivery in, take out those that are over; return the former."""
    known = {identity: row for identity, row in rows.items() if isinstance(row, Refused)}
    for identity, row in known.items():
        ours = row.cohort == delivery.cohort or row.delivery == delivery.digest
        over = ours and row.subject in seen
        if over or (row.key.startswith("refused:") and row.patient in accepted):
            del rows[identity]
    same = {(row.delivery, row.key): row for row in known.values() if row.delivery}
    standing = {}
    for row in repeated:
        before = known.get(_identity(row)) or same.get((row.delivery, row.key))
        kept = before if before and _alike(before, row) else row
        standing[_identity(kept)] = kept
    rows.update(standing)
    return [standing[identity] for identity in sorted(standing)]


def _alike(a: Refused, b: Refused) -> bool:
    return _said(a) == _said(b)


def _said(row: Refused) -> Refused:
    return replace(row, fingerprint=None, cohort="", delivery="")


def _accept(rows: dict[Identity, Row], candidates: Sequence[Accepted], merged: Merged) -> set[str]:
    """Put accepted rows in, refuse the pixels of others; return the new and changed patients."""
    standing = {r.patient: r for r in rows.values() if isinstance(r, Accepted)}
    differing = []
    for row in candidates:
        before = standing.get(row.patient)
        if before is None or before.digest != row.digest:
            differing.append(row)
            continue
        merged.unchanged.append(row.patient)
        if before.size and row.size and before.size != row.size:
            # Written anew by another release of the codec: as whole, and as long as it now is.
            rows[_identity(row)] = replace(before, size=row.size)
    refused = _judge(standing, differing)
    merged.refused.extend(refused.values())
    accepted = {row.patient: row for row in differing if row.patient not in refused}
    for patient, row in accepted.items():
        if patient in standing:
            merged.changed.append(patient)
        before = rows.get(_identity(row))
        split = None if before is None or isinstance(before, Refused) else before.split
        rows[_identity(row)] = replace(row, split=split)
    return set(accepted)


def _judge(standing: Mapping[str, Accepted], candidates: Sequence[Accepted]) -> dict[str, Refused]:
    """Refusals among new and changed volumes, by patient."""
    leaving = {row.patient for row in candidates} & standing.keys()
    while True:
        refused = _refusals(standing, candidates, leaving)
        if not leaving & refused.keys():
            return refused
        # Who is refused stays, and what was decided on its leaving is decided again.
        leaving -= refused.keys()


def _refusals(
    standing: Mapping[str, Accepted], candidates: Sequence[Accepted], leaving: set[str]
) -> dict[str, Refused]:
    """What is refused if the volumes of the patients `leaving` are replaced."""
    owners = {
        mark: patient
        for patient, row in standing.items()
        if patient not in leaving
        for mark in row.identity_marks
    }
    replaced = {evidence for patient in leaving for evidence in _evidence(standing[patient])}
    refused = {}
    for row in candidates:
        patient, marks = row.patient, row.identity_marks
        before = standing.get(patient)
        other = next((o for m in marks if (o := owners.get(m, patient)) != patient), None)
        if other is not None:
            reason = (
                f"pixels of {patient} stand under {other} already, all or some: one person has one "
                f"ID; if it was {other} that was delivered under a wrong one, {_GO_BACK}"
            )
            refused[patient] = _refused(row, Code.DUPLICATE_PATIENT, reason)
        elif before and not (_evidence(before) | replaced) & _evidence(row):
            refused[patient] = _refused(row, Code.PATIENT_CONFLICT, _conflict(before))
        else:
            owners.update((mark, patient) for mark in marks)
    return refused


def _evidence(row: Accepted) -> set[str]:
    """What two volumes of one person may share."""
    return {*row.identity_marks, *row.identity_evidence}


def _conflict(before: Accepted) -> str:
    return (
        f"{before.patient} stands from cohort {before.cohort!r}, and this volume has no study, "
        "frame of reference, slice or folder in common with it: if it is another person, give "
        "the patients of this delivery a prefix in its cohort file; if it is the same one, do so "
        f"too and put both into the split {before.split} with `hqinet dataset splits import`; if "
        f"what stands was delivered under a wrong ID, {_GO_BACK}"
    )


def _refused(row: Accepted, code: Code, reason: str) -> Refused:
    """No fingerprint: what else the dataset holds decided, and may decide otherwise next time."""
    return Refused(
        key=keys.refused_patient(row.patient),
        cohort=row.cohort,
        patient=row.patient,
        code=str(code),
        reason=reason,
        source=row.source,
    )


def _place(
    rows: dict[Identity, Row], accepted: Iterable[str], targets: Mapping[splits.Split, float]
) -> None:
    """Give a split to each accepted patient who has none."""
    present = [row for row in rows.values() if isinstance(row, Accepted)]
    settled = [(_stratum(row), row.split) for row in present if row.split]
    new = {row.patient: row for row in present if row.patient in accepted and not row.split}
    strata = {patient: _stratum(row) for patient, row in new.items()}
    for patient, split in splits.assign(settled, strata, targets).items():
        rows[_identity(new[patient])] = replace(new[patient], split=split)


def _stratum(row: Accepted) -> splits.Stratum:
    return row.anatomy, row.vendor
