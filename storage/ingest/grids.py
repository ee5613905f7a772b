"""Whether two series lie on one grid, and which of their slices are common."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from storage.dicom.series import Limits, Series, quoted
from storage.refusals import Code, Refused


def match(low: Series, full: Series, limits: Limits) -> tuple[Series, Series, str]:
    """Both series on their common slices, and a note if that meant to crop.

    Raises:
        Refused: their grids differ, or too few slices are common.
    """
    for what, a, b, tolerance in (
        ("matrix", (low.rows, low.columns), (full.rows, full.columns), 0),
        ("pixel spacing (mm)", low.spacing[1:], full.spacing[1:], limits.spacing_mm),
        ("direction cosines", low.orientation, full.orientation, limits.cosine),
        ("increment (mm)", low.spacing[:1], full.spacing[:1], limits.position_mm / 2),
    ):
        if np.abs(np.subtract(a, b)).max() > tolerance:
            raise Refused(
                Code.DIFFERENT_GRIDS,
                f"{what} {quoted(a)} in low dose and {quoted(b)} in full dose; expected the same"
                + (f" within {tolerance:g}" if tolerance else ""),
            )
    common = list(_common(low, full, limits))
    _check_overlap(low, full, len(common), limits)
    _check_gaps(low, full, common)
    _check_origin(low, full, common[0], limits)
    cropped = [len(s.slices) - len(common) for s in (low, full)]
    note = ""
    if any(cropped):
        note = (
            f"cropped to {len(common)} common slices, the first at "
            f"{full.slices[common[0][1]].position:g} mm: "
            f"{cropped[0]} low-dose and {cropped[1]} full-dose slices have no partner"
        )
    return (
        replace(low, slices=tuple(low.slices[i] for i, _ in common)),
        replace(full, slices=tuple(full.slices[j] for _, j in common)),
        note,
    )


def _common(low: Series, full: Series, limits: Limits) -> Iterator[tuple[int, int]]:
    """Index pairs of the slices at the same position."""
    there = np.array([s.position for s in full.slices])
    for i, item in enumerate(low.slices):
        j = int(np.abs(there - item.position).argmin())
        if abs(there[j] - item.position) <= min(limits.position_mm, full.spacing[0] / 4):
            yield i, j


def _check_overlap(low: Series, full: Series, common: int, limits: Limits) -> None:
    whole = common == len(low.slices) == len(full.slices)
    if not common or (not whole and common < limits.min_overlap):
        ranges = [f"{s.slices[0].position:g} to {s.slices[-1].position:g} mm" for s in (low, full)]
        raise Refused(
            Code.DIFFERENT_GRIDS,
            f"low dose lies at {ranges[0]} ({len(low.slices)} slices), full dose at {ranges[1]} "
            f"({len(full.slices)}): {common} slices in common; expected all, or "
            f"{limits.min_overlap} or more to crop to",
        )


def _check_gaps(low: Series, full: Series, common: Sequence[tuple[int, int]]) -> None:
    """The common slices follow one another in both series: nothing between them is left out."""
    for (i, j), following in pairwise(common):
        if following != (i + 1, j + 1):
            raise Refused(
                Code.DIFFERENT_GRIDS,
                f"increments {low.spacing[0]:g} mm in low dose and {full.spacing[0]:g} mm in full "
                f"dose drift apart: no common slices between {full.slices[j].position:g} and "
                f"{full.slices[following[1]].position:g} mm; expected all of them",
            )


def _check_origin(low: Series, full: Series, first: tuple[int, int], limits: Limits) -> None:
    """The first common slices begin at the same point of the plane."""
    here, there = (
        np.add(series.origin, np.multiply(series.shift, index))
        for series, index in zip((low, full), first, strict=True)
    )
    if np.abs(here - there).max() > limits.position_mm:
        raise Refused(
            Code.DIFFERENT_GRIDS,
            f"low dose begins at {quoted(here)} mm in the plane, full dose at {quoted(there)}; "
            f"expected the same within {limits.position_mm:g}",
        )
