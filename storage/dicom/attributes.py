"""The attributes that headers are read for, at a fraction of what pydicom takes to convert them.

All but a few are the same in every slice of a series: what was converted once is looked up.
"""

from functools import lru_cache
from typing import Any, Protocol

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset as Header
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import AMBIGUOUS_VR, VR

_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "ContributingEquipmentSequence",
    "Modality",
    "ImageType",
    "SeriesDescription",
    "Manufacturer",
    "ConvolutionKernel",
    "SliceThickness",
    "KVP",
    "BodyPartExamined",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "GantryDetectorTilt",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "NumberOfFrames",
    "LossyImageCompression",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_TAG_OF = {keyword: Tag(keyword) for keyword in _KEYWORDS}
TAGS = list(_TAG_OF.values())
# What these hold depends on other attributes of the header, or on where they stand in the file.
_DEPENDENT = {tag for tag in TAGS if dictionary_VR(tag) in {*AMBIGUOUS_VR, VR.SQ}}
# Longer values do not describe an image, and are not worth caching.
_SHORT = 1024


class Group(Protocol):
    """A header, or an item of a sequence in it, by the attributes' keywords."""

    def get(self, keyword: str, /) -> Any:  # noqa: ANN401 - of whatever type the attribute is
        """The value; None when absent."""


class Attributes:
    """The attributes of one header that was read with `TAGS`; each is converted once."""

    def __init__(self, header: Header) -> None:
        self._header = header
        character_set = header.original_character_set
        self._encodings = (
            (character_set,) if isinstance(character_set, str) else tuple(character_set)
        )
        self._values: dict[str, Any] = {}

    def get(self, keyword: str, /) -> Any:  # noqa: ANN401 - of whatever type the attribute is
        """The value; None when absent."""
        if keyword not in self._values:
            tag = _TAG_OF[keyword]
            self._values[keyword] = self._value(tag) if tag in self._header else None
        return self._values[keyword]

    def _value(self, tag: BaseTag) -> Any:  # noqa: ANN401
        element = self._header.get_item(tag)
        if tag in _DEPENDENT or not element.is_raw or element.length > _SHORT:
            return self._header[tag].value
        return _converted(element._replace(value_tell=0), self._encodings)


@lru_cache(1000)
def _converted(element: RawDataElement, encodings: tuple[str, ...]) -> Any:  # noqa: ANN401
    return convert_raw_data_element(element, encoding=list(encodings)).value


def text(source: Group | None, keyword: str) -> str:
    """An attribute as text; the first of several values, empty when absent."""
    value = source.get(keyword) if source is not None else None
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return "" if value is None else str(value).strip(" \0")
