"""The images of a header: how many, where they lie, and how their stored values become HU."""

import math
import struct
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.multival import MultiValue

from storage.dicom.attributes import Group

Vector = tuple[float, ...]

# Bytes of the tag and the length of a fragment.
_ITEM = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one image lies and how its stored values become HU.

    Attributes:
        position: ImagePositionPatient in mm. None, as for the others, when absent or no numbers.
        orientation: ImageOrientationPatient, two direction cosines.
        spacing: PixelSpacing (row, column) in mm.
        rescale: RescaleSlope and RescaleIntercept.
    """

    position: Vector | None
    orientation: Vector | None
    spacing: Vector | None
    rescale: Vector | None


@dataclass(frozen=True, slots=True)
class Stored:
    """How the pixels of a file are stored, and which bits and values are measurement.

    Attributes:
        offset: byte at which uncompressed little-endian pixels begin; None where a decoder is
            to be asked.
        dtype: of such pixels, as `<i2`.
        bits, high: BitsStored and HighBit.
        padding: PixelPaddingValue and PixelPaddingRangeLimit (the value again, if absent).
    """

    offset: int | None
    dtype: str
    bits: int
    high: int
    padding: tuple[int, int] | None


def stored(header: Group, offset: int | None) -> Stored:
    """How the pixels are stored that begin at `offset`."""
    size = int(header.get("BitsAllocated") or 0) // 8
    bits = int(header.get("BitsStored") or 8 * size)
    value = header.get("PixelPaddingValue")
    limit = header.get("PixelPaddingRangeLimit")
    kind = "i" if header.get("PixelRepresentation") else "u"
    return Stored(
        offset=offset,
        dtype=f"{'<' if size > 1 else '|'}{kind}{size}",
        bits=bits,
        high=int(header.get("HighBit") or bits - 1),
        padding=(value, limit if isinstance(limit, int) else value)
        if isinstance(value, int)
        else None,
    )


def numbers(source: Group | None, keyword: str, count: int) -> Vector | None:
    """`count` finite numbers of a decimal string; None when absent or anything else."""
    try:
        value = source.get(keyword) if source is not None else None
        values = tuple(float(v) for v in (value if isinstance(value, MultiValue) else (value,)))
    except (ValueError, TypeError):
        return None
    good = len(values) == count and all(map(math.isfinite, values))
    return values if good else None


def rescale(group: Group | None) -> Vector | None:
    """RescaleSlope and RescaleIntercept; None unless both are numbers."""
    slope = numbers(group, "RescaleSlope", 1)
    intercept = numbers(group, "RescaleIntercept", 1)
    return (*slope, *intercept) if slope and intercept else None


def rescale_groups(header: Group) -> list[Group | None]:
    """What holds slope and intercept: the header itself, or a functional group of each frame."""
    return _macros(header, "PixelValueTransformationSequence")


def frames(header: Group) -> tuple[Frame, ...]:
    """One of a plain image, or one for each frame of an Enhanced one."""
    groups = zip(
        _macros(header, "PlanePositionSequence"),
        _macros(header, "PlaneOrientationSequence"),
        _macros(header, "PixelMeasuresSequence"),
        rescale_groups(header),
        strict=True,
    )
    return tuple(
        Frame(
            numbers(position, "ImagePositionPatient", 3),
            numbers(orientation, "ImageOrientationPatient", 6),
            numbers(measures, "PixelSpacing", 2),
            rescale(values),
        )
        for position, orientation, measures, values in groups
    )


def holders(header: Group, attribute: str, *macros: str) -> list[Group | None]:
    """What holds an attribute: a functional group of each frame, else the header.

    Args:
        macros: sequences of the functional groups that may hold it; the first that does speaks.
    """
    for keyword in macros:
        groups = _macros(header, keyword)
        if any(group is not None and group.get(attribute) for group in groups):
            return groups
    return [header]


def _macros(header: Group, keyword: str) -> list[Group | None]:
    """What holds the attributes of a functional group, for each frame.

    The header itself, if it has no frames; the item of the frame, or the one that all share.
    """
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        return [header]
    shared = (header.get("SharedFunctionalGroupsSequence") or (None,))[0]
    common = (shared.get(keyword) if shared is not None else None) or (None,)
    return [(own.get(keyword) or common)[0] for own in per_frame]


def count_frames(stream: BinaryIO) -> int | None:
    """How many frames begin in compressed pixels; None if one fragment does not follow another.

    A frame may go over several fragments (DICOM PS3.5 A.4): counted are those that begin as an
    image of JPEG, JPEG-LS, JPEG 2000 or RLE does, which no later part of an image can.

    Args:
        stream: behind the tag and length of the pixels.
    """
    try:
        parse_basic_offsets(stream)
        _, fragments = parse_fragments(stream)
    except (ValueError, struct.error):
        return None
    count = 0
    for fragment in fragments:
        stream.seek(fragment + _ITEM)
        start = stream.read(8)
        run_length = int.from_bytes(start[:4], "little") <= 15 and start[4:] == b"@\0\0\0"
        count += run_length or start.startswith((b"\xff\xd8", b"\xff\x4f\xff\x51"))
    return count
