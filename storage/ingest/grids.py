"""Whether two series lie on one grid, and which of their slices are common."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from storage.dicom.geometry import Geometry, quoted
from storage.dicom.limits import Limits
from storage.dicom.series import Series
from storage.refusals import Code, Refusal


def match(low: Series, full: Series, limits: Limits) -> tuple[Series, Series, str]:
    """Both series on their common slices, and a note if that meant to crop.

    Raises:
        Refusal: their grids differ, or too few slices are common.
    """
    here, there = low.geometry, full.geometry
    for what, a, b, tolerance in (
        ("matrix", (low.rows, low.columns), (full.rows, full.columns), 0),
        ("pixel spacing (mm)", here.spacing[1:], there.spacing[1:], limits.spacing_mm),
        ("direction cosines", here.orientation, there.orientation, limits.cosine),
        ("increment (mm)", here.spacing[:1], there.spacing[:1], limits.position_mm / 2),
    ):
        if np.abs(np.subtract(a, b)).max() > tolerance:
            raise Refusal(
                Code.DIFFERENT_GRIDS,
                f"{what} {quoted(a)} in low dose and {quoted(b)} in full dose; expected the same"
                + (f" within {tolerance:g}" if tolerance else ""),
            )
    common = list(_common(here, there, limits))
    _check_overlap(here, there, len(common), limits)
    _check_gaps(here, there, common)
    (first_low, first_full), count = common[0], len(common)
    low = low.crop(first_low, first_low + count)
    full = full.crop(first_full, first_full + count)
    _check_origin(low.geometry, full.geometry, limits)
    cropped = len(here) - count, len(there) - count
    note = (
        f"cropped to {count} common slices, the first at {full.geometry.positions[0]:g} mm: "
        f"{cropped[0]} low-dose and {cropped[1]} full-dose slices have no partner"
    )
    return low, full, note if any(cropped) else ""


def _common(low: Geometry, full: Geometry, limits: Limits) -> Iterator[tuple[int, int]]:
    """Index pairs of the slices at the same position."""
    there = np.array(full.positions)
    for i, position in enumerate(low.positions):
        j = int(np.abs(there - position).argmin())
        if abs(there[j] - position) <= min(limits.position_mm, full.spacing[0] / 4):
            yield i, j


def _check_overlap(low: Geometry, full: Geometry, common: int, limits: Limits) -> None:
    whole = common == len(low) == len(full)
    if not common or (not whole and common < limits.min_overlap):
        ranges = [f"{g.positions[0]:g} to {g.positions[-1]:g} mm" for g in (low, full)]
        raise Refusal(
            Code.DIFFERENT_GRIDS,
            f"low dose lies at {ranges[0]} ({len(low)} slices), full dose at {ranges[1]} "
            f"({len(full)}): {common} slices in common; expected all, or "
            f"{limits.min_overlap} or more to crop to",
        )


def _check_gaps(low: Geometry, full: Geometry, common: Sequence[tuple[int, int]]) -> None:
    """The common slices follow one another in both series: nothing between them is left out."""
    for (i, j), following in pairwise(common):
        if following != (i + 1, j + 1):
            raise Refusal(
                Code.DIFFERENT_GRIDS,
                f"increments {low.spacing[0]:g} mm in low dose and {full.spacing[0]:g} mm in full "
                f"dose drift apart: no common slices between {full.positions[j]:g} and "
                f"{full.positions[following[1]]:g} mm; expected all of them",
            )


def _check_origin(low: Geometry, full: Geometry, limits: Limits) -> None:
    """The first common slices begin at the same point of the plane."""
    if np.abs(np.subtract(low.origin, full.origin)).max() > limits.position_mm:
        raise Refusal(
            Code.DIFFERENT_GRIDS,
            f"low dose begins at {quoted(low.origin)} mm in the plane, full dose at "
            f"{quoted(full.origin)}; expected the same within {limits.position_mm:g}",
        )
