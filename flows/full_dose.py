"""The full dose of a slice that was restored: from its own delivery, or from the dataset."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
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
from storage.errors import DatasetError
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role
from storage.ingest.grids import match
from storage.refusals import Refusal


def full_dose_beside(
    series: Series, at: int, delivered: Iterable[FoundSeries]
) -> NDArray[np.int16] | None:
    """The slice at full dose, int16 HU (rows, columns), of a series on the same grid.

    Args:
        series: that was restored, and `at` which of its slices.
        delivered: what came with it; a full dose is one by its description, and of the same study.
    """
    wanted = series.slices[at]
    for found in delivered:
        role = cohort.role(CohortRules(), found.headers[0].path, found.description)
        if role is not Role.FULL or found.headers[0].study != series.study:
            continue
        with suppress(Refusal):
            low, full, _ = match(series, order(found.headers, LEAST_SLICES), LEAST_SLICES)
            if wanted in low.slices:
                there = low.slices.index(wanted)
                return next(iter(HuDecoder(found.root, full.crop(there, there + 1))))
    return None


def delivered_beside(folder: Path, study: str) -> Iterator[FoundSeries]:
    """The series of a study in the folders beside the one of a series, one in each as a rule."""
    for other in sorted(path for path in folder.parent.iterdir() if path.is_dir()):
        first = next((name for name, _ in Tree(other).files()), None)
        if other != folder and first and read_header(other, first).study == study:
            yield from find_series(other)[0]


def full_dose_ingested(found: FoundSeries, series: Series, at: int) -> NDArray[np.int16] | None:
    """The slice at full dose, as above, of the patient whose low dose has the same pixels."""
    try:
        snapshot = stores.dataset().snapshot()
    except DatasetError:
        return None
    slices = list(HuDecoder(found.root, series))
    hasher = VolumeHash((len(slices), series.rows, series.columns))
    for image in slices:
        hasher.add(image)
    marks = set(hasher.slice_fingerprints())
    position = series.geometry.positions[at]
    for row in snapshot.patients():
        if marks.isdisjoint(row.slice_fingerprints):
            continue
        pair = snapshot.volume(row.patient)
        there = int(np.abs(np.subtract(pair.positions, position)).argmin())
        if np.array_equal(pair.low[there], slices[at]):
            return pair.full[there]
    return None
