"""One series: records -> slices in the order of space, checked -> HU, a slice at a time.

File names and InstanceNumber say nothing: slices are ordered by ImagePositionPatient along the
normal of ImageOrientationPatient (DICOM PS3.3 C.7.6.2), and SliceThickness is not the increment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import pydicom
from pydantic import BaseModel, ConfigDict, Field
from pydicom.dataset import Dataset as Header
from pydicom.pixels import iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.cohort import Role
from storage.headers import Frame, Record, Vector, macro
from storage.refusals import Code, Refused
from storage.volumes import AIR

_SHOWN_FILES = 5
# OverlayBitPosition: an overlay in the high bits of the pixels, as older scanners wrote it.
_OVERLAYS = [(group, 0x0102) for group in range(0x6000, 0x6020, 2)]
_DECODING = [
    *_OVERLAYS,
    "SOPClassUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
]
_LARGEST = np.iinfo(np.int16).max


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
    """

    path: str
    frame: int
    position: float


@dataclass(frozen=True)
class Series:
    """An ordered, checked series; nothing of its pixels has been read yet.

    Attributes:
        key: digest of the SeriesInstanceUID.
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
    vendor: str
    kernel: str
    rows: int
    columns: int
    spacing: Vector
    orientation: Vector
    origin: Vector
    shift: Vector
    slices: tuple[Slice, ...]


def order(records: Sequence[Record], limits: Limits) -> Series:
    """Put the images of one series in order and check that they are one volume.

    Raises:
        Refused: with the first thing found wrong.
    """
    for record in records:
        if record.code:
            raise Refused(record.code, record.reason or "", _paths(records, record.code))
    images = [(r, i, frame) for r in records for i, frame in enumerate(r.frames)]
    _check_present(images)
    _check_same(records, images, limits)
    orientation = np.array(images[0][2].orientation)
    axes = np.array([orientation[:3], orientation[3:], np.cross(orientation[:3], orientation[3:])])
    placed = np.array([frame.position for _, _, frame in images]) @ axes.T
    ranks = np.argsort(placed[:, 2], kind="stable")
    slices = tuple(
        Slice(images[i][0].path, images[i][1], round(float(placed[i, 2]), 4)) for i in ranks
    )
    increment = _increment(slices, limits)
    shift = _shift(placed[ranks], limits)
    first = records[0]
    spacing = images[0][2].spacing or ()
    return Series(
        role=first.role,
        key=first.series,
        study=first.study,
        vendor=first.vendor,
        kernel=first.kernel,
        rows=first.rows,
        columns=first.columns,
        spacing=(round(increment, 4), *spacing),
        orientation=tuple(map(float, orientation)),
        origin=tuple(float(v) for v in placed[ranks[0], :2]),
        shift=shift,
        slices=slices,
    )


def _paths(records: Sequence[Record], code: Code) -> tuple[str, ...]:
    return tuple(r.path for r in records if r.code == code)[:_SHOWN_FILES]


Image = tuple[Record, int, Frame]


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
                tuple(lacking[:_SHOWN_FILES]),
            )
    for record, _, frame in images:
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


def _check_same(records: Sequence[Record], images: Sequence[Image], limits: Limits) -> None:
    """One matrix, pixel spacing, tilt, orientation and frame of reference."""
    matrices = sorted({(r.rows, r.columns) for r in records})
    if len(matrices) > 1:
        found = ", ".join(f"{rows} x {columns}" for rows, columns in matrices)
        raise Refused(Code.MIXED_MATRIX, f"matrices {found} in one series; expected one")
    first = images[0][2]
    tilts = sorted({r.tilt for r in records if r.tilt is not None})
    if tilts and tilts[-1] - tilts[0] > limits.tilt_degrees:
        raise Refused(
            Code.CHANGING_TILT,
            f"GantryDetectorTilt goes from {tilts[0]:g} to {tilts[-1]:g} degrees within the series"
            f"; expected a change of {limits.tilt_degrees:g} at most",
        )
    for code, attribute, tolerance, what in (
        (Code.MIXED_SPACING, "spacing", limits.spacing_mm, "pixel spacing (mm)"),
        (Code.MIXED_ORIENTATION, "orientation", limits.cosine, "direction cosines"),
    ):
        for record, _, frame in images:
            here, there = getattr(first, attribute), getattr(frame, attribute)
            if np.abs(np.subtract(here, there)).max() > tolerance:
                raise Refused(
                    code,
                    f"{what} {_text(here)} and {_text(there)} in one series; expected one, within "
                    f"{tolerance:g}",
                    (images[0][0].path, record.path),
                )
    if len({r.frame_of_reference for r in records}) > 1:
        raise Refused(
            Code.CONTRADICTORY_GEOMETRY,
            "several FrameOfReferenceUIDs in one series: its positions cannot be compared",
        )


def _text(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"


def _increment(slices: Sequence[Slice], limits: Limits) -> float:
    """The median distance between slices, in mm; none lacks, none is there twice."""
    if len(slices) < limits.min_slices:
        raise Refused(
            Code.TOO_FEW_SLICES, f"{len(slices)} slices; expected {limits.min_slices} or more"
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


def _shift(placed: np.ndarray, limits: Limits) -> Vector:
    """How far slices move sideways: evenly, as a tilted gantry makes them, or it is an error."""
    shifts = np.diff(placed[:, :2], axis=0)
    median = np.median(shifts, axis=0)
    off = float(np.abs(shifts - median).max())
    if off > limits.position_mm:
        raise Refused(
            Code.CONTRADICTORY_GEOMETRY,
            f"a slice lies {off:.2f} mm beside the line of the others; expected within "
            f"{limits.position_mm:g} mm",
        )
    return tuple(map(float, median))


class SliceReader:
    """Yields the slices of a series as int16 HU, (rows, columns), and takes note of what it did.

    Attributes:
        clipped: pixels above the largest HU that int16 holds, set to it.
        padded: pixels of padding whose value was above air, set to air.
        rounded: whether HU were not whole numbers and were rounded to the nearest.
    """

    def __init__(self, root: Path, series: Series) -> None:
        self._root = root
        self._series = series
        self._flat: list[bool] = []
        self.clipped = 0
        self.padded = 0
        self.rounded = False

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read, one slice in memory at a time.

        Raises:
            Refused: a file cannot be decoded, or slices between others are of one value.
        """
        for path, items in groupby(self._series.slices, key=attrgetter("path")):
            images = self._read(path, [item.frame for item in items])
            while (image := self._next(images, path)) is not None:
                self._flat.append(bool(image.min() == image.max()))
                yield image
        self._check_content()

    def _next(self, images: Iterator[np.ndarray], path: str) -> np.ndarray | None:
        try:
            return next(images, None)
        except Refused as refused:
            raise Refused(refused.code, refused.reason, (path,)) from refused
        except Exception as error:  # decoders raise anything on damaged data
            reason = f"the pixels of a slice cannot be decoded ({type(error).__name__})"
            raise Refused(Code.UNREADABLE, reason, (path,)) from error

    def _read(self, path: str, frames: Sequence[int]) -> Iterator[np.ndarray]:
        """HU of the frames of one file, in the order asked for."""
        header = open_header(self._root / path)
        own = header.get("PerFrameFunctionalGroupsSequence")
        if own is None:
            yield self._to_hu(header.pixel_array, header, header)
            return
        shared = header.get("SharedFunctionalGroupsSequence") or (None,)
        stored = iter_pixels(self._root / path, indices=frames)
        for frame, image in zip(frames, stored, strict=True):
            rescale = macro(own[frame], shared[0], "PixelValueTransformationSequence")
            yield self._to_hu(image, header, rescale if rescale is not None else Header())

    def _to_hu(self, stored: np.ndarray, header: Header, rescale: Header) -> np.ndarray:
        """HU = slope x stored value + intercept (DICOM PS3.3 C.11.1.1.2); padding is air."""
        if stored.shape != (self._series.rows, self._series.columns):
            raise Refused(
                Code.UNREADABLE,
                f"decoded to a shape of {stored.shape}, the header says "
                f"{self._series.rows} x {self._series.columns}",
            )
        try:
            slope, intercept = float(rescale.RescaleSlope), float(rescale.RescaleIntercept)
        except (AttributeError, TypeError, ValueError) as error:
            raise Refused(
                Code.NOT_HU, "RescaleSlope or RescaleIntercept is absent in a frame"
            ) from error
        hu = self._scaled(_measured(stored, header), slope, intercept)
        padding = _padding(stored, header)
        if padding is not None:
            self.padded += int(np.count_nonzero(hu[padding] > AIR))
            hu[padding] = AIR
        if hu.max() > _LARGEST:
            self.clipped += int(np.count_nonzero(hu > _LARGEST))
        return np.clip(hu, AIR, _LARGEST, out=hu).astype(np.int16)

    def _scaled(self, measured: np.ndarray, slope: float, intercept: float) -> np.ndarray:
        if slope.is_integer() and intercept.is_integer():
            largest = float(2 ** (8 * measured.itemsize)) * abs(slope) + abs(intercept)
            hu = measured.astype(np.int32 if largest < 2**31 else np.int64)
            if slope != 1:
                hu *= int(slope)
            hu += int(intercept)
            return hu
        exact = measured * slope + intercept
        hu = np.rint(exact)
        self.rounded = self.rounded or bool(np.abs(hu - exact).max() > 1e-6)
        return hu

    def _check_content(self) -> None:
        body = [i for i, flat in enumerate(self._flat) if not flat]
        if not body:
            raise Refused(Code.ZERO_VARIANCE, f"all {len(self._flat)} slices are of one value each")
        # Beyond the body a slice may be all air; between slices of the body it is a defect.
        inside = [i for i in range(body[0], body[-1]) if self._flat[i]]
        if inside:
            at = ", ".join(f"{self._series.slices[i].position:g}" for i in inside[:_SHOWN_FILES])
            raise Refused(
                Code.ZERO_VARIANCE,
                f"{len(inside)} slices between others are of one value each, at {at} mm",
                tuple(self._series.slices[i].path for i in inside[:_SHOWN_FILES]),
            )


def open_header(file: Path) -> Header:
    """What decoding needs of a file, also of one without preamble and meta header."""
    header = pydicom.dcmread(file, force=True, defer_size="1 MB", specific_tags=_DECODING)
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        native = {(True, True): ImplicitVRLittleEndian, (False, True): ExplicitVRLittleEndian}
        header.file_meta.TransferSyntaxUID = native.get((implicit, little), ExplicitVRBigEndian)
    return header


def _padding(stored: np.ndarray, header: Header) -> np.ndarray | None:
    """Pixels that hold no measurement: PixelPaddingValue (0028,0120), up to RangeLimit."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return None
    limit = header.get("PixelPaddingRangeLimit", value)
    # Written with the wrong sign by some: -2000 stands as 63536 and the other way round.
    first, last = sorted(np.array([value, limit]).astype(stored.dtype))
    return (stored >= first) & (stored <= last)


def _measured(stored: np.ndarray, header: Header) -> np.ndarray:
    """The bits of the pixel that are measurement, where overlays or shifts share its word."""
    bits, high = header.BitsStored, header.HighBit
    overlaid = any(header.get(tag) is not None and header[tag].value for tag in _OVERLAYS)
    if high == bits - 1 and not overlaid:
        return stored
    width = stored.dtype.itemsize * 8
    # Left to the top and back again: an arithmetic shift extends the sign.
    return (stored << (width - 1 - high)) >> (width - bits)
