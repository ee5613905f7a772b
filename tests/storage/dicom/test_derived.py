"""Derived series: the source's own bits where nothing changed, UIDs that are never reused."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from storage.dicom.derived import (
    SYNTAXES,
    derived_uid,
    series_uid,
)
from storage.dicom.finding import find_series
from storage.dicom.limits import Limits
from storage.dicom.series import order
from storage.dicom.source_images import source_images, stored_range
from storage.dicom.stored_words import decoded

IMAGES = ["1.2.1", "1.2.2"]


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
    tmp_path, series, signed, slope, intercept, bits, derive
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


@pytest.mark.parametrize(
    "syntax",
    [
        "ImplicitVRLittleEndian",
        "DeflatedExplicitVRLittleEndian",
        "ExplicitVRBigEndian",
        "RLELossless",
        "JPEGLSLossless",
        "JPEG2000Lossless",
        "JPEGLosslessProcess14",
        "JPEGLosslessProcess14_1",
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_every_lossless_syntax_goes_through_unchanged(
    tmp_path, series, recode, syntax, signed, derive
):
    folder = series(
        change=coded(-1024.0, 1.0, 16 if signed else 12, signed), matrix=(64, 72), slices=4
    ).write(tmp_path)
    values = {_uid(file): pydicom.dcmread(file).pixel_array for file in folder.iterdir()}
    recode(folder, syntax)
    for source, image in derive(folder)[1]:
        assert np.array_equal(image.pixel_array, values[source.instance])
        assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_a_tilted_gantry_keeps_its_positions(tmp_path, series, derive):
    def tilted(index, image):
        image.GantryDetectorTilt = 20
        turn = np.radians(20)
        image.ImageOrientationPatient = [1, 0, 0, 0, round(np.cos(turn), 6), round(np.sin(turn), 6)]
        return image

    series(change=tilted).write(tmp_path)
    ordered, pairs = derive(tmp_path)
    assert any(ordered.geometry.shift)
    for source, image in pairs:
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "GantryDetectorTilt"):
            assert image[name].value == source.header[name].value
        assert np.array_equal(image.pixel_array, source.stored)


@pytest.mark.parametrize("syntax", [None, "RLELossless", "JPEGLSLossless"])
def test_frames_of_enhanced_ct_become_instances(tmp_path, series, enhanced, recode, syntax, derive):
    one = series(slices=6)
    folder = enhanced(one, tmp_path / "a")
    _enrich(folder / "enhanced.dcm")
    stored = pydicom.dcmread(folder / "enhanced.dcm").pixel_array
    if syntax:
        recode(folder, syntax)
    _, pairs = derive(folder)
    assert len(pairs) == 6
    for index, (_, image) in enumerate(pairs):
        # The frames stand in reverse order in the file.
        assert np.array_equal(image.pixel_array, stored[5 - index])
        assert image.SOPClassUID == CTImageStorage
        assert image.ImagePositionPatient == [-100, -120, -50 + 3 * index]
        assert (float(image.RescaleSlope), float(image.RescaleIntercept)) == (1, -1024 - index)
        assert list(image.PixelSpacing) == [0.7, 0.8]
        assert image.InstanceNumber == 6 - index
        assert image.XRayTubeCurrent == 200
        assert image.AcquisitionNumber == 7
        assert "Exposure" not in image
        assert image.RealWorldValueMappingSequence[0].LUTLabel == "HU"
        assert "ConcatenationFrameOffsetNumber" not in image
        (reference,) = image.SourceImageSequence
        assert reference.ReferencedFrameNumber == 6 - index
        assert not [
            e.keyword
            for e in image
            if e.keyword.startswith(("Frame", "NumberOfFr", "Dim"))
            and e.keyword != "FrameOfReferenceUID"
        ]
        assert "ReferencedSOPInstanceUID" not in image
        assert "ExtendedOffsetTable" not in image
    assert len({image.SOPInstanceUID for _, image in pairs}) == 6


def _enrich(file):
    """Functional groups that say of a frame what a classic image says otherwise, or not at all."""
    image = pydicom.dcmread(file)
    exposure, reference, content = Dataset(), Dataset(), Dataset()
    exposure.XRayTubeCurrentInmA = 199.6
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, "1.2.3"
    content.DimensionIndexValues, content.FrameAcquisitionNumber = [1], 7
    exposure.ExposureInmAs = None
    mapping = Dataset()
    mapping.LUTLabel = "HU"
    image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping]
    image.ConcatenationFrameOffsetNumber = 0
    image.SharedFunctionalGroupsSequence[0].CTExposureSequence = [exposure]
    image.SharedFunctionalGroupsSequence[0].ReferencedImageSequence = [reference]
    for group in image.PerFrameFunctionalGroupsSequence:
        group.FrameContentSequence = [content]
    image.save_as(file)


def padded(value, sign="signed"):
    """Three rows of padding, a value beside it, and one below air that is not called padding."""

    def change(_, image):
        kind = "<i2" if sign == "signed" else "<u2"
        stored = np.frombuffer(image.PixelData, "<i2").reshape(image.Rows, image.Columns).copy()
        stored[:3] = value
        stored[4, 4:6] = value + 10, -2500
        image.PixelRepresentation = int(sign == "signed")
        image.add_new("PixelPaddingValue", "SS", value)
        image.PixelData = stored.astype(kind).tobytes()
        return image

    return change


@pytest.mark.parametrize("value", [-2000, 500])
def test_padding_stays_and_measurement_never_becomes_padding(tmp_path, series, value, derive):
    series(change=padded(value)).write(tmp_path)
    for source, image in derive(tmp_path, change=-10)[1]:
        values = image.pixel_array
        assert (values[:3] == value).all()
        assert image.PixelPaddingValue == value
        assert not (values[3:] == value).any()
        assert values[4, 5] == -2500
        assert np.array_equal(values[5:], source.stored[5:] - 10)
        assert value != 500 or values[4, 4] == 501


def test_padding_with_the_wrong_sign_stays_too(tmp_path, series, derive):
    series(change=padded(-2000, "unsigned")).write(tmp_path)
    for _, image in derive(tmp_path, change=-10)[1]:
        assert (image.pixel_array[:3] == 2**16 - 2000).all()


def test_padding_outside_of_the_bits_stored_keeps_its_word(tmp_path, series):
    def change(index, image):
        image = padded(-2000, "unsigned")(index, image)
        image.BitsStored, image.HighBit = 12, 11
        return image

    series(change=change).write(tmp_path)
    (found,), _ = find_series(tmp_path)
    ordered, folder = order(found.headers, Limits()), tmp_path.with_name("words")
    folder.mkdir()
    _, words = decoded(found.root, ordered, folder)
    source = next(source_images(found.root, ordered, words))
    assert (source.stored[:3] == 2**16 - 2000).all()
    assert (source.stored[5:] < 2**12).all()


@pytest.mark.parametrize("sign", ["unsigned", "signed"])
def test_an_instance_whose_padding_needs_more_bits_has_them(tmp_path, series, derive, sign):
    def change(index, image):
        image = padded(-3024, sign)(index, image)
        image.BitsStored, image.HighBit = 12, 11
        return image

    series(change=change).write(tmp_path / "in")
    _, pairs = derive(tmp_path / "in", change=-7)
    for number, (source, image) in enumerate(pairs, 1):
        assert (image.BitsStored, image.HighBit) == (16, 15)
        file = tmp_path / f"{number}.dcm"
        image.save_as(file, enforce_file_format=True)
        assert np.array_equal(pydicom.dcmread(file).pixel_array[:3], source.stored[:3])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("TimezoneOffsetFromUTC", "0100"),
        ("TimezoneOffsetFromUTC", "+1"),
        ("SeriesNumber", ["3", "4"]),
        ("SeriesNumber", "1.5"),
    ],
)
def test_what_an_odd_header_says_ends_nothing(tmp_path, series, derive, attribute, value):
    vr = "SH" if attribute == "TimezoneOffsetFromUTC" else "IS"

    def change(_, image):
        with pydicom.config.disable_value_validation():
            image[attribute] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(attribute), vr, 0, as_bytes(value), 0, False, True
            )
        return image

    series(change=change).write(tmp_path)
    _, pairs = derive(tmp_path)
    assert {int(image.SeriesNumber) for _, image in pairs} <= {1000, 1001, 1003}


def as_bytes(value: str | list[str]) -> bytes:
    text = value if isinstance(value, str) else "\\".join(value)
    return text.ljust(len(text) + len(text) % 2).encode()


def test_values_stay_within_what_the_bits_hold(tmp_path, series, derive):
    series(change=coded(-1024.0, 1.0, 12, signed=False)).write(tmp_path)
    ordered, pairs = derive(tmp_path, change=4000)
    assert stored_range(ordered.slices[0]) == (0, 4095)
    for _, image in pairs:
        assert image.pixel_array.max() == 4095
        assert image.pixel_array.min() >= 0


def test_uids_follow_source_model_options_and_pixels(tmp_path, series, derive, derivation):
    series().write(tmp_path)
    _, pairs = derive(tmp_path)
    _, again = derive(tmp_path)
    assert [i.SOPInstanceUID for _, i in pairs] == [i.SOPInstanceUID for _, i in again]
    instances = {str(image.SOPInstanceUID) for _, image in pairs}
    for other in (
        derive(tmp_path, change=1),
        derive(tmp_path, derivation=replace(derivation, identity="cd" * 32)),
        derive(tmp_path, derivation=replace(derivation, options='{"strength": 0.5}')),
    ):
        assert instances.isdisjoint(str(image.SOPInstanceUID) for _, image in other[1])
    uid = series_uid("1.2", IMAGES, "ab" * 32, derivation.options)
    assert uid == series_uid("1.2", IMAGES[::-1] * 2, "ab" * 32, derivation.options)
    assert {image.SeriesInstanceUID for _, image in pairs} == {uid}
    assert uid.is_valid
    assert (
        len(
            {
                uid,
                *(
                    series_uid(*four)
                    for four in (
                        ("1.3", IMAGES, "ab" * 32, derivation.options),
                        ("1.2", IMAGES[:1], "ab" * 32, derivation.options),
                        ("1.2", IMAGES, "cd" * 32, derivation.options),
                        ("1.2", IMAGES, "ab" * 32, "{}"),
                    )
                ),
            }
        )
        == 5
    )
    assert all(
        image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID for _, image in pairs
    )
    assert len(instances) == len(pairs)
    assert derived_uid("a", "b") != derived_uid("ab", "")


def test_attributes_say_what_was_done_and_from_what(tmp_path, series, derive, derivation):
    def more(_, image):
        image.add_new((0x0029, 0x0010), "LO", "SITE")
        image.add_new((0x0029, 0x1001), "LO", "private")
        image.SmallestImagePixelValue = 3
        image.StationName, image.SeriesNumber = "CT7", 4
        image.DeviceUID, image.InstanceCreatorUID = "1.2.7", "1.2.8"
        image.TimezoneOffsetFromUTC = "-0500"
        image.RescaleIntercept = "-1024.0000000001"
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
        assert ours.DeviceUID == derived_uid("device", derivation.identity)
        assert ours.ContributionDescription == "commit 7"
        assert image.Manufacturer == "HQINet"
        assert scanner.DeviceUID == "1.2.7"
        assert not {"StationName", "DeviceUID", "InstanceCreatorUID"} & {e.keyword for e in image}
        assert "BurnedInAnnotation" not in image
        # The derivation is of 12:00 UTC.
        assert (image.ContentTime, image.SeriesTime) == ("070000", "070000")
        assert str(image.RescaleIntercept) == "-1024.0000000001"
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
    kept = replace(derivation, keep_private=True, keep_manufacturer=True)
    _, image = derive(tmp_path, derivation=kept)[1][0]
    assert image.Manufacturer == "SIEMENS"
    assert image[0x0029, 0x1001].value == "private"


@pytest.mark.parametrize("compression", sorted(SYNTAXES))
def test_compression_changes_no_pixel_and_no_uid(tmp_path, series, compression, derive, derivation):
    series().write(tmp_path)
    plain = derive(tmp_path, change=3)[1]
    packed = derive(tmp_path, change=3, derivation=replace(derivation, compression=compression))[1]
    for (_, one), (_, other) in zip(plain, packed, strict=True):
        assert other.file_meta.TransferSyntaxUID == SYNTAXES[compression]
        assert np.array_equal(one.pixel_array, other.pixel_array)
        assert one.SOPInstanceUID == other.SOPInstanceUID


def test_a_derived_series_is_refused_as_a_source(tmp_path, series, derive):
    series().write(tmp_path / "source")
    (tmp_path / "derived").mkdir()
    for number, (_, image) in enumerate(derive(tmp_path / "source")[1]):
        image.save_as(tmp_path / "derived" / f"{number}.dcm", enforce_file_format=True)
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        image.SeriesInstanceUID = "1.2.3"
        image.save_as(tmp_path / "derived" / f"{number}b.dcm", enforce_file_format=True)
    found, _ = find_series(tmp_path / "derived")
    assert {header.code for one in found for header in one.headers} == {"own_derived"}
