"""Which patient is in which split: decided once, at the patient's first commit, and kept for ever.

New patients come in the order of a salted hash of their key, so that neither file order nor the
alphabet decides. Each goes to the split that is furthest below its target.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

from storage.errors import SplitError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
TARGETS: Mapping[Split, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}

# A dataset of one or two patients can train and be judged before it can be validated.
_FIRST: tuple[Split, ...] = ("train", "test", "validation")
_SALT = "hqinet-split-1"
# Splits whose shortfall differs by less than half a patient count as level: the stratum decides.
_LEVEL = 0.5

Stratum = tuple[str, str]


def order(patient: str) -> str:
    """The place of a patient among the new ones of a commit: a salted hash of the key."""
    return hashlib.sha256(f"{_SALT}:{patient}".encode()).hexdigest()


def assign(
    settled: Iterable[tuple[Stratum, Split]],
    new: Mapping[str, Stratum],
    targets: Mapping[Split, float] = TARGETS,
) -> dict[str, Split]:
    """Choose a split for each new patient.

    A split without patients is filled first, so that from three patients on none is empty. Else
    the patient goes to the split furthest below its target over the whole dataset; where several
    are level to within half a patient, to the one furthest below it in the patient's stratum.

    Args:
        settled: stratum (anatomy, vendor) and split of each patient that has one already.
        new: patient key -> stratum of the patients to be placed.
        targets: share of each split; they are taken relative to their sum.
    """
    overall: Counter[Split] = Counter()
    within: Counter[tuple[Stratum, Split]] = Counter()
    for stratum, split in settled:
        overall[split] += 1
        within[stratum, split] += 1
    share = {split: targets[split] / sum(targets.values()) for split in SPLITS}
    chosen: dict[str, Split] = {}
    for patient in sorted(new, key=order):
        split = _place(new[patient], overall, within, share)
        chosen[patient] = split
        overall[split] += 1
        within[new[patient], split] += 1
    return chosen


def _place(
    stratum: Stratum,
    overall: Counter[Split],
    within: Counter[tuple[Stratum, Split]],
    share: Mapping[Split, float],
) -> Split:
    for split in _FIRST:
        if not overall[split]:
            return split
    total = overall.total() + 1
    shortfall = {split: share[split] * total - overall[split] for split in SPLITS}
    level = [s for s in SPLITS if shortfall[s] > max(shortfall.values()) - _LEVEL]
    stratum_total = sum(within[stratum, split] for split in SPLITS) + 1
    return max(
        level,
        key=lambda s: (share[s] * stratum_total - within[stratum, s], shortfall[s], s),
    )


def to_csv(splits: Mapping[str, Split]) -> str:
    """Two columns, `patient,split`, sorted by patient."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("patient", "split"))
    writer.writerows(sorted(splits.items()))
    return out.getvalue()


def read_csv(file: Path) -> str:
    """The text of a CSV file.

    Raises:
        SplitError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SplitError(
            f"{file} is not UTF-8 (byte {error.start}): save it as `CSV UTF-8`"
        ) from error


def from_csv(text: str) -> dict[str, Split]:
    """Read what `to_csv` wrote, or what a hand made of it.

    Raises:
        SplitError: a column is missing, a split unknown, or a patient named twice.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    if not {"patient", "split"} <= set(reader.fieldnames or ()):
        raise SplitError(
            f"the split file has the columns {reader.fieldnames}; it needs `patient,split`"
        )
    splits: dict[str, Split] = {}
    for line, row in enumerate(reader, start=2):
        patient, name = (row["patient"] or "").strip(), (row["split"] or "").strip()
        split = next((s for s in SPLITS if s == name), None)
        if split is None:
            raise SplitError(
                f"line {line} of the split file: split {name!r}; it must be one of {SPLITS}"
            )
        if not patient or patient in splits:
            raise SplitError(
                f"line {line} of the split file: patient {patient!r} is "
                f"{'named twice' if patient else 'empty'}; name each patient once"
            )
        splits[patient] = split
    return splits
