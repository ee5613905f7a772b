"""A patient of a commit as training and evaluation take it."""

from hqinet.samples.pairs import VolumePair
from storage.dataset.rows import Accepted
from storage.dataset.versions import Snapshot


def pair_of(snapshot: Snapshot, row: Accepted) -> VolumePair:
    """The pair of one patient, read lazily."""
    volume = snapshot.volume(row.patient)
    return VolumePair(
        row.patient, row.anatomy, volume.low, volume.full, row.dose_fraction, volume.repeats
    )


def pairs_of(snapshot: Snapshot, split: str) -> list[VolumePair]:
    """The pairs of a split, sorted by patient."""
    return [pair_of(snapshot, row) for row in snapshot.patients(split)]
