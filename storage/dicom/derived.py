"""Restored slices -> a derived CT series beside its source: classic CT Image instances.

Everything that is not named here is copied from the source. Attributes follow DICOM PS3.3 C.7.6.1
(general image), C.8.2.1 (CT image), and IHE AIR 6.5.3 for the equipment of an algorithm.
"""

import copy
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from storage.dicom.attributes import text
from storage.dicom.judgement import OWN
from storage.dicom.source_images import SourceImage

MANUFACTURER = "HQINet"
"""Ours, at the top of an instance and in its equipment item; who reads it again knows its own."""
NUMBER_OFFSET = 1000
_SCHEME = "99HQINET"
_DESCRIPTION_LENGTH = 64
_DERIVATION_LENGTH = 1024
_DROPPED = (
    "PixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "InstanceCreatorUID",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "NumberOfFrames",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
    "DimensionOrganizationType",
    "ConcatenationUID",
    "ConcatenationFrameOffsetNumber",
    "InConcatenationNumber",
    "InConcatenationTotalNumber",
    "SOPInstanceUIDOfConcatenationSource",
)
_OF_THE_SCANNER = (
    "ManufacturerModelName",
    "StationName",
    "DeviceSerialNumber",
    "DeviceUID",
    "UDISequence",
    "SoftwareVersions",
)
"""Which is no longer the equipment at the top of an instance; they stand in the scanner's item."""
_DROPPED_GROUPS = (0x5000, 0x6000)
"""Curves and overlays: drawn for other pixels. Every second group up to 1E."""
SYNTAXES: dict[str, UID] = {"jpeg-ls": JPEGLSLossless, "rle": RLELossless}


def series_uid(source: str, images: Iterable[str], identity: str, options: str) -> UID:
    """SeriesInstanceUID of what a model makes of images of a source series with some options.

    Other images make another series: restored with an image that came late, its neighbours have
    other pixels and so other SOPInstanceUIDs, and one series would hold both at one position.

    images: their SOPInstanceUIDs, in any order; a file of several frames names its own once.
    """
    return derived_uid("series", source, *sorted(set(images)), identity, options)


class CodedConcept(NamedTuple):
    """A code and what it means (PS3.3 8.8); pydicom's own brings a dictionary of all there are."""

    value: str
    scheme_designator: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """What made the pixels, as every instance of a series says it.

    Attributes:
        series: SeriesInstanceUID of the derived series, of `series_uid`.
        model: name and version for people, as `3` or `starter`.
        identity: digest of the model's file, hex.
        software: version of the code.
        options: what else decides on an instance, in one canonical text.
        description: for DerivationDescription.
        contribution: the way back to the training data, for ContributionDescription.
        time: when the restoration began; with its zone.
        compression: a key of SYNTAXES; None: explicit little endian.
        keep_manufacturer: leave the scanner's at the top, for sites that hang by vendor.
        keep_private: leave private attributes.
    """

    series: str
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


def derived_instance(
    source: SourceImage,
    values: NDArray[np.integer],
    derivation: Derivation,
    references: Dataset,
) -> Dataset:
    """One instance of the derived series.

    Args:
        values: to be stored, (rows, columns), of the source's type.
        references: the item of ReferencedSeriesSequence, of `referenced_series`; one for all
            instances, which share it.
    """
    image = Dataset()
    for element in source.header:
        if element.keyword not in _DROPPED and not _of_dropped_group(element.tag.group):
            image[element.tag] = copy.deepcopy(element)
    if not derivation.keep_private:
        image.remove_private_tags()
    _describe_pixels(image, source, values)
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


def _describe_pixels(image: Dataset, source: SourceImage, values: NDArray[np.integer]) -> None:
    image.Rows, image.Columns = values.shape
    image.BitsAllocated = 8 * values.dtype.itemsize
    bits = source.item.stored.bits
    if not _fit(values, bits):
        # Padding may lie outside of the bits that are in use, and whoever reads would mask it.
        bits = image.BitsAllocated
    image.BitsStored, image.HighBit = bits, bits - 1
    image.PixelRepresentation = int(values.dtype.kind == "i")
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    if not image.get("RescaleType"):
        image.RescaleType = "HU"
    image.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    image["PixelData"].VR = "OW"


def _fit(values: NDArray[np.integer], bits: int) -> bool:
    signed = values.dtype.kind == "i"
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return bool(least <= values.min() and values.max() <= most)


def _describe_image(image: Dataset, source: SourceImage, derivation: Derivation) -> None:
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = derivation.instance_uid(
        source.instance, source.item.frame, image.PixelData
    )
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL", OWN]
    image.InstanceCreationDate, image.InstanceCreationTime = _date_and_time(image, derivation)
    image.ContentDate, image.ContentTime = _date_and_time(image, derivation)
    image.DerivationDescription = derivation.description[:_DERIVATION_LENGTH]
    image.DerivationCodeSequence = Sequence(
        [_code(CodedConcept("NOISE_REDUCTION", _SCHEME, "Noise reduction by a neural network"))]
    )
    reference = _reference(source.sop_class, source.instance)
    if source.frames > 1:
        reference.ReferencedFrameNumber = source.item.frame + 1
    reference.SpatialLocationsPreserved = "YES"
    reference.PurposeOfReferenceCodeSequence = Sequence(
        [_code(CodedConcept("121322", "DCM", "Source image for image processing operation"))]
    )
    image.SourceImageSequence = Sequence([reference])
    image.ContentQualification = "RESEARCH"
    image.ImageComments = "NOT FOR DIAGNOSTIC USE"


def _date_and_time(image: Dataset, derivation: Derivation) -> tuple[str, str]:
    """DA and TM of the derivation, in the zone that the image's dates stand in (PS3.3 C.12.1)."""
    offset = str(image.get("TimezoneOffsetFromUTC") or "")
    time = derivation.time
    if offset:
        # One that is no offset says nothing: the time is that of this machine's zone.
        with suppress(ValueError):
            time = time.astimezone(datetime.strptime(offset, "%z").tzinfo)
    return time.strftime("%Y%m%d"), time.strftime("%H%M%S")


def _describe_series(
    image: Dataset, source: SourceImage, derivation: Derivation, references: Dataset
) -> None:
    image.SeriesInstanceUID = derivation.series
    image.SeriesNumber = _series_number(source.header) + NUMBER_OFFSET
    name = f"HQINet {derivation.model} {text(source.header, 'SeriesDescription')}"
    image.SeriesDescription = name.strip()[:_DESCRIPTION_LENGTH]
    image.SeriesDate, image.SeriesTime = _date_and_time(image, derivation)
    image.ReferencedSeriesSequence = Sequence([references])


def _series_number(header: Dataset) -> int:
    """The source's number, the first where it has several; 0 for what is none."""
    try:
        return int(text(header, "SeriesNumber"))
    except (TypeError, ValueError):
        return 0


def _describe_equipment(image: Dataset, source: SourceImage, derivation: Derivation) -> None:
    scanner = _equipment(CodedConcept("109101", "DCM", "Acquisition Equipment"))
    for keyword in (*_OF_THE_SCANNER, "Manufacturer", "InstitutionName"):
        if source.header.get(keyword):
            scanner[keyword] = copy.deepcopy(source.header[keyword])
    scanner.Manufacturer = scanner.get("Manufacturer") or "unknown"
    ours = _equipment(CodedConcept("109102", "DCM", "Processing Equipment"))
    ours.Manufacturer = MANUFACTURER
    ours.ManufacturerModelName = f"HQINet {derivation.model}"
    ours.SoftwareVersions = derivation.software
    ours.DeviceUID = derived_uid("device", derivation.identity)
    ours.ContributionDateTime = derivation.time.strftime("%Y%m%d%H%M%S%z")
    ours.ContributionDescription = derivation.contribution[:_DERIVATION_LENGTH]
    before = list(image.get("ContributingEquipmentSequence") or [])
    image.ContributingEquipmentSequence = Sequence([*before, scanner, ours])
    if not derivation.keep_manufacturer:
        for keyword in _OF_THE_SCANNER:
            if keyword in image:
                delattr(image, keyword)
        image.Manufacturer = MANUFACTURER
        image.ManufacturerModelName = ours.ManufacturerModelName
        image.SoftwareVersions = derivation.software


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
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if compression is not None:
        # The UID was made of the pixels; compression changes none of them.
        image.compress(SYNTAXES[compression], generate_instance_uid=False)
