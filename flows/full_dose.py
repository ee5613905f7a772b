"""The full dose of a slice that was restored: from its own delivery, or from the dataset."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows import stores
from flows.compute.preparation import LEAST_SLICES
from storage.dataset.hashing import VolumeHash
from storage.dicom.finding import FoundSeries, find_series
from storage.dicom.headers import read_header
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import Series, order
from storage.dicom.tree import Tree
from storage.errors import StorageError
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role
from storage.ingest.grids import match
from storage.refusals import Refusal


def full_dose_of(
    found: FoundSeries, series: Series, at: int, delivered: Sequence[FoundSeries], source: Path
) -> NDArray[np.int16] | None:
    """The slice at full dose, int16 HU (rows, columns); None where it cannot be found.

    Args:
        found, series: what was restored, and `at` which of its slices.
        delivered: what came in the same folder, zip or file.
        source: that folder, zip or file.
    """
    # What was unpacked lies beside nothing that came with it.
    beside = _delivered_beside(source, series.study) if source.is_dir() else ()
    # A picture is worth showing without it: what cannot be read keeps nobody from the rest.
    with suppress(OSError, Refusal):
        full = _of_delivery(found, series, at, chain(delivered, beside))
        if full is not None:
            return full
    with suppress(OSError, Refusal, StorageError):
        return _of_dataset(found, series, at)
    return None


def _of_delivery(
    source: FoundSeries, series: Series, at: int, delivered: Iterable[FoundSeries]
) -> NDArray[np.int16] | None:
    """Of a series on the same grid; of several, one of the same kernel and thickness first."""
    wanted, matches = series.slices[at], []
    for found in delivered:
        if not _is_full_dose_of(source, found):
            continue
        with suppress(Refusal):
            low, full, _ = match(series, order(found.headers, LEAST_SLICES), LEAST_SLICES)
            if wanted in low.slices:
                there = low.slices.index(wanted)
                matches.append((full.crop(there, there + 1), found.root))
    if not matches:
        return None
    alike = (series.kernels, series.thickness)
    full, root = min(matches, key=lambda one: (one[0].kernels, one[0].thickness) != alike)
    return next(iter(HuDecoder(root, full)))


def _is_full_dose_of(source: FoundSeries, found: FoundSeries) -> bool:
    """Whether it is a full dose by its texts, and of the same patient and study."""
    mine, other = source.headers[0], found.headers[0]
    # Where a study has no UID, others of the same inbox have none, either.
    same = mine.study and (mine.study, mine.patient_id) == (other.study, other.patient_id)
    path = f"{found.root.name}/{other.path}"
    return bool(same) and cohort.role(CohortRules(), path, found.description) is Role.FULL


def _delivered_beside(folder: Path, study: str) -> Iterator[FoundSeries]:
    """The series of a study in the folders beside the one of a series, one in each as a rule."""
    for other in sorted(path for path in folder.parent.iterdir() if path.is_dir()):
        if other == folder:
            continue
        headers = (read_header(other, path) for path, _ in Tree(other).files())
        first = next((header for header in headers if header.kind == "image"), None)
        if first is not None and first.study == study:
            yield from find_series(other)[0]


def _of_dataset(found: FoundSeries, series: Series, at: int) -> NDArray[np.int16] | None:
    """Of the patient whose low dose has the same pixels."""
    snapshot = stores.dataset().snapshot()
    matrix = series.rows, series.columns
    rows = [row for row in snapshot.patients() if row.matrix == matrix]
    if not rows:
        return None
    slices = list(HuDecoder(found.root, series))
    hasher = VolumeHash((len(slices), *matrix))
    for image in slices:
        hasher.add(image)
    marks = set(hasher.slice_fingerprints())
    position = series.geometry.positions[at]
    for row in rows:
        if marks.isdisjoint(row.slice_fingerprints):
            continue
        pair = snapshot.volume(row.patient)
        there = int(np.abs(np.subtract(pair.positions, position)).argmin())
        if np.array_equal(pair.low[there], slices[at]):
            return pair.full[there]
    return None
