"""What is looked up is what pydicom would have converted, and is converted once a series."""

import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.dicom import attributes
from storage.dicom.attributes import TAGS, Attributes


def read(file):
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_values_are_those_of_pydicom(tmp_path, series, syntax):
    def varied(i, image):
        image.file_meta.TransferSyntaxUID = syntax
        # One description in bytes, two in letters; one padding, signed and not.
        image.SpecificCharacterSet = ["ISO_IR 100", "ISO_IR 101"][i % 2]
        image.SeriesDescription = "Thorax \xe9" if i % 2 == 0 else "Thorax \u0119"
        image.PixelRepresentation = i % 2
        image.add_new("PixelPaddingValue", "SS" if i % 2 else "US", -2000 if i % 2 else 63536)
        image.add_new("HighBit", "US", None)
        return image

    files = list(series(change=varied).write(tmp_path / "a").iterdir())
    for file in files:
        header, found = read(file), Attributes(read(file))
        for tag in TAGS:
            keyword = pydicom.datadict.keyword_for_tag(tag)
            assert found.get(keyword) == header.get(keyword), keyword
    assert {Attributes(read(file)).get("PixelPaddingValue") for file in files} == {-2000, 63536}


def test_what_a_series_shares_is_converted_once(tmp_path, series, monkeypatch):
    files = list(series("L001", slices=10).write(tmp_path / "a").iterdir())
    converted = []
    convert = attributes.convert_raw_data_element

    def count(element, **options):
        converted.append(element.tag)
        return convert(element, **options)

    monkeypatch.setattr(attributes, "convert_raw_data_element", count)
    attributes._converted.cache_clear()
    for file in files:
        found = Attributes(read(file))
        for keyword in ("Rows", "PixelSpacing", "SOPInstanceUID", "SOPInstanceUID"):
            assert found.get(keyword) is not None
    assert len(converted) == 2 + len(files)
