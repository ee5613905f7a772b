"""Derived series: the source's own bits where nothing changed, UIDs that are never reused."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from storage.dicom.derived import (
    SYNTAXES,
    Derivation,
    changed_values,
    derived_instance,
    derived_uid,
    read_source,
    referenced_series,
    stored_range,
)
from storage.dicom.finding import find_series
from storage.dicom.geometry import Limits
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import order

DERIVATION = Derivation(
    model="3",
    identity="ab" * 32,
    software="0.1.0",
    options='{"strength": 1.0}',
    description="Noise reduction by HQINet, model 3",
    contribution="commit 7",
    time=datetime(2026, 11, 24, 12, 0, tzinfo=UTC),
)


def derive(folder, change=0, derivation=DERIVATION):
    """Source headers and derived instances of the one series in a folder, changed by some HU."""
    (found,), _ = find_series(folder)
    ordered = order(found.headers, Limits(min_slices=1))
    references = referenced_series(found.uid, [(h.sop_class, h.instance) for h in found.headers])
    pairs = []
    for item, hu in zip(ordered.slices, HuDecoder(found.root, ordered), strict=True):
        source = read_source(found.root, item)
        values = changed_values(source, item, hu, (hu + change).astype(np.int16))
        pairs.append((source, derived_instance(source, item, values, derivation, references)))
    return ordered, pairs


def coded(intercept: float, slope: float, bits: int, signed: bool):
    """What to write of HU so that slope and intercept lead back to them."""

    def change(_, image):
        hu = np.frombuffer(image.PixelData, "<i2").astype(float) - 1024
        lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        stored = np.clip(np.rint((hu - intercept) / slope), lowest, highest)
        image.PixelRepresentation = int(signed)
        image.BitsStored, image.HighBit = bits, bits - 1
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        image.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
        return image

    return change


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("slope", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(
    ("intercept", "bits"), [(-1024.0, 12), (-1024.0, 16), (0.0, 16), (-8192.0, 16)]
)
def test_a_model_that_changes_nothing_leaves_every_stored_value(
    tmp_path, series, signed, slope, intercept, bits
):
    series(change=coded(intercept, slope, bits, signed)).write(tmp_path)
    for source, image in derive(tmp_path)[1]:
        original = pydicom.dcmread(
            next(f for f in tmp_path.iterdir() if _uid(f) == source.instance)
        )
        assert np.array_equal(image.pixel_array, original.pixel_array)
        assert float(image.RescaleSlope) == slope
        assert float(image.RescaleIntercept) == intercept


def _uid(file):
    return str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_every_lossless_syntax_goes_through_unchanged(tmp_path, series, syntax):
    values = {}

    def compressed(index, image):
        values[str(image.SOPInstanceUID)] = image.pixel_array.copy()
        image.compress(syntax, generate_instance_uid=False)
        return image

    series(change=compressed, matrix=(64, 72), slices=4).write(tmp_path)
    for source, image in derive(tmp_path)[1]:
        assert np.array_equal(image.pixel_array, values[source.instance])


def test_padding_stays_and_measurement_never_becomes_padding(tmp_path, series):
    def padded(_, image):
        stored = np.frombuffer(image.PixelData, "<i2").reshape(image.Rows, image.Columns).copy()
        stored[:3] = -2000
        stored[4, 4] = -1990
        image.PixelPaddingValue = -2000
        image.RescaleIntercept = 0
        image.PixelData = stored.tobytes()
        return image

    series(change=padded).write(tmp_path)
    for source, image in derive(tmp_path, change=-10)[1]:
        values = image.pixel_array
        assert (values[:3] == -2000).all()
        assert image.PixelPaddingValue == -2000
        assert not (values[3:] == -2000).any()
        assert np.array_equal(values[5:], source.stored[5:] - 10)


def test_values_stay_within_what_the_bits_hold(tmp_path, series):
    series(change=coded(-1024.0, 1.0, 12, signed=False)).write(tmp_path)
    ordered, pairs = derive(tmp_path, change=4000)
    assert stored_range(ordered.slices[0]) == (0, 4095)
    for _, image in pairs:
        assert image.pixel_array.max() == 4095
        assert image.pixel_array.min() >= 0


def test_uids_follow_source_model_options_and_pixels(tmp_path, series):
    series().write(tmp_path)
    _, pairs = derive(tmp_path)
    _, again = derive(tmp_path)
    assert [i.SOPInstanceUID for _, i in pairs] == [i.SOPInstanceUID for _, i in again]
    instances = {str(image.SOPInstanceUID) for _, image in pairs}
    for other in (
        derive(tmp_path, change=1),
        derive(tmp_path, derivation=replace(DERIVATION, identity="cd" * 32)),
        derive(tmp_path, derivation=replace(DERIVATION, options='{"strength": 0.5}')),
    ):
        assert instances.isdisjoint(str(image.SOPInstanceUID) for _, image in other[1])
    (uid,) = {image.SeriesInstanceUID for _, image in pairs}
    assert uid != pairs[0][0].header.SeriesInstanceUID
    assert uid.is_valid
    assert all(
        image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID for _, image in pairs
    )
    assert len(instances) == len(pairs)
    assert derived_uid("a", "b") != derived_uid("ab", "")


def test_attributes_say_what_was_done_and_from_what(tmp_path, series):
    def more(_, image):
        image.add_new((0x0029, 0x0010), "LO", "SITE")
        image.add_new((0x0029, 0x1001), "LO", "private")
        image.SmallestImagePixelValue = 3
        image.StationName, image.SeriesNumber = "CT7", 4
        return image

    series(change=more).write(tmp_path)
    _, pairs = derive(tmp_path)
    for source, image in pairs:
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "HQINET"]
        (from_,) = image.SourceImageSequence
        assert from_.ReferencedSOPInstanceUID == source.instance
        assert from_.SpatialLocationsPreserved == "YES"
        (whole,) = image.ReferencedSeriesSequence
        assert len(whole.ReferencedInstanceSequence) == len(pairs)
        scanner, ours = image.ContributingEquipmentSequence
        assert (scanner.Manufacturer, scanner.StationName) == ("SIEMENS", "CT7")
        assert ours.DeviceUID == derived_uid("device", DERIVATION.identity)
        assert ours.ContributionDescription == "commit 7"
        assert image.Manufacturer == "HQINet"
        assert "StationName" not in image
        assert image.SeriesNumber == 1004
        assert image.SeriesDescription == "HQINet 3 Full Dose Images"
        assert image.ImageComments == "NOT FOR DIAGNOSTIC USE"
        assert "SmallestImagePixelValue" not in image
        assert not [element for element in image if element.tag.is_private]
        for kept in (
            "PatientID",
            "StudyInstanceUID",
            "FrameOfReferenceUID",
            "ImagePositionPatient",
        ):
            assert image[kept].value == source.header[kept].value
    kept = replace(DERIVATION, keep_private=True, keep_manufacturer=True)
    _, image = derive(tmp_path, derivation=kept)[1][0]
    assert image.Manufacturer == "SIEMENS"
    assert image[0x0029, 0x1001].value == "private"


@pytest.mark.parametrize("compression", sorted(SYNTAXES))
def test_compression_changes_no_pixel_and_no_uid(tmp_path, series, compression):
    series().write(tmp_path)
    plain = derive(tmp_path, change=3)[1]
    packed = derive(tmp_path, change=3, derivation=replace(DERIVATION, compression=compression))[1]
    for (_, one), (_, other) in zip(plain, packed, strict=True):
        assert other.file_meta.TransferSyntaxUID == SYNTAXES[compression]
        assert np.array_equal(one.pixel_array, other.pixel_array)
        assert one.SOPInstanceUID == other.SOPInstanceUID


def test_a_derived_series_is_refused_as_a_source(tmp_path, series):
    series().write(tmp_path / "source")
    (tmp_path / "derived").mkdir()
    for number, (_, image) in enumerate(derive(tmp_path / "source")[1]):
        image.save_as(tmp_path / "derived" / f"{number}.dcm", enforce_file_format=True)
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        image.SeriesInstanceUID = "1.2.3"
        image.save_as(tmp_path / "derived" / f"{number}b.dcm", enforce_file_format=True)
    found, _ = find_series(tmp_path / "derived")
    assert {header.code for one in found for header in one.headers} == {"own_derived"}
