"""One series: records -> slices in the order of space, checked to be one volume.

File names and InstanceNumber say nothing: slices are ordered by ImagePositionPatient along the
normal of ImageOrientationPatient (DICOM PS3.3 C.7.6.2), and SliceThickness is not the increment.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from storage.dicom.frames import Frame, Stored, Vector
from storage.dicom.headers import Record
from storage.ingest.cohort import OTHER, Role
from storage.refusals import Code, Refused

SHOWN_FILES = 5


class Limits(BaseModel):
    """How exact geometry must be, and how little is too little."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    position_mm: float = Field(
        0.1, gt=0, description="Slice positions may be off by this much, as rounding makes them."
    )
    spacing_mm: float = Field(
        0.001, gt=0, description="Pixel spacings of one series may differ by this much."
    )
    cosine: float = Field(
        0.001, gt=0, description="Direction cosines of one series may differ by this much."
    )
    tilt_degrees: float = Field(
        0.1, gt=0, description="The gantry's tilt may differ by this much within a series."
    )
    min_slices: int = Field(3, ge=2, description="A series of fewer slices is refused.")
    min_overlap: int = Field(
        8, ge=2, description="A pair that overlaps only in part is cropped to this many or more."
    )


@dataclass(frozen=True, slots=True)
class Slice:
    """One image of a series.

    Attributes:
        path: below the delivery; `frame` within the file.
        position: mm along the slice normal.
        rescale: slope and intercept from stored values to HU.
        stored: how the file holds its pixels.
    """

    path: str
    frame: int
    position: float
    rescale: Vector
    stored: Stored


@dataclass(frozen=True)
class Series:
    """An ordered, checked series; nothing of its pixels has been read yet.

    Attributes:
        key: digest of the SeriesInstanceUID; `study`, `frame_of_reference`, `kernel_digest` alike.
        kernel, thickness: ConvolutionKernel, and SliceThickness in mm; `other` and None where files
            that have them differ.
        mixed: those of the two in which files differ.
        rows, columns: of every slice.
        spacing: (z, y, x) in mm; z is the median increment between slices.
        orientation: six direction cosines.
        origin: mm of the first slice along the row and the column direction.
        shift: mm from one slice to the next along both, not 0 when the gantry is tilted.
        slices: by ascending position.
    """

    role: Role
    key: str
    study: str
    frame_of_reference: str
    vendor: str
    kernel: str
    kernel_digest: str
    thickness: float | None
    mixed: tuple[str, ...]
    rows: int
    columns: int
    spacing: Vector
    orientation: Vector
    origin: Vector
    shift: Vector
    slices: tuple[Slice, ...]


Image = tuple[Record, int, Frame]


def order(records: Sequence[Record], limits: Limits) -> Series:
    """Put the images of one series in order and check that they are one volume.

    Raises:
        Refused: with the first thing found wrong.
    """
    for record in records:
        if record.code:
            alike = [r.path for r in records if r.code == record.code]
            reason = f"{record.reason} ({len(alike)} of {len(records)} files)"
            raise Refused(record.code, reason, tuple(alike[:SHOWN_FILES]))
    images = [(r, i, frame) for r in records for i, frame in enumerate(r.frames)]
    _check_present(images)
    _check_same(records, images, limits)
    orientation = np.array(images[0][2].orientation)
    axes = np.array([orientation[:3], orientation[3:], np.cross(orientation[:3], orientation[3:])])
    placed = np.array([frame.position for _, _, frame in images]) @ axes.T
    ranks = np.argsort(placed[:, 2], kind="stable")
    slices = tuple(_slice(images[i], float(placed[i, 2])) for i in ranks)
    increment = _increment(slices, limits)
    shift = _shift(placed[ranks], slices, limits)
    first = records[0]
    spacing = images[0][2].spacing or ()
    kernels = {r.kernel_digest: r.kernel for r in records if r.kernel_digest}
    thicknesses = {r.thickness for r in records if r.thickness is not None}
    counts = {"kernel": len(kernels), "slice thickness": len(thicknesses)}
    return Series(
        role=first.role,
        key=first.series,
        study=first.study,
        frame_of_reference=first.frame_of_reference,
        vendor=first.vendor,
        kernel=next(iter(kernels.values())) if len(kernels) == 1 else OTHER,
        kernel_digest=" ".join(sorted(kernels)),
        thickness=next(iter(thicknesses)) if len(thicknesses) == 1 else None,
        mixed=tuple(name for name, count in counts.items() if count > 1),
        rows=first.rows,
        columns=first.columns,
        spacing=(round(increment, 4), *spacing),
        orientation=tuple(map(float, orientation)),
        origin=tuple(float(v) for v in placed[ranks[0], :2]),
        shift=shift,
        slices=slices,
    )


def _slice(image: Image, position: float) -> Slice:
    record, index, frame = image
    if record.stored is None or frame.rescale is None:
        raise Refused(Code.NOT_HU, "no way from stored values to HU", (record.path,))
    return Slice(record.path, index, round(position, 4), frame.rescale, record.stored)


def _check_present(images: Sequence[Image]) -> None:
    """Every image says where it lies, in numbers that can be true."""
    for attribute, keyword in (
        ("position", "ImagePositionPatient"),
        ("orientation", "ImageOrientationPatient"),
        ("spacing", "PixelSpacing"),
    ):
        lacking = [r.path for r, _, frame in images if getattr(frame, attribute) is None]
        if lacking:
            raise Refused(
                Code.MISSING_GEOMETRY,
                f"{keyword} is absent or not numeric in {len(lacking)} of {len(images)} images",
                tuple(lacking[:SHOWN_FILES]),
            )
    for record, frame in _different(images, "orientation", "spacing"):
        row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
        lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
        skew = float(row @ column)
        if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(skew)) > 0.01:
            raise Refused(
                Code.CONTRADICTORY_GEOMETRY,
                f"direction cosines of lengths {lengths[0]:.3f} and {lengths[1]:.3f} with a dot "
                f"product of {skew:.3f}; expected 1, 1 and 0",
                (record.path,),
            )
        if min(frame.spacing) <= 0 or not record.rows or not record.columns:
            raise Refused(
                Code.CONTRADICTORY_GEOMETRY,
                f"matrix {record.rows} x {record.columns}, pixel spacing "
                f"{frame.spacing[0]:g} x {frame.spacing[1]:g} mm; expected both above 0",
                (record.path,),
            )


def _different(images: Sequence[Image], *attributes: str) -> Iterable[tuple[Record, Frame]]:
    """The first image of each matrix and each value of the attributes: most series have one."""
    value = attrgetter("rows", "columns"), attrgetter(*attributes)
    of = {(value[0](r), value[1](frame)): (r, frame) for r, _, frame in reversed(images)}
    return reversed(of.values())


def _check_same(records: Sequence[Record], images: Sequence[Image], limits: Limits) -> None:
    """One matrix, pixel spacing, tilt, orientation and frame of reference."""
    matrices = Counter((r.rows, r.columns) for r in records).most_common()
    if len(matrices) > 1:
        found = ", ".join(f"{rows} x {columns} ({n} files)" for (rows, columns), n in matrices)
        odd = [r.path for r in records if (r.rows, r.columns) != matrices[0][0]]
        raise Refused(
            Code.MIXED_MATRIX,
            f"matrices {found} in one series; expected one",
            tuple(odd[:SHOWN_FILES]),
        )
    first = images[0][2]
    tilts = sorted((r.tilt, r.path) for r in records if r.tilt is not None)
    if tilts and tilts[-1][0] - tilts[0][0] > limits.tilt_degrees:
        raise Refused(
            Code.CHANGING_TILT,
            f"GantryDetectorTilt goes from {tilts[0][0]:g} to {tilts[-1][0]:g} degrees within the "
            f"series; expected a change of {limits.tilt_degrees:g} at most",
            (tilts[0][1], tilts[-1][1]),
        )
    for code, attribute, tolerance, what in (
        (Code.MIXED_SPACING, "spacing", limits.spacing_mm, "pixel spacing (mm)"),
        (Code.MIXED_ORIENTATION, "orientation", limits.cosine, "direction cosines"),
    ):
        for record, frame in _different(images, attribute):
            here, there = getattr(first, attribute), getattr(frame, attribute)
            if np.abs(np.subtract(here, there)).max() > tolerance:
                raise Refused(
                    code,
                    f"{what} {quoted(here)} and {quoted(there)} in one series; expected one, "
                    f"within {tolerance:g}",
                    (images[0][0].path, record.path),
                )
    frames = {r.frame_of_reference: r.path for r in records}
    if len(frames) > 1:
        raise Refused(
            Code.CONTRADICTORY_GEOMETRY,
            f"{len(frames)} FrameOfReferenceUIDs in one series: its positions cannot be compared",
            tuple(frames.values())[:SHOWN_FILES],
        )


def quoted(values: Sequence[float]) -> str:
    """Numbers as a reason quotes them."""
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"


def _increment(slices: Sequence[Slice], limits: Limits) -> float:
    """The median distance between slices, in mm; none lacks, none is there twice."""
    if len(slices) < limits.min_slices:
        raise Refused(
            Code.TOO_FEW_SLICES,
            f"{len(slices)} slices; expected {limits.min_slices} or more",
            tuple(item.path for item in slices[:SHOWN_FILES]),
        )
    steps = np.diff([s.position for s in slices])
    median = float(np.median(steps))
    for i, step in enumerate(steps):
        here, there = slices[i], slices[i + 1]
        if step < min(limits.position_mm, median / 2) or step <= 0:
            raise Refused(
                Code.DUPLICATE_SLICES,
                f"two slices at {here.position:g} and {there.position:g} mm, "
                f"{step:g} mm apart in a series of {len(slices)}; expected one slice a position",
                (here.path, there.path),
            )
    for i, step in enumerate(steps):
        here, there = slices[i], slices[i + 1]
        lacking = round(step / median) - 1
        if lacking and abs(step - (lacking + 1) * median) <= (lacking + 1) * limits.position_mm:
            raise Refused(
                Code.MISSING_SLICES,
                f"{lacking} of the slices between {here.position:g} and {there.position:g} mm "
                f"missing: {step:g} mm apart, where the increment is {median:g} mm",
                (here.path, there.path),
            )
        if abs(step - median) > limits.position_mm:
            raise Refused(
                Code.UNEVEN_INCREMENTS,
                f"increments from {steps.min():g} to {steps.max():g} mm, median {median:g}; "
                f"expected within {limits.position_mm:g} mm of it",
                (here.path, there.path),
            )
    return median


def _shift(placed: np.ndarray, slices: Sequence[Slice], limits: Limits) -> Vector:
    """How far slices move sideways: evenly, as a tilted gantry makes them, or it is an error."""
    shifts = np.diff(placed[:, :2], axis=0)
    median = np.median(shifts, axis=0)
    off = np.abs(shifts - median).max(axis=1)
    worst = int(off.argmax())
    if off[worst] > limits.position_mm:
        raise Refused(
            Code.CONTRADICTORY_GEOMETRY,
            f"a slice lies {off[worst]:.2f} mm beside the line of the others; expected within "
            f"{limits.position_mm:g} mm",
            (slices[worst].path, slices[worst + 1].path),
        )
    return tuple(map(float, median))
