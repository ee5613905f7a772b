"""An inventory -> pairs: low and full dose of one patient on one grid, and refusals."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from storage.dataset import volumes
from storage.dicom.headers import Record
from storage.dicom.series import SHOWN_FILES, Limits, Series, order
from storage.ingest.cohort import CohortRules, Role
from storage.ingest.grids import match
from storage.ingest.inventory import Inventory
from storage.ingest.pseudonyms import Pseudonyms
from storage.refusals import Code, Refused

# Series that hold no image of a dose: refused alone, they say nothing about the pair.
_BESIDE_THE_PAIR = (Code.NOT_CT, Code.LOCALIZER, Code.SECONDARY_CAPTURE)


@dataclass(frozen=True)
class Pair:
    """Two series of one patient on one grid, ready to be read.

    Attributes:
        source: folder below the delivery that holds them, as it may be shown.
        studies: digests of the UIDs of studies and frames of reference.
        note: what was decided on the way and the reader should know; empty if nothing.
        fingerprint: of the patient's files and everything that decides what is made of them, but
            for the patient's key: a copy under another name has the same.
    """

    patient: str
    low: Series
    full: Series
    anatomy: str
    dose_fraction: float | None
    source: str
    studies: tuple[str, ...]
    note: str
    fingerprint: str


@dataclass(frozen=True)
class Refusal:
    """A row of the catalog to be: what was refused and why.

    Attributes:
        key: see `storage.dataset.catalog.Row`.
        source: folder or file below the delivery, as it may be shown.
        files: those that show what is wrong, as they may be shown; unreadable ones all, of others
            the first.
    """

    key: str
    patient: str | None
    code: Code
    reason: str
    source: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a delivery holds, by its headers.

    Attributes:
        pairs, refusals: sorted by patient and key.
        seen: subjects (`Row.subject`) that the delivery says something about: all its patients,
            series and folders.
    """

    pairs: tuple[Pair, ...]
    refusals: tuple[Refusal, ...]
    seen: frozenset[str]


def plan(inventory: Inventory, rules: CohortRules, limits: Limits, names: Pseudonyms) -> Plan:
    """Find the pair of each patient."""
    return _Planner(rules, limits, names).plan(inventory)


class _Planner:
    def __init__(self, rules: CohortRules, limits: Limits, names: Pseudonyms) -> None:
        self.limits = limits
        self.names = names
        self.basis = json.dumps(
            [volumes.FORMAT, rules.model_dump(mode="json"), limits.model_dump(mode="json")]
        )
        self.refusals: list[Refusal] = []
        self.seen: set[str] = set()

    def plan(self, inventory: Inventory) -> Plan:
        self.seen.update(f"file:{self.names.digest(folder)}" for folder in inventory.folders)
        patients: dict[str, list[Record]] = defaultdict(list)
        nameless: list[Record] = []
        broken: list[Record] = []
        for record in inventory.records:
            if record.kind == "unreadable":
                broken.append(record)
                continue
            self.seen.add(f"series:{record.series}")
            if record.patient is None:
                nameless.append(record)
            else:
                patients[record.patient].append(record)
        nobodys: dict[str, list[Record]] = defaultdict(list)
        for patient, record in self.owners(patients, broken):
            if patient is None:
                nobodys[_folder(record)].append(record)
            else:
                patients[patient].append(record)
        for folder, group in nobodys.items():
            self.refuse_files(folder, group)
        for group in _by_series(nameless).values():
            self.refuse_series(group, _first_code(group) or _NAMELESS)
        pairs = []
        for patient in sorted(patients):
            pair = self.pair(patient, patients[patient])
            if pair is not None:
                pairs.append(pair)
        self.refusals.sort(key=lambda r: r.key)
        return Plan(tuple(pairs), tuple(self.refusals), frozenset(self.seen))

    def owners(
        self, patients: Mapping[str, Sequence[Record]], broken: Sequence[Record]
    ) -> list[tuple[str | None, Record]]:
        """Whose an unreadable file is: the patient's to whom all images of its folder belong."""
        whose: dict[str, set[str]] = {_folder(record): set() for record in broken}
        if whose:
            for patient, records in patients.items():
                for record in records:
                    whose.get(_folder(record), set()).add(patient)
        owned = []
        for record in broken:
            patients_there = whose[_folder(record)]
            owner = next(iter(patients_there)) if len(patients_there) == 1 else None
            owned.append((owner, record))
        return owned

    def pair(self, patient: str, records: Sequence[Record]) -> Pair | None:
        """The patient's pair; None after the reason was put down."""
        self.seen.add(f"refused:{patient}")
        broken = [r for r in records if r.kind == "unreadable"]
        groups = _by_series([r for r in records if r.kind == "image"])
        dosed = []
        for group in groups.values():
            verdict = _first_code(group)
            if verdict is not None and verdict.code in _BESIDE_THE_PAIR:
                self.refuse_series(group, verdict)
            else:
                dosed.append(group)
        if broken:
            reason = f"of its files, {len(broken)} cannot be read; the first: {broken[0].reason}"
            files = tuple(r.path for r in broken)
            self.refuse_patient(patient, records, Refused(Code.UNREADABLE, reason, files))
            return None
        try:
            return self.choose(patient, dosed, records) if dosed else None
        except Refused as refused:
            self.refuse_patient(patient, records, refused)
            return None

    def choose(
        self, patient: str, groups: Sequence[Sequence[Record]], records: Sequence[Record]
    ) -> Pair:
        """The best pair among the series of a patient.

        The rule: among all low and full series on one grid, a pair of one study before one of
        two, then of one kernel and slice thickness, then the pair with the most slices, then with
        the smallest increment, then with the smallest series digests.
        """
        good, bad = self.ordered(groups)
        _require_both(groups, good, bad)
        matches, misfits = [], []
        for low in good[Role.LOW]:
            for full in good[Role.FULL]:
                try:
                    matches.append(match(low, full, self.limits))
                except Refused as refused:
                    files = low.slices[0].path, full.slices[0].path
                    misfits.append(Refused(refused.code, refused.reason, files))
        if not matches:
            raise misfits[0]
        best = min(matches, key=_preference)
        low, full, note = best
        chosen = {(low.key, Role.LOW), (full.key, Role.FULL)}
        notes = [*([note] if note else []), *_differences(low, full)]
        left = [g for g in groups if (g[0].series, g[0].role) not in chosen]
        for group in left:
            key = group[0].series, group[0].role
            self.refuse_series(group, bad.get(key) or _NOT_CHOSEN)
        if left:
            notes.append(f"chosen among {len(groups)} series")
        first = next(g[0] for g in groups if (g[0].series, g[0].role) == (full.key, Role.FULL))
        return Pair(
            patient=patient,
            low=low,
            full=full,
            anatomy=first.anatomy,
            dose_fraction=first.dose_fraction,
            source=self.folder(s.path for series in (low, full) for s in series.slices),
            studies=_shared_uids(low, full),
            note="; ".join(notes),
            fingerprint=self.fingerprint(records),
        )

    def ordered(
        self, groups: Sequence[Sequence[Record]]
    ) -> tuple[dict[Role, list[Series]], dict[tuple[str, Role], Refused]]:
        """Series that are whole volumes, by role, and why the others are not."""
        good: dict[Role, list[Series]] = {Role.LOW: [], Role.FULL: []}
        bad: dict[tuple[str, Role], Refused] = {}
        for group in groups:
            role = group[0].role
            try:
                if role in good:
                    good[role].append(order(group, self.limits))
                else:
                    bad[group[0].series, role] = _first_code(group) or _ROLELESS[role]
            except Refused as refused:
                bad[group[0].series, role] = refused
        return good, bad

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Changes when a file of the patient, the rules or the format change."""
        files = sorted((r.instance, r.series, r.role, r.size, r.mtime_ns) for r in records)
        return hashlib.sha256(json.dumps([self.basis, files]).encode()).hexdigest()

    def folder(self, paths: Iterable[str]) -> str:
        """The deepest folder that holds all of the files, as it may be shown."""
        parts = [PurePosixPath(path).parent.parts for path in paths]
        common = []
        for level in zip(*parts, strict=False):
            if len(set(level)) > 1:
                break
            common.append(level[0])
        return self.names.path("/".join(common) or ".")

    def refuse_patient(self, patient: str, records: Sequence[Record], refused: Refused) -> None:
        self.refusals.append(
            Refusal(
                f"refused:{patient}",
                patient,
                refused.code,
                refused.reason,
                self.folder(r.path for r in records),
                tuple(map(self.names.path, refused.files)),
            )
        )

    def refuse_series(self, group: Sequence[Record], refused: Refused) -> None:
        self.refusals.append(
            Refusal(
                f"series:{group[0].patient or ''}:{group[0].series}:{group[0].role}",
                group[0].patient,
                refused.code,
                f"{refused.reason} (a series of {len(group)} files)",
                self.folder(r.path for r in group),
                tuple(map(self.names.path, refused.files or [r.path for r in group[:SHOWN_FILES]])),
            )
        )

    def refuse_files(self, folder: str, group: Sequence[Record]) -> None:
        """Unreadable files of a folder, that are no patient's."""
        files = tuple(self.names.path(record.path) for record in group)
        reason = f"{len(group)} files cannot be read; the first: {group[0].reason}"
        self.refusals.append(
            Refusal(
                f"file:{self.names.digest(folder)}",
                None,
                Code.UNREADABLE,
                reason if len(group) > 1 else group[0].reason or "",
                self.names.path(folder) if len(group) > 1 else files[0],
                files,
            )
        )


_NAMELESS = Refused(
    Code.MISSING_PATIENT_ID,
    "neither PatientID nor the path names a patient; a cohort file can say where the key stands",
)
_ROLELESS = {
    Role.AMBIGUOUS: Refused(
        Code.AMBIGUOUS_ROLE,
        "description or path says low dose and full dose at once; a cohort file can decide",
    ),
    Role.UNKNOWN: Refused(
        Code.UNKNOWN_ROLE,
        "neither description nor path says low or full dose; a cohort file can say how to tell",
    ),
}
_NOT_CHOSEN = Refused(
    Code.NOT_CHOSEN,
    "beside the pair that was chosen; the rule: one study, then one kernel and slice thickness, "
    "then most slices, then the smallest increment",
)


def _folder(record: Record) -> str:
    return str(PurePosixPath(record.path).parent)


def _by_series(records: Sequence[Record]) -> dict[tuple[str, Role], list[Record]]:
    groups: dict[tuple[str, Role], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.series, record.role].append(record)
    return dict(sorted(groups.items()))


def _first_code(group: Sequence[Record]) -> Refused | None:
    """The verdict of a series whose every file is refused for the same reason."""
    codes = {r.code for r in group}
    code = next(iter(codes))
    return Refused(code, group[0].reason or "") if len(codes) == 1 and code else None


def _preference(candidate: tuple[Series, Series, str]) -> tuple[bool, int, int, float, str, str]:
    low, full, _ = candidate
    return (
        low.study != full.study,
        len(_differences(low, full)),
        -len(low.slices),
        low.spacing[0],
        low.key,
        full.key,
    )


def _differences(low: Series, full: Series) -> list[str]:
    """How the two images were reconstructed differently; the dose shall be all that differs."""
    found = [
        f"{dose} dose: slices differ in {' and '.join(series.mixed)}"
        for dose, series in (("low", low), ("full", full))
        if series.mixed
    ]
    one_each = "kernel" not in low.mixed + full.mixed
    if one_each and low.kernel_digest != full.kernel_digest:
        found.append(f"kernels differ: low dose {low.kernel}, full dose {full.kernel}")
    thickness = low.thickness, full.thickness
    if None not in thickness and thickness[0] != thickness[1]:
        found.append(
            f"slice thickness differs: low dose {thickness[0]:g} mm, full dose {thickness[1]:g} mm"
        )
    return found


def _shared_uids(low: Series, full: Series) -> tuple[str, ...]:
    """What a redelivery of the person shares, were its pixels changed: studies and frames."""
    uids = {low.study, full.study, low.frame_of_reference, full.frame_of_reference}
    return tuple(sorted(uids - {""}))


def _require_both(
    groups: Sequence[Sequence[Record]],
    good: Mapping[Role, Sequence[Series]],
    bad: Mapping[tuple[str, Role], Refused],
) -> None:
    """Low and full dose must be there, each at least once and whole."""
    for role, code in ((Role.LOW, Code.NO_LOW_DOSE), (Role.FULL, Code.NO_FULL_DOSE)):
        if good[role]:
            continue
        for (_, of_role), refused in bad.items():
            if of_role is role:
                raise Refused(refused.code, f"{role}-dose series: {refused.reason}", refused.files)
        files = tuple(group[0].path for group in groups)
        ambiguous = [r for (_, of), r in bad.items() if of is Role.AMBIGUOUS]
        if ambiguous:
            raise Refused(ambiguous[0].code, ambiguous[0].reason, files)
        unknown = [g for g in groups if g[0].role is Role.UNKNOWN]
        if unknown and not good[Role.LOW] and not good[Role.FULL]:
            roleless = _ROLELESS[Role.UNKNOWN]
            raise Refused(roleless.code, roleless.reason, files)
        known = len(good[Role.LOW]) + len(good[Role.FULL])
        raise Refused(
            code,
            f"the patient has no {role}-dose series ({known} of the other dose, "
            f"{len(unknown)} of unknown role)",
            files,
        )
