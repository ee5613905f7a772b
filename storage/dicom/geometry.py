"""Where the slices of a series lie: measured once from the headers, then carried whole.

Slices are ordered by ImagePositionPatient along the normal of ImageOrientationPatient (DICOM
PS3.3 C.7.6.2); file names and InstanceNumber say nothing, and SliceThickness is not the increment.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple, Self

import numpy as np

from storage.dicom.frames import Frame, Vector
from storage.dicom.headers import FileHeader
from storage.dicom.limits import Limits
from storage.refusals import SHOWN_FILES, Code, Refusal


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The grid of a volume in patient coordinates; all lengths in mm.

    Attributes:
        spacing: (z, y, x); z is the median increment between slices.
        orientation: ImageOrientationPatient, the direction cosines of rows and columns.
        positions: of each slice along the slice normal, ascending.
        origin: of the first slice's first pixel, along the row and the column direction.
        shift: from one slice to the next along both; not 0 where the gantry is tilted.
        frame_of_reference: its UID, or a digest of it; empty where there is none.
    """

    spacing: Vector
    orientation: Vector
    positions: Vector
    origin: Vector
    shift: Vector = (0.0, 0.0)
    frame_of_reference: str = ""

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.positions)

    def place(self, index: int) -> Vector:
        """ImagePositionPatient of a slice: (x, y, z) of the centre of its first pixel."""
        along = np.add(self.origin, np.multiply(self.shift, index))
        placed = np.linalg.solve(_axes(self.orientation), [*along, self.positions[index]])
        return tuple(map(float, placed))

    def crop(self, start: int, stop: int) -> Self:
        """The geometry of the slices from `start` up to `stop`."""
        return replace(self, positions=self.positions[start:stop], origin=self.origin_of(start))

    def origin_of(self, index: int) -> Vector:
        """Of a slice's first pixel, along the row and the column direction."""
        if not any(self.shift):
            return self.origin
        return tuple(o + s * index for o, s in zip(self.origin, self.shift, strict=True))

    def attributes(self) -> dict[str, list[float]]:
        """The numbers as JSON, as they stand with the volume.

        Without the frame of reference, which is of the delivery: the same images exported anew
        get another one, and are the same volume.
        """
        numbers = {
            "spacing": list(self.spacing),
            "positions": list(self.positions),
            "orientation": list(self.orientation),
            "origin": list(self.origin),
        }
        # Absent where there is no tilt, as in volumes that were written before it was kept.
        return numbers | ({"shift": list(self.shift)} if any(self.shift) else {})

    @classmethod
    def from_attributes(cls, values: Mapping[str, Any]) -> Self:
        """The geometry that a volume's attributes hold."""
        return cls(
            spacing=tuple(values["spacing"]),
            orientation=tuple(values["orientation"]),
            positions=tuple(values["positions"]),
            origin=tuple(values["origin"]),
            shift=tuple(values.get("shift", (0.0, 0.0))),
            frame_of_reference=values.get("frame_of_reference", ""),
        )


class Image(NamedTuple):
    """One image of a series: the file that holds it, and which of its frames it is."""

    header: FileHeader
    index: int
    frame: Frame


def images_of(headers: Iterable[FileHeader]) -> list[Image]:
    """All images of some files."""
    return [
        Image(header, index, frame)
        for header in headers
        for index, frame in enumerate(header.frames)
    ]


def measure(images: Sequence[Image], limits: Limits) -> tuple[list[Image], Geometry]:
    """Order the images of one series in space, and check that they are one volume.

    Raises:
        Refusal: with the first thing found wrong.
    """
    _check_present(images)
    _check_same(images, limits)
    orientation = images[0].frame.orientation or ()
    placed = np.array([image.frame.position for image in images]) @ _axes(orientation).T
    ranks = np.argsort(placed[:, 2], kind="stable")
    ordered, placed = [images[rank] for rank in ranks], placed[ranks]
    positions = tuple(round(float(position), 4) for position in placed[:, 2])
    increment = _increment(ordered, positions, limits)
    return ordered, Geometry(
        spacing=(round(increment, 4), *(images[0].frame.spacing or ())),
        orientation=tuple(map(float, orientation)),
        positions=positions,
        origin=tuple(map(float, placed[0, :2])),
        shift=_shift(ordered, placed[:, :2], limits),
        frame_of_reference=images[0].header.frame_of_reference,
    )


def quoted(values: Sequence[float]) -> str:
    """Numbers as a reason quotes them."""
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"


def _axes(orientation: Sequence[float]) -> np.ndarray:
    """Unit vectors of row, column and slice normal, one a line."""
    row, column = orientation[:3], orientation[3:]
    return np.array([row, column, np.cross(row, column)])


def _check_present(images: Sequence[Image]) -> None:
    """Every image says where it lies, in numbers that can be true."""
    for attribute, keyword in (
        ("position", "ImagePositionPatient"),
        ("orientation", "ImageOrientationPatient"),
        ("spacing", "PixelSpacing"),
    ):
        lacking = [i.header.path for i in images if getattr(i.frame, attribute) is None]
        if lacking:
            raise Refusal(
                Code.MISSING_GEOMETRY,
                f"{keyword} is absent or not numeric in {len(lacking)} of {len(images)} images",
                tuple(lacking[:SHOWN_FILES]),
            )
    for header, _, frame in _different(images, "orientation", "spacing"):
        row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
        lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
        skew = float(row @ column)
        if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(skew)) > 0.01:
            raise Refusal(
                Code.CONTRADICTORY_GEOMETRY,
                f"direction cosines of lengths {lengths[0]:.3f} and {lengths[1]:.3f} with a dot "
                f"product of {skew:.3f}; expected 1, 1 and 0",
                (header.path,),
            )
        if min(frame.spacing) <= 0 or not header.rows or not header.columns:
            raise Refusal(
                Code.CONTRADICTORY_GEOMETRY,
                f"matrix {header.rows} x {header.columns}, pixel spacing "
                f"{frame.spacing[0]:g} x {frame.spacing[1]:g} mm; expected both above 0",
                (header.path,),
            )


def _check_same(images: Sequence[Image], limits: Limits) -> None:
    """One pixel spacing, orientation and frame of reference."""
    first = images[0]
    for code, attribute, tolerance, what in (
        (Code.MIXED_SPACING, "spacing", limits.spacing_mm, "pixel spacing (mm)"),
        (Code.MIXED_ORIENTATION, "orientation", limits.cosine, "direction cosines"),
    ):
        for header, _, frame in _different(images, attribute):
            here, there = getattr(first.frame, attribute), getattr(frame, attribute)
            if np.abs(np.subtract(here, there)).max() > tolerance:
                raise Refusal(
                    code,
                    f"{what} {quoted(here)} and {quoted(there)} in one series; expected one, "
                    f"within {tolerance:g}",
                    (first.header.path, header.path),
                )
    frames = {image.header.frame_of_reference: image.header.path for image in images}
    if len(frames) > 1:
        raise Refusal(
            Code.CONTRADICTORY_GEOMETRY,
            f"{len(frames)} FrameOfReferenceUIDs in one series: its positions cannot be compared",
            tuple(frames.values())[:SHOWN_FILES],
        )


def _different(images: Sequence[Image], *attributes: str) -> Iterable[Image]:
    """The first image of each matrix and each value of the attributes: most series have one."""
    matrix, value = attrgetter("rows", "columns"), attrgetter(*attributes)
    of = {(matrix(image.header), value(image.frame)): image for image in reversed(images)}
    return reversed(of.values())


def _increment(images: Sequence[Image], positions: Vector, limits: Limits) -> float:
    """The median distance between slices, in mm; none lacks, none is there twice."""
    paths = [image.header.path for image in images]
    if len(images) < limits.min_slices:
        raise Refusal(
            Code.TOO_FEW_SLICES,
            f"{len(images)} slices; expected {limits.min_slices} or more",
            tuple(paths[:SHOWN_FILES]),
        )
    if len(images) == 1:
        # Nothing lies beside it; SliceThickness is the only length there is.
        return images[0].header.thickness or 1.0
    steps = np.diff(positions)
    median = float(np.median(steps))
    for i, step in enumerate(steps):
        if step < min(limits.position_mm, median / 2) or step <= 0:
            raise Refusal(
                Code.DUPLICATE_SLICES,
                f"two slices at {positions[i]:g} and {positions[i + 1]:g} mm, "
                f"{step:g} mm apart in a series of {len(images)}; expected one slice a position",
                (paths[i], paths[i + 1]),
            )
    for i, step in enumerate(steps):
        lacking = round(step / median) - 1
        if lacking and abs(step - (lacking + 1) * median) <= (lacking + 1) * limits.position_mm:
            raise Refusal(
                Code.MISSING_SLICES,
                f"{lacking} of the slices between {positions[i]:g} and {positions[i + 1]:g} mm "
                f"missing: {step:g} mm apart, where the increment is {median:g} mm",
                (paths[i], paths[i + 1]),
            )
        if abs(step - median) > limits.position_mm:
            raise Refusal(
                Code.UNEVEN_INCREMENTS,
                f"increments from {steps.min():g} to {steps.max():g} mm, median {median:g}; "
                f"expected within {limits.position_mm:g} mm of it",
                (paths[i], paths[i + 1]),
            )
    return median


def _shift(images: Sequence[Image], beside: np.ndarray, limits: Limits) -> Vector:
    """How far slices move sideways: evenly, as a tilted gantry makes them, or it is an error.

    Args:
        beside: mm of each slice's first pixel along the row and the column direction.
    """
    if len(beside) == 1:
        return (0.0, 0.0)
    steps = np.diff(beside, axis=0)
    index = np.arange(len(beside)) - (len(beside) - 1) / 2
    shift = index @ beside / (index @ index)
    # A step that differs from the others, or steps that all differ a little the same way.
    jumps = np.abs(steps - np.median(steps, axis=0)).max(axis=1)
    strays = np.abs(beside - beside.mean(axis=0) - np.outer(index, shift)).max(axis=1)
    worst = int(jumps.argmax() if jumps.max() > limits.position_mm else strays.argmax())
    off = max(jumps.max(), strays.max())
    if off > limits.position_mm:
        raise Refusal(
            Code.CONTRADICTORY_GEOMETRY,
            f"a slice lies {off:.2f} mm beside the line of the others; expected within "
            f"{limits.position_mm:g} mm",
            tuple(image.header.path for image in images[worst : worst + 2]),
        )
    # Below a micrometre a slice it is rounding, and nothing is tilted.
    return tuple(float(round(value, 6)) + 0.0 for value in shift)
