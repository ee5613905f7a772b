"""The images of a source series as a derived one needs them: attributes, stored values, padding.

Of Enhanced CT, each frame becomes an image of its own with the attributes that a classic one has
(functional groups of DICOM PS3.3 C.7.6.16 and C.8.15.3).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from storage.dicom.pixels import check_unchanged, measured, padding_mask, padding_range
from storage.dicom.series import Series, Slice
from storage.hounsfield import AIR

_LARGEST = np.iinfo(np.int16).max
_NOT_OF_A_CLASSIC_IMAGE = {
    "FrameContentSequence",
    "CTImageFrameTypeSequence",
    "ConversionSourceAttributesSequence",
    "DerivationImageSequence",
    "ReferencedImageSequence",
}
"""Functional groups that describe the frame as a frame, or hold references rather than values."""
_CLASSIC_NAMES = {
    "ExposureTimeInms": "ExposureTime",
    "XRayTubeCurrentInmA": "XRayTubeCurrent",
    "ExposureInmAs": "Exposure",
}
"""Attributes of Enhanced CT, and those of a classic one that hold the same as whole numbers."""


@dataclass(frozen=True)
class SourceImage:
    """An image of the source series.

    Attributes:
        item: where it stands in the series, and how its values become HU.
        header: a classic image's attributes; those of a frame of an Enhanced one, flattened.
        sop_class, instance: of the file.
        frames: how many images the file has.
        stored: its stored values, only the bits that are measurement; (rows, columns).
        padding: where they are none; there `stored` is the whole word.
    """

    item: Slice
    header: Dataset
    sop_class: str
    instance: str
    frames: int
    stored: NDArray[np.integer]
    padding: NDArray[np.bool_]


def source_images(
    root: Path, series: Series, words: Iterable[NDArray[np.integer]]
) -> Iterator[SourceImage]:
    """Yield the images of a series, one in memory at a time, with all their attributes.

    Args:
        words: what each slice stores, all bits.

    Raises:
        Refusal: a file is another by now.
    """
    path, file = None, Dataset()
    for item, raw in zip(series.slices, words, strict=True):
        if item.path != path:
            path = item.path
            check_unchanged(item, (root / path).stat())
            file = pydicom.dcmread(root / path, stop_before_pixels=True, force=True)
        several = "PerFrameFunctionalGroupsSequence" in file
        padding = padding_mask(raw, item)
        yield SourceImage(
            item=item,
            header=flattened(file, item.frame) if several else file,
            sop_class=str(file.SOPClassUID),
            instance=str(file.SOPInstanceUID),
            frames=int(file.get("NumberOfFrames") or 1),
            stored=np.where(padding, raw, measured(raw, item)),
            padding=padding,
        )


def flattened(file: Dataset, frame: int) -> Dataset:
    """The attributes of one frame of an Enhanced image, as a classic image has them."""
    shared = (file.get("SharedFunctionalGroupsSequence") or [])[:1]
    flat = Dataset()
    for element in file:
        if not element.keyword.endswith("FunctionalGroupsSequence"):
            flat[element.tag] = element
    for group in (*shared, file.PerFrameFunctionalGroupsSequence[frame]):
        for element in _values_of(group):
            flat[element.tag] = element
    for name, classic in _CLASSIC_NAMES.items():
        if name in flat:
            if flat[name].value is not None:
                setattr(flat, classic, round(flat[name].value))
            del flat[name]
    content = file.PerFrameFunctionalGroupsSequence[frame].get("FrameContentSequence")
    acquisition = content[0].get("FrameAcquisitionNumber") if content else None
    # It may be empty in a classic image, but it must be there.
    flat.AcquisitionNumber = flat.get("AcquisitionNumber", acquisition)
    # Of an image that was cut into several files, frames count on.
    flat.InstanceNumber = int(file.get("ConcatenationFrameOffsetNumber") or 0) + frame + 1
    return flat


def _values_of(group: Dataset) -> Iterator[DataElement]:
    """The attributes of a functional group that describe the image."""
    for macro in group:
        if macro.keyword == "RealWorldValueMappingSequence":
            yield macro
        elif macro.VR == "SQ" and macro.value and macro.keyword not in _NOT_OF_A_CLASSIC_IMAGE:
            yield from macro.value[0]


def changed_values(
    source: SourceImage, before: NDArray[np.int16], after: NDArray[np.int16]
) -> NDArray[np.integer]:
    """The source's stored values plus the change in HU, within what its bits hold.

    Padding, and what lies beyond the HU that are read (storage.dicom.pixels), stays as it was: no
    model has seen it.

    Args:
        before, after: the slice in HU as it was read, and restored.
    """
    slope, intercept = source.item.rescale
    stored = source.stored.astype(np.int64)
    hu = slope * stored + intercept
    change = np.rint((after.astype(np.float64) - before) / slope).astype(np.int64)
    lowest, highest = stored_range(source.item)
    values = np.clip(stored + change, lowest, highest)
    bounds = padding_range(source.item, source.stored.dtype)
    if bounds is not None:
        # Measurement must not read as padding; the value beside it is a fraction of the noise off.
        beside = bounds[1] + 1 if bounds[1] < highest else bounds[0] - 1
        values = np.where((values >= bounds[0]) & (values <= bounds[1]), beside, values)
    unseen = source.padding | (hu < AIR) | (hu > _LARGEST)
    return np.where(unseen, stored, values).astype(source.stored.dtype)


def stored_range(item: Slice) -> tuple[int, int]:
    """The least and largest value that the bits of a slice hold."""
    bits, signed = item.stored.bits, item.stored.dtype.lstrip("<|").startswith("i")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
