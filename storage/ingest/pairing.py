"""The series of one patient -> the best pair: low and full dose on one grid."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage.dicom.limits import Limits
from storage.dicom.series import Series, order
from storage.ingest.cohort import Role
from storage.ingest.grids import match
from storage.ingest.records import Record
from storage.ingest.simulation import SimulationRules
from storage.refusals import Code, Refusal
from storage.vocabulary import OTHER, Anatomy

Group = Sequence[Record]
"""The files of one series in one role."""
GroupKey = tuple[str, Role]


@dataclass(frozen=True)
class Dose:
    """One image of a pair.

    Attributes:
        kernel: word of a fixed vocabulary; `other` where files differ.
    """

    series: Series
    vendor: str
    kernel: str


@dataclass(frozen=True)
class Pair:
    """Two series of one patient on one grid, ready to be read; all that a worker needs to know.

    Attributes:
        source: folder below the delivery that holds them, as it may be shown.
        identity_evidence: digests of the UIDs of studies and frames of reference, and of the
            patient's folder: what replaces it there is of the same person.
        note: what was decided on the way and the reader should know; empty if nothing.
        simulation: how the low dose is to be made from the full dose, where none was delivered:
            `low` then is the full dose, too.
        fingerprint: of the patient's files and everything that decides what is made of them, but
            for the patient's key: a copy under another name has the same.
    """

    patient: str
    low: Dose
    full: Dose
    anatomy: Anatomy
    dose_fraction: float | None
    source: str
    identity_evidence: tuple[str, ...]
    note: str
    fingerprint: str
    simulation: SimulationRules | None = None


@dataclass(frozen=True)
class Choice:
    """The best pair of a patient, and why the other series are not in it.

    Attributes:
        about: a record of the full dose.
        left: of each series that is not in the pair, what is wrong with it, or that it is beside
            a better one.
        simulated: dose of the low dose that is to be made; None where both were delivered.
    """

    low: Dose
    full: Dose
    note: str
    about: Record
    left: Mapping[GroupKey, Refusal]
    simulated: float | None = None


def group_series(records: Sequence[Record]) -> dict[GroupKey, list[Record]]:
    """Files by series and role, sorted."""
    groups: dict[GroupKey, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.header.series, record.role].append(record)
    return dict(sorted(groups.items()))


def shared_refusal(group: Group) -> Refusal | None:
    """Why a series is refused whose every file is refused for the same reason."""
    codes = {record.header.code for record in group}
    code = next(iter(codes))
    if len(codes) > 1 or code is None:
        return None
    return Refusal(code, group[0].header.reason or "")


def choose(
    groups: Mapping[GroupKey, Group], limits: Limits, simulation: SimulationRules | None = None
) -> Choice:
    """The best pair among the series of a patient.

    The rule: among all low and full series on one grid, a pair of one study before one of two,
    then of one kernel and slice thickness, then the pair with the most slices, then with the
    smallest increment, then with the smallest series digests. Where no low dose was delivered at
    all, not even a damaged one, and the rules have one simulated: the full dose chosen alike.

    Raises:
        Refusal: there is none, with the first thing found wrong.
    """
    good, bad = _ordered(groups, limits)
    delivered = {role for _, role in groups}
    if simulation and Role.LOW not in delivered and good[Role.FULL]:
        alone = _choose_alone(groups, good[Role.FULL], bad, simulation)
        if alone is not None:
            return alone
    _require_both(groups, good, bad)
    matches, misfits = [], []
    for low in good[Role.LOW]:
        for full in good[Role.FULL]:
            try:
                one, other, note = match(low.series, full.series, limits)
            except Refusal as refusal:
                files = low.series.slices[0].path, full.series.slices[0].path
                misfits.append(Refusal(refusal.code, refusal.reason, files))
            else:
                matches.append(
                    (Dose(one, low.vendor, low.kernel), Dose(other, full.vendor, full.kernel), note)
                )
    if not matches:
        raise misfits[0]
    low, full, note = min(matches, key=_preference)
    chosen = (low.series.uid, Role.LOW), (full.series.uid, Role.FULL)
    left = {key: bad.get(key) or _NOT_CHOSEN for key in groups if key not in chosen}
    notes = [note, *_differences(low, full), _among(groups, left)]
    joined = "; ".join(note for note in notes if note)
    return Choice(low, full, joined, groups[chosen[1]][0], left)


def _choose_alone(
    groups: Mapping[GroupKey, Group],
    candidates: Sequence[Dose],
    bad: Mapping[GroupKey, Refusal],
    simulation: SimulationRules,
) -> Choice | None:
    """The full dose that gets a simulated partner; None where the anatomy is given no dose."""
    full = min(
        candidates,
        key=lambda one: (
            -len(one.series.slices),
            one.series.geometry.spacing[0],
            one.series.uid,
        ),
    )
    chosen = full.series.uid, Role.FULL
    about = groups[chosen][0]
    dose = simulation.dose_of(about.anatomy)
    if dose is None:
        return None
    left = {key: bad.get(key) or _NOT_CHOSEN for key in groups if key != chosen}
    return Choice(full, full, _among(groups, left), about, left, dose)


def _among(groups: Mapping[GroupKey, Group], left: Mapping[GroupKey, Refusal]) -> str:
    return f"chosen among {len(groups)} series" if left else ""


def _ordered(
    groups: Mapping[GroupKey, Group], limits: Limits
) -> tuple[dict[Role, list[Dose]], dict[GroupKey, Refusal]]:
    """Series that are whole volumes, by role, and why the others are not."""
    good: dict[Role, list[Dose]] = {Role.LOW: [], Role.FULL: []}
    bad: dict[GroupKey, Refusal] = {}
    for (uid, role), group in groups.items():
        if role not in good:
            bad[uid, role] = shared_refusal(group) or ROLELESS[role]
            continue
        try:
            good[role].append(_dose(group, limits))
        except Refusal as refusal:
            bad[uid, role] = refusal
    return good, bad


def _dose(group: Group, limits: Limits) -> Dose:
    series = order([record.header for record in group], limits)
    kernels = {record.header.kernel: record.kernel for record in group if record.header.kernel}
    kernel = next(iter(kernels.values())) if len(kernels) == 1 else OTHER
    return Dose(series, group[0].vendor, kernel)


def _preference(candidate: tuple[Dose, Dose, str]) -> tuple[bool, int, int, float, str, str]:
    low, full, _ = candidate
    return (
        low.series.study != full.series.study,
        len(_differences(low, full)),
        -len(low.series.slices),
        low.series.geometry.spacing[0],
        low.series.uid,
        full.series.uid,
    )


def _differences(low: Dose, full: Dose) -> list[str]:
    """How the two images were reconstructed differently; the dose shall be all that differs."""
    one, other = low.series, full.series
    found = [
        f"{dose} dose: slices differ in {' and '.join(series.mixed)}"
        for dose, series in (("low", one), ("full", other))
        if series.mixed
    ]
    one_each = "kernel" not in one.mixed + other.mixed
    if one_each and one.kernels != other.kernels:
        found.append(f"kernels differ: low dose {low.kernel}, full dose {full.kernel}")
    thickness = one.thickness, other.thickness
    if None not in thickness and thickness[0] != thickness[1]:
        found.append(
            f"slice thickness differs: low dose {thickness[0]:g} mm, full dose {thickness[1]:g} mm"
        )
    return found


def _require_both(
    groups: Mapping[GroupKey, Group],
    good: Mapping[Role, Sequence[Dose]],
    bad: Mapping[GroupKey, Refusal],
) -> None:
    """Low and full dose must be there, each at least once and whole."""
    files = tuple(group[0].path for group in groups.values())
    for role, code in ((Role.LOW, Code.NO_LOW_DOSE), (Role.FULL, Code.NO_FULL_DOSE)):
        if good[role]:
            continue
        for (_, of_role), refusal in bad.items():
            if of_role is role:
                raise refusal.of(f"{role}-dose series")
        ambiguous = [refusal for (_, of), refusal in bad.items() if of is Role.AMBIGUOUS]
        if ambiguous:
            raise Refusal(ambiguous[0].code, ambiguous[0].reason, files)
        unknown = [role for _, role in groups if role is Role.UNKNOWN]
        if unknown and not good[Role.LOW] and not good[Role.FULL]:
            roleless = ROLELESS[Role.UNKNOWN]
            raise Refusal(roleless.code, roleless.reason, files)
        known = len(good[Role.LOW]) + len(good[Role.FULL])
        raise Refusal(
            code,
            f"the patient has no {role}-dose series ({known} of the other dose, "
            f"{len(unknown)} of unknown role)",
            files,
        )


ROLELESS = {
    Role.AMBIGUOUS: Refusal(
        Code.AMBIGUOUS_ROLE,
        "description or path says low dose and full dose at once; a cohort file can decide",
    ),
    Role.UNKNOWN: Refusal(
        Code.UNKNOWN_ROLE,
        "neither description nor path says low or full dose; a cohort file can say how to tell",
    ),
}
_NOT_CHOSEN = Refusal(
    Code.NOT_CHOSEN,
    "beside the pair that was chosen; the rule: one study, then one kernel and slice thickness, "
    "then most slices, then the smallest increment",
)
