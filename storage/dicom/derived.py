"""Restored slices -> a derived CT series beside its source: classic CT Image instances.

Everything that is not named here is copied from the source. Attributes follow DICOM PS3.3 C.7.6.1
(general image), C.8.2.1 (CT image), C.7.6.16 of Enhanced images flattened, and IHE AIR 6.5.3 for
the equipment of an algorithm. Stored values are the source's plus the change in HU by its own
rescale, so that what did not change keeps its bits, and padding stays padding.
"""

import copy
import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import Code as CodedConcept
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from storage.dicom.judgement import OWN
from storage.dicom.pixels import measured, padding_mask
from storage.dicom.series import Slice

MANUFACTURER = "HQINet"
"""Ours, at the top of an instance and in its equipment item; who reads it again knows its own."""
NUMBER_OFFSET = 1000
_SCHEME = "99HQINET"
_DESCRIPTION_LENGTH = 64
_DERIVATION_LENGTH = 1024
_DROPPED = (
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "OriginalAttributesSequence",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "NumberOfFrames",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
    "ConcatenationUID",
)
_DROPPED_GROUPS = (0x5000, 0x6000)
"""Curves and overlays: drawn for other pixels. Every second group up to 1E."""
SYNTAXES: dict[str, UID] = {"jpeg-ls": JPEGLSLossless, "rle": RLELossless}


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """What made the pixels, as every instance of a series says it.

    Attributes:
        model: name and version for people, as `3` or `starter`.
        identity: digest of the model's file, hex.
        software: version of the code.
        options: what else decides on the pixels, in one canonical text.
        description: for DerivationDescription.
        contribution: the way back to the training data, for ContributionDescription.
        time: when the restoration began.
        compression: a key of SYNTAXES; None: explicit little endian.
        keep_manufacturer: leave the scanner's at the top, for sites that hang by vendor.
        keep_private: leave private attributes.
    """

    model: str
    identity: str
    software: str
    options: str
    description: str
    contribution: str
    time: datetime
    compression: str | None = None
    keep_manufacturer: bool = False
    keep_private: bool = False

    def series_uid(self, source: str) -> UID:
        """SeriesInstanceUID of what becomes of a source series."""
        return derived_uid("series", source, self.identity, self.options)

    def instance_uid(self, source: str, frame: int, pixels: bytes) -> UID:
        """SOPInstanceUID of an instance; other pixels never get the same one (C.7.6.1.1.2)."""
        digest = hashlib.sha256(pixels).hexdigest()
        return derived_uid("instance", source, str(frame), self.identity, self.options, digest)


def derived_uid(*parts: str) -> UID:
    """A UID of the `2.25` root (PS3.5 B.2) that equal parts give again."""
    digest = bytearray(hashlib.sha256("\0".join(parts).encode()).digest()[:16])
    # As a UUID of version 8 (RFC 9562): free content.
    digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


@dataclass(frozen=True)
class SourceImage:
    """An image of the source series with what a derived one needs of it.

    Attributes:
        header: a classic image's attributes; those of a frame of an Enhanced one, flattened.
        sop_class, instance: of the file.
        frame: within the file, from 0.
        frames: how many the file has.
        stored: its stored values, only the bits that are measurement; (rows, columns).
        padding: where they are none.
    """

    header: Dataset
    sop_class: str
    instance: str
    frame: int
    frames: int
    stored: NDArray[np.integer]
    padding: NDArray[np.bool_]


def read_source(root: Path, item: Slice) -> SourceImage:
    """Read an image of a series again, all of its attributes and its stored values."""
    file = pydicom.dcmread(root / item.path, force=True)
    if "TransferSyntaxUID" not in file.file_meta:
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.pixel_array_options(correct_unused_bits=False)
    frames = int(file.get("NumberOfFrames") or 1)
    raw = file.pixel_array if frames == 1 else file.pixel_array[item.frame]
    header = flattened(file, item.frame) if "PerFrameFunctionalGroupsSequence" in file else file
    return SourceImage(
        header=header,
        sop_class=str(file.SOPClassUID),
        instance=str(file.SOPInstanceUID),
        frame=item.frame,
        frames=frames,
        stored=measured(raw, item),
        padding=padding_mask(raw, item),
    )


def flattened(file: Dataset, frame: int) -> Dataset:
    """The attributes of one frame of an Enhanced image, as a classic image has them."""
    header = copy.copy(file)
    shared = (file.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    own = file.PerFrameFunctionalGroupsSequence[frame]
    flat = Dataset()
    for element in header:
        if element.keyword not in ("PixelData", "PerFrameFunctionalGroupsSequence"):
            flat[element.tag] = element
    for group in (shared, own):
        for sequence in group:
            if sequence.VR == "SQ" and sequence.value:
                for element in sequence.value[0]:
                    flat[element.tag] = element
    flat.InstanceNumber = frame + 1
    return flat


def changed_values(
    source: SourceImage, item: Slice, before: NDArray[np.int16], after: NDArray[np.int16]
) -> NDArray[np.integer]:
    """The source's stored values plus the change in HU, within what its bits hold.

    Args:
        before, after: the slice in HU as it was read, and restored.
    """
    slope, _ = item.rescale
    change = np.rint((after.astype(np.float64) - before) / slope)
    lowest, highest = stored_range(item)
    values = np.clip(source.stored.astype(np.int64) + change.astype(np.int64), lowest, highest)
    if item.stored.padding is not None:
        # Measurement must not read as padding; the value beside it is a fraction of the noise off.
        first, last = sorted(item.stored.padding)
        towards = last + 1 if last < highest else first - 1
        values = np.where((values >= first) & (values <= last), towards, values)
    return np.where(source.padding, source.stored, values).astype(source.stored.dtype)


def stored_range(item: Slice) -> tuple[int, int]:
    """The least and largest value that the bits of a slice hold."""
    bits, signed = item.stored.bits, item.stored.dtype.lstrip("<|").startswith("i")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def derived_instance(
    source: SourceImage,
    item: Slice,
    values: NDArray[np.integer],
    derivation: Derivation,
    references: Dataset,
) -> Dataset:
    """One instance of the derived series.

    Args:
        values: to be stored, (rows, columns), of the source's type.
        references: the item of ReferencedSeriesSequence, of `referenced_series`.
    """
    image = Dataset()
    for element in source.header:
        if element.keyword not in _DROPPED and not _of_dropped_group(element.tag.group):
            image[element.tag] = copy.deepcopy(element)
    if not derivation.keep_private:
        image.remove_private_tags()
    _describe_pixels(image, item, values)
    _describe_image(image, source, derivation)
    _describe_series(image, source, derivation, references)
    _describe_equipment(image, source, derivation)
    _encode(image, derivation.compression)
    return image


def referenced_series(series: str, images: list[tuple[str, str]]) -> Dataset:
    """The item that names a source series: SOP class and UID of each of its files."""
    item = Dataset()
    item.SeriesInstanceUID = series
    item.ReferencedInstanceSequence = Sequence(
        [_reference(sop_class, instance) for sop_class, instance in dict.fromkeys(images)]
    )
    return item


def _of_dropped_group(group: int) -> bool:
    return any(start <= group <= start + 0x1E for start in _DROPPED_GROUPS)


def _describe_pixels(image: Dataset, item: Slice, values: NDArray[np.integer]) -> None:
    stored = values.astype(values.dtype.newbyteorder("<"))
    image.Rows, image.Columns = values.shape
    image.BitsAllocated = 8 * values.dtype.itemsize
    image.BitsStored, image.HighBit = item.stored.bits, item.stored.bits - 1
    image.PixelRepresentation = int(values.dtype.kind == "i")
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.RescaleSlope, image.RescaleIntercept = _decimal(item.rescale)
    if not image.get("RescaleType"):
        image.RescaleType = "HU"
    image.PixelData = stored.tobytes()
    image["PixelData"].VR = "OW"


def _decimal(values: tuple[float, ...]) -> list[str]:
    return [f"{value:.10g}" for value in values]


def _describe_image(image: Dataset, source: SourceImage, derivation: Derivation) -> None:
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = derivation.instance_uid(source.instance, source.frame, image.PixelData)
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL", OWN]
    image.InstanceCreationDate = image.ContentDate = derivation.time.strftime("%Y%m%d")
    image.InstanceCreationTime = image.ContentTime = derivation.time.strftime("%H%M%S")
    image.DerivationDescription = derivation.description[:_DERIVATION_LENGTH]
    image.DerivationCodeSequence = Sequence(
        [_code(CodedConcept("NOISE_REDUCTION", _SCHEME, "Noise reduction by a neural network"))]
    )
    reference = _reference(source.sop_class, source.instance)
    if source.frames > 1:
        reference.ReferencedFrameNumber = source.frame + 1
    reference.SpatialLocationsPreserved = "YES"
    reference.PurposeOfReferenceCodeSequence = Sequence(
        [_code(CodedConcept("121322", "DCM", "Source image for image processing operation"))]
    )
    image.SourceImageSequence = Sequence([reference])
    image.ContentQualification = "RESEARCH"
    image.ImageComments = "NOT FOR DIAGNOSTIC USE"
    if not image.get("BurnedInAnnotation"):
        image.BurnedInAnnotation = "NO"


def _describe_series(
    image: Dataset, source: SourceImage, derivation: Derivation, references: Dataset
) -> None:
    image.SeriesInstanceUID = derivation.series_uid(str(source.header.SeriesInstanceUID))
    image.SeriesNumber = int(source.header.get("SeriesNumber") or 0) + NUMBER_OFFSET
    name = f"HQINet {derivation.model} {source.header.get('SeriesDescription') or ''}"
    image.SeriesDescription = name.strip()[:_DESCRIPTION_LENGTH]
    image.SeriesDate = derivation.time.strftime("%Y%m%d")
    image.SeriesTime = derivation.time.strftime("%H%M%S")
    image.ReferencedSeriesSequence = Sequence([copy.deepcopy(references)])


def _describe_equipment(image: Dataset, source: SourceImage, derivation: Derivation) -> None:
    scanner = _equipment(CodedConcept("109101", "DCM", "Acquisition Equipment"))
    for keyword in (
        "Manufacturer",
        "ManufacturerModelName",
        "StationName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "InstitutionName",
    ):
        value = source.header.get(keyword)
        if value:
            setattr(scanner, keyword, value)
    scanner.Manufacturer = scanner.get("Manufacturer") or "unknown"
    ours = _equipment(CodedConcept("109102", "DCM", "Processing Equipment"))
    ours.Manufacturer = MANUFACTURER
    ours.ManufacturerModelName = f"HQINet {derivation.model}"
    ours.SoftwareVersions = derivation.software
    ours.DeviceUID = derived_uid("device", derivation.identity)
    ours.ContributionDateTime = derivation.time.strftime("%Y%m%d%H%M%S")
    ours.ContributionDescription = derivation.contribution[:_DERIVATION_LENGTH]
    before = list(image.get("ContributingEquipmentSequence") or [])
    image.ContributingEquipmentSequence = Sequence([*before, scanner, ours])
    if not derivation.keep_manufacturer:
        image.Manufacturer = MANUFACTURER
        image.ManufacturerModelName = ours.ManufacturerModelName
        image.SoftwareVersions = derivation.software
        # Serial number and station are the scanner's, and stand in its item.
        for keyword in ("DeviceSerialNumber", "StationName"):
            if keyword in image:
                delattr(image, keyword)


def _equipment(purpose: CodedConcept) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([_code(purpose)])
    return item


def _code(concept: CodedConcept) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = concept.value, concept.scheme_designator
    item.CodeMeaning = concept.meaning
    return item


def _reference(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _encode(image: Dataset, compression: str | None) -> None:
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if compression is not None:
        # The UID was made of the pixels; compression changes none of them.
        image.compress(SYNTAXES[compression], generate_instance_uid=False)
