"""An inventory -> a plan: the pairs to be read, and refusals, by the headers alone."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from storage.dataset import keys
from storage.dataset.rows import Refused
from storage.ingest.delivery import Delivery
from storage.ingest.inventory import Inventory
from storage.ingest.pairing import Group, Pair, choose, group_series, shared_refusal
from storage.ingest.records import Record
from storage.refusals import SHOWN_FILES, Code, Refusal

# Version of what a fingerprint is made of: a new number makes every ingest read all pixels again.
_FINGERPRINT = 1
# Series that hold no image of a dose: refused alone, they say nothing about the pair.
_BESIDE_THE_PAIR = (Code.NOT_CT, Code.LOCALIZER, Code.SECONDARY_CAPTURE)
_NAMELESS = Refusal(
    Code.MISSING_PATIENT_ID,
    "neither PatientID nor the path names a patient; a cohort file can say where the key stands",
)


@dataclass(frozen=True)
class Plan:
    """What a delivery holds, by its headers.

    Attributes:
        pairs, refusals: sorted by patient and key.
        seen: subjects (`storage.dataset.keys`) that the delivery says something about: all its
            patients, series and folders.
    """

    pairs: tuple[Pair, ...]
    refusals: tuple[Refused, ...]
    seen: frozenset[str]


def plan(delivery: Delivery, inventory: Inventory) -> Plan:
    """Find the pair of each patient, and a reason for every series that is in none."""
    return _Planner(delivery).plan(inventory)


class _Planner:
    """Sorts the records of one inventory, and collects what is refused on the way."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.names = delivery.names
        self.refusals: list[Refused] = []
        self.made_here = frozenset(map(self.names.digest, delivery.made_here))

    def plan(self, inventory: Inventory) -> Plan:
        images = [r for r in inventory.records if r.kind == "image"]
        broken = [r for r in inventory.records if r.kind == "unreadable"]
        patients: dict[str, list[Record]] = defaultdict(list)
        for record in images:
            if record.patient is not None:
                patients[record.patient].append(record)
        nobodys: dict[str, list[Record]] = defaultdict(list)
        for owner, record in _owners(patients, broken):
            if owner is None:
                nobodys[_folder(record)].append(record)
            else:
                patients[owner].append(record)
        for folder, files in nobodys.items():
            self.refuse_files(folder, files)
        for group in group_series([r for r in images if r.patient is None]).values():
            self.refuse_series(group, shared_refusal(group) or _NAMELESS)
        pairs = [self.pair(patient, patients[patient]) for patient in sorted(patients)]
        seen = {keys.series_subject(record.header.series) for record in images}
        seen |= {keys.refused_patient(patient) for patient in patients}
        seen |= {keys.folder(self.names.digest(folder)) for folder in inventory.folders}
        return Plan(
            tuple(pair for pair in pairs if pair is not None),
            tuple(sorted(self.refusals, key=lambda refused: refused.key)),
            frozenset(seen),
        )

    def pair(self, patient: str, records: Sequence[Record]) -> Pair | None:
        """The patient's pair; None once the reason for there being none is recorded."""
        broken = [r for r in records if r.kind == "unreadable"]
        dosed = {}
        for key, group in group_series([r for r in records if r.kind == "image"]).items():
            refusal = shared_refusal(group)
            if key[0] in self.made_here:
                # Whatever its header says now: nobody must learn from what was restored here.
                refusal = Refusal(Code.OWN_DERIVED, "a series of this UID was restored here")
                self.refuse_series(group, refusal)
            elif refusal is not None and refusal.code in _BESIDE_THE_PAIR:
                self.refuse_series(group, refusal)
            else:
                dosed[key] = group
        if broken:
            first = broken[0].header.reason
            reason = f"of its files, {len(broken)} cannot be read; the first: {first}"
            files = tuple(record.path for record in broken)
            self.refuse_patient(patient, records, Refusal(Code.UNREADABLE, reason, files))
            return None
        try:
            return self.best_pair(patient, dosed, records) if dosed else None
        except Refusal as refusal:
            self.refuse_patient(patient, records, refusal)
            return None

    def best_pair(
        self, patient: str, groups: Mapping[tuple[str, str], Group], records: Sequence[Record]
    ) -> Pair:
        choice = choose(groups, self.delivery.limits, self.delivery.rules.simulate)
        for key, refusal in choice.left.items():
            self.refuse_series(groups[key], refusal)
        series = choice.low.series, choice.full.series
        source = self.folder(item.path for one in series for item in one.slices)
        place = f"place:{self.delivery.root / source}:{patient}"
        uids = {one.study for one in series} | {one.geometry.frame_of_reference for one in series}
        return Pair(
            patient=patient,
            low=choice.low,
            full=choice.full,
            anatomy=choice.about.anatomy,
            dose_fraction=choice.simulated or choice.about.dose_fraction,
            source=source,
            identity_evidence=(*sorted(uids - {""}), self.names.digest(place)),
            note=choice.note,
            fingerprint=self.fingerprint(records),
            simulation=self.delivery.rules.simulate if choice.simulated else None,
        )

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Changes when a file of the patient, the rules or the format change."""
        files = sorted(
            (h.instance, h.series, record.role, h.size, h.mtime_ns)
            for record in records
            for h in [record.header]
        )
        # Without a key that came later: fingerprints that stand in datasets stay as they are.
        unset = {"simulate"} if self.delivery.rules.simulate is None else set()
        rules = self.delivery.rules.model_dump(mode="json", exclude=unset)
        limits = self.delivery.limits.model_dump(mode="json")
        # JSON within JSON, as in the fingerprints that existing datasets hold.
        basis = json.dumps([_FINGERPRINT, rules, limits])
        return hashlib.sha256(json.dumps([basis, files]).encode()).hexdigest()

    def folder(self, paths: Iterable[str]) -> str:
        """The deepest folder that holds all of the files, as it may be shown."""
        parts = [PurePosixPath(path).parent.parts for path in paths]
        common = []
        for level in zip(*parts, strict=False):
            if len(set(level)) > 1:
                break
            common.append(level[0])
        return self.names.path("/".join(common) or ".")

    def refuse_patient(self, patient: str, records: Sequence[Record], refusal: Refusal) -> None:
        source = self.folder(record.path for record in records)
        self.refuse(keys.refused_patient(patient), patient, refusal, source)

    def refuse_series(self, group: Group, refusal: Refusal) -> None:
        first = group[0]
        said = Refusal(
            refusal.code,
            f"{refusal.reason} (a series of {len(group)} files)",
            refusal.files or tuple(record.path for record in group[:SHOWN_FILES]),
        )
        key = keys.series(first.header.series, first.role, first.patient)
        self.refuse(key, first.patient, said, self.folder(record.path for record in group))

    def refuse_files(self, folder: str, group: Group) -> None:
        """Refuse the unreadable files of a folder that belong to no patient."""
        first = group[0]
        reason, source = first.header.reason or "", self.names.path(first.path)
        if len(group) > 1:
            reason = f"{len(group)} files cannot be read; the first: {reason}"
            source = self.names.path(folder)
        files = tuple(record.path for record in group)
        key = keys.folder(self.names.digest(folder))
        self.refuse(key, None, Refusal(Code.UNREADABLE, reason, files), source)

    def refuse(self, key: str, patient: str | None, refusal: Refusal, source: str) -> None:
        self.refusals.append(refused_row(self.delivery, key, patient, refusal, source))


def refused_row(
    delivery: Delivery,
    key: str,
    patient: str | None,
    refusal: Refusal,
    source: str,
    fingerprint: str | None = None,
) -> Refused:
    """The row of a refusal.

    Args:
        source: as it may be shown.
        fingerprint: of the pair, when pixels were read to know; it is not read again before
            something changes.
    """
    return Refused(
        key=key,
        cohort=delivery.cohort,
        patient=patient,
        code=str(refusal.code),
        reason=refusal.reason,
        source=source,
        files=tuple(map(delivery.names.path, refusal.files)),
        fingerprint=fingerprint,
        delivery=delivery.digest,
    )


def _owners(
    patients: Mapping[str, Sequence[Record]], broken: Sequence[Record]
) -> list[tuple[str | None, Record]]:
    """The owner of each unreadable file: the patient to whom all images of its folder belong."""
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


def _folder(record: Record) -> str:
    return str(PurePosixPath(record.path).parent)
