"""The pixels of an ordered series -> HU, a slice at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import iter_pixels
from pydicom.uid import ExplicitVRBigEndian

from storage.dicom.series import Series, Slice
from storage.hounsfield import AIR, is_flat
from storage.refusals import SHOWN_FILES, Code, Refusal

_LARGEST = np.iinfo(np.int16).max


class HuDecoder:
    """Yields the slices of a series as int16 HU, (rows, columns), and takes note of what it did.

    Attributes:
        clipped: pixels above the largest HU that int16 holds, set to it.
        padded: pixels of padding whose value was above air, set to air.
        rounded: whether HU were not whole numbers and were rounded to the nearest.
    """

    def __init__(
        self, root: Path, series: Series, keep: Callable[[np.ndarray], None] | None = None
    ) -> None:
        """`keep`: is given what the file of each slice stores, all bits, (rows, columns)."""
        self._root = root
        self._series = series
        self._keep = keep
        self._flat: list[int | None] = []
        self.clipped = 0
        self.padded = 0
        self.rounded = False

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read, one slice in memory at a time.

        Raises:
            Refusal: a file cannot be decoded or is another by now, or slices between others are
                of one value.
            OSError, MemoryError: disk or memory failed; the file may be well.
        """
        for item, stored in stored_slices(self._root, self._series):
            if self._keep is not None:
                self._keep(stored)
            hu = self._to_hu(stored, item)
            self._flat.append(int(hu[0, 0]) if is_flat(hu) else None)
            yield hu
        self._check_content()

    def _to_hu(self, stored: np.ndarray, item: Slice) -> np.ndarray:
        """HU = slope x stored value + intercept (DICOM PS3.3 C.11.1.1.2); padding is air."""
        hu = self._scaled(measured(stored, item), *item.rescale)
        if item.stored.padding is not None:
            padding = padding_mask(stored, item)
            self.padded += int(np.count_nonzero(hu[padding] > AIR))
            hu[padding] = AIR
        lowest, highest = hu.min(), hu.max()
        if highest > _LARGEST:
            self.clipped += int(np.count_nonzero(hu > _LARGEST))
        if lowest < AIR or highest > _LARGEST:
            np.clip(hu, AIR, _LARGEST, out=hu)
        return hu.astype(np.int16, copy=False)

    def _scaled(self, values: np.ndarray, slope: float, intercept: float) -> np.ndarray:
        if not (slope.is_integer() and intercept.is_integer()):
            exact = values * slope + intercept
            hu = np.rint(exact)
            self.rounded = self.rounded or bool(np.abs(hu - exact).max() > 1e-6)
            return hu
        kind = _narrowest(values, int(slope), int(intercept))
        hu = values.astype(kind)
        if slope != 1:
            hu *= kind(slope)
        hu += kind(intercept)
        return hu

    def _check_content(self) -> None:
        slices = self._series.slices
        body = [i for i, flat in enumerate(self._flat) if flat is None]
        if not body:
            raise Refusal(
                Code.ZERO_VARIANCE,
                f"all {len(slices)} slices are of one value each, the first of {self._flat[0]} HU",
                tuple(item.path for item in slices[:SHOWN_FILES]),
            )
        # Beyond the body a slice may be all air; between slices of the body it is a defect.
        inside = [i for i in range(body[0], body[-1]) if self._flat[i] is not None]
        if inside:
            first = inside[0]
            position = self._series.geometry.positions[first]
            raise Refusal(
                Code.ZERO_VARIANCE,
                f"{len(inside)} of {len(slices)} slices lie between others and are of one value "
                f"each, the first of {self._flat[first]} HU at {position:g} mm",
                tuple(slices[i].path for i in inside[:SHOWN_FILES]),
            )


def stored_slices(root: Path, series: Series) -> Iterator[tuple[Slice, np.ndarray]]:
    """Yield the slices of a series, each with what its file stores: (rows, columns), all bits.

    Raises:
        Refusal: a file cannot be decoded or is another by now.
        OSError, MemoryError: disk or memory failed; the file may be well.
    """
    shape = series.rows, series.columns
    for path, group in groupby(series.slices, key=attrgetter("path")):
        slices = list(group)
        images = _decode(root / path, slices, shape[0] * shape[1])
        for item in slices:
            yield item, _next(images, path, shape)


def _decode(file: Path, slices: Sequence[Slice], count: int) -> Iterator[np.ndarray]:
    """Stored values of the slices of one file, `count` of each."""
    stored = slices[0].stored
    if stored.offset is not None:
        # By far the most CT is uncompressed: reading it needs no second look at the header.
        with file.open("rb") as stream:
            check_unchanged(slices[0], os.fstat(stream.fileno()))
            for item in slices:
                start = stored.offset + item.frame * count * np.dtype(stored.dtype).itemsize
                stream.seek(start)
                yield np.fromfile(stream, stored.dtype, count)
        return
    check_unchanged(slices[0], file.stat())
    if len(slices) == 1 and slices[0].frame == 0:
        header = _open(file)
        header.pixel_array_options(correct_unused_bits=False)
        yield header.pixel_array
    else:
        frames = [item.frame for item in slices]
        yield from iter_pixels(file, indices=frames, correct_unused_bits=False)


def _next(images: Iterator[np.ndarray], path: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        return next(images).reshape(shape)
    except (OSError, MemoryError, Refusal):
        # Of this machine or moment, not of the file: tried again in the next ingest.
        raise
    except Exception as error:  # decoders raise anything on damaged data
        reason = (
            f"the pixels of a slice cannot be decoded to {shape[0]} x {shape[1]}: damaged or "
            "cut off"
        )
        raise Refusal(Code.UNREADABLE, reason, (path,)) from error


def check_unchanged(item: Slice, status: os.stat_result) -> None:
    """Raise Refusal unless a file is the one whose header was read: it may still be on its way."""
    if (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
        raise Refusal(
            Code.FILE_CHANGED,
            f"a file of {item.size} bytes when its header was read has {status.st_size} bytes or "
            "another time by now: ingest again when the delivery is complete",
            (item.path,),
        )


def _narrowest(values: np.ndarray, slope: int, intercept: int) -> type[np.signedinteger]:
    """The narrowest integer that holds values, factors and results: half the memory, twice as fast.

    Raises:
        Refusal: none does, as with no image that is CT.
    """
    ends = int(values.min()), int(values.max())
    reached = [slope, intercept, *ends]
    reached += [end * slope for end in ends] + [end * slope + intercept for end in ends]
    for kind in (np.int16, np.int32, np.int64):
        limits = np.iinfo(kind)
        if limits.min <= min(reached) and max(reached) <= limits.max:
            return kind
    raise Refusal(
        Code.NOT_HU, f"stored values {ends} with slope {slope} and intercept {intercept}: no CT"
    )


def _open(file: Path) -> pydicom.Dataset:
    """A data set to be decoded, also from a file without preamble and meta header."""
    header = pydicom.dcmread(file, force=True, defer_size="1 MB")
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    return header


def padding_mask(stored: np.ndarray, item: Slice) -> np.ndarray:
    """Pixels that hold no measurement: PixelPaddingValue (0028,0120), up to RangeLimit."""
    bounds = padding_range(item, stored.dtype)
    if bounds is None:
        return np.zeros(stored.shape, bool)
    return (stored >= bounds[0]) & (stored <= bounds[1])


def padding_range(item: Slice, dtype: np.dtype) -> tuple[int, int] | None:
    """The least and largest stored value that is padding, in words of a type; None without."""
    if item.stored.padding is None:
        return None
    # Written with the wrong sign by some: -2000 stands as 63536 and the other way round.
    first, last = sorted(np.array(item.stored.padding).astype(dtype).tolist())
    return first, last


def measured(values: np.ndarray, item: Slice) -> np.ndarray:
    """The bits of the pixel that are measurement, whatever the rest of its word holds.

    Raises:
        Refusal: bits below the lowest of them are used, so HighBit is wrong.
    """
    bits, high = item.stored.bits, item.stored.high
    width, lowest = values.dtype.itemsize * 8, high + 1 - bits
    if bits == width:
        return values
    # Above them overlays may stand; values that do not begin at bit 0 are left-aligned, as old
    # files have them, and then nothing is below.
    if lowest and (values & ((1 << lowest) - 1)).any():
        raise Refusal(
            Code.UNSUPPORTED_PIXELS,
            f"BitsStored {bits} up to HighBit {high}, and values in the bits below; "
            f"expected HighBit {bits - 1}",
            (item.path,),
        )
    # Left to the top and back again: an arithmetic shift extends the sign.
    return (values << (width - 1 - high)) >> (width - bits)
