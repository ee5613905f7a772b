"""A series becomes HU exactly: order in space, every lossless syntax, rescale, padding."""

from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from storage.cohort import CohortRules
from storage.dicom import Limits, order
from storage.pixels import SliceReader
from storage.pseudonym import Pseudonyms
from storage.refusals import Refused
from storage.scan import scan


def read(folder: Path, limits: Limits | None = None) -> tuple[np.ndarray, SliceReader]:
    """The only series of a folder as HU."""
    found = scan(folder, CohortRules(), Pseudonyms(), folder.parent / "memory", map)
    reader = SliceReader(folder, order(found.records, limits or Limits()))
    return np.stack(list(reader)), reader


def test_slices_stand_in_the_order_of_space_whatever_the_names(tmp_path, series):
    one = series(slices=30)
    hu, _ = read(one.write(tmp_path / "a"))
    assert list(hu[:, 0, 0]) == list(range(30))
    assert (hu == np.maximum(one.values(), -1024)).all()


@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [1, 0, 0, 0, -1, 0], [0, 1, 0, 0, 0, -1]],
)
def test_order_follows_the_normal_of_the_orientation(tmp_path, series, orientation):
    normal = np.cross(orientation[:3], orientation[3:])

    def place(i, image):
        image.ImageOrientationPatient = orientation
        image.ImagePositionPatient = list(normal * i * 2.5 + [5, 6, 7])
        return image

    hu, _ = read(series(change=place).write(tmp_path / "a"))
    assert list(hu[:, 0, 0]) == list(range(10))


def test_increment_is_measured_and_slice_thickness_is_not_it(tmp_path, series):
    folder = series(increment=1.5, attributes={"SliceThickness": 5}).write(tmp_path / "a")
    found = scan(folder, CohortRules(), Pseudonyms(), tmp_path / "memory", map)
    assert order(found.records, Limits()).spacing == (1.5, 0.7, 0.8)


def test_rounded_positions_are_even_enough(tmp_path, series):
    def rounded(i, image):
        image.ImagePositionPatient = [-100, -120, round(i * 0.6667, 1)]
        return image

    hu, _ = read(series(slices=40, change=rounded).write(tmp_path / "a"))
    assert len(hu) == 40


def test_a_constant_tilt_is_no_error(tmp_path, series):
    def tilted(i, image):
        image.GantryDetectorTilt = 12
        image.ImagePositionPatient = [-100, -120 + i * 0.64, i * 3]
        return image

    assert len(read(series(change=tilted).write(tmp_path / "a"))[0]) == 10


def compress(syntax):
    def change(_, image):
        image.compress(syntax, generate_instance_uid=False)
        return image

    return change


def as_endian(syntax):
    def change(_, image):
        image.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        return image

    return change


@pytest.mark.parametrize(
    "change",
    [
        as_endian(ExplicitVRLittleEndian),
        as_endian(ImplicitVRLittleEndian),
        as_endian(ExplicitVRBigEndian),
        as_endian(DeflatedExplicitVRLittleEndian),
        compress(RLELossless),
        compress(JPEGLSLossless),
    ],
    ids=["explicit", "implicit", "big endian", "deflated", "RLE", "JPEG-LS"],
)
def test_lossless_syntaxes_decode_to_the_same_hu(tmp_path, series, change):
    one = series(change=change)
    assert (read(one.write(tmp_path / "a"))[0] == one.values()).all()


@pytest.mark.parametrize(
    "kind", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEG2000Lossless"]
)
def test_jpeg_lossless_and_jpeg_2000_decode(tmp_path, series, kind):
    one = series()
    folder = one.write(tmp_path / "a")
    for file in folder.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    assert ".1.2.4." in pydicom.dcmread(next(folder.iterdir())).file_meta.TransferSyntaxUID
    assert (read(folder)[0] == one.values()).all()


def test_files_without_preamble_or_extension_are_read(tmp_path, series):
    def bare(i, image):
        image.file_name = f"IMG{i}"
        return image

    one = series(change=bare)
    folder = one.write(tmp_path / "a")
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        del image.file_meta
        image.save_as(file, implicit_vr=True, little_endian=True)
    assert (read(folder)[0] == one.values()).all()


def test_rescale_is_applied_a_slice_at_a_time(tmp_path, series):
    def own(i, image):
        slope, intercept = i % 3 + 1, -1024 - i
        stored = np.frombuffer(image.PixelData, "<i2").astype(int) // slope * slope
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        image.PixelData = (stored // slope).astype("<i2").tobytes()
        return image

    one = series(change=own)
    expected = np.stack(
        [(hu + 1024) // (i % 3 + 1) * (i % 3 + 1) - 1024 - i for i, hu in enumerate(one.values())]
    )
    hu, reader = read(one.write(tmp_path / "a"))
    assert (hu == np.maximum(expected, -1024)).all()
    assert not reader.rounded


def test_a_slope_that_is_no_whole_number_rounds_and_says_so(tmp_path, series):
    one = series(attributes={"RescaleSlope": "0.5", "RescaleIntercept": "-1024.25"})
    stored = one.values().astype(float) + 1024
    hu, reader = read(one.write(tmp_path / "a"))
    assert np.abs(hu - np.maximum(stored * 0.5 - 1024.25, -1024)).max() <= 0.5
    assert reader.rounded


def test_padding_and_values_below_air_become_air(tmp_path, series):
    def padded(_, image):
        stored = np.frombuffer(image.PixelData, "<i2").reshape(16, 20).copy()
        stored[0, 1], stored[0, 2], stored[0, 3] = -2000, -3024 + 1024, 500
        image.PixelPaddingValue = 500
        image.PixelData = stored.tobytes()
        return image

    hu, _ = read(series(change=padded).write(tmp_path / "a"))
    assert (hu[:, 0, 1:4] == -1024).all()


def test_padding_written_with_the_wrong_sign_is_padding(tmp_path, series):
    def padded(_, image):
        stored = (np.frombuffer(image.PixelData, "<i2").astype(int)).astype("<u2").reshape(16, 20)
        stored[0, 1] = 63536
        image.PixelRepresentation = 0
        image.add_new("PixelPaddingValue", "SS", -2000)
        image.PixelData = stored.tobytes()
        return image

    hu, reader = read(series(change=padded).write(tmp_path / "a"))
    assert (hu[:, 0, 1] == -1024).all()
    assert reader.clipped == 0


def test_values_beyond_int16_are_held_and_counted(tmp_path, series):
    def steel(i, image):
        stored = np.frombuffer(image.PixelData, "<i2").copy()
        stored[5] = 32767
        image.RescaleIntercept = 0
        image.RescaleSlope = 2 if i == 3 else 1
        image.PixelData = stored.tobytes()
        return image

    hu, reader = read(series(change=steel).write(tmp_path / "a"))
    assert hu.max() == 32767
    assert reader.clipped == 1


@pytest.mark.parametrize("signed", [0, 1])
def test_overlay_bits_in_the_pixel_word_are_no_measurement(tmp_path, series, signed):
    def overlaid(_, image):
        values = np.frombuffer(image.PixelData, "<i2").astype(int)
        stored = values - 1024 * signed
        word = (stored & 0xFFF) | 0x3000
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, signed
        image.RescaleIntercept = -1024 + 1024 * signed
        image.add_new(0x60000102, "US", 12)
        image.PixelData = word.astype("<u2").tobytes()
        return image

    one = series(change=overlaid)
    assert (read(one.write(tmp_path / "a"))[0] == one.values()).all()


def stored_in_12_bits(signed: bool, syntax):
    """Words of 16 bits of which 12 are stored, no sign extended; one pixel of padding beyond."""

    def change(i, image):
        words = (np.frombuffer(image.PixelData, "<i2").astype(int) - 1024 * signed) & 0xFFF
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, int(signed)
        image.RescaleIntercept = 0 if signed else -1024
        if not signed:
            words[1] = 63536
            image.PixelPaddingValue = 63536
        image.PixelData = words.astype("<u2").tobytes()
        return (compress if syntax == RLELossless else as_endian)(syntax)(i, image)

    return change


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless],
)
def test_unused_bits_are_no_measurement_in_any_syntax(tmp_path, series, signed, syntax):
    one = series(change=stored_in_12_bits(signed, syntax))
    expected = one.values().copy()
    if not signed:
        expected[:, 0, 1] = -1024
    assert (read(one.write(tmp_path / "a"))[0] == expected).all()


def test_empty_elements_stand_for_their_defaults(tmp_path, series):
    about = {"HighBit": None, "PixelPaddingValue": 24, "PixelPaddingRangeLimit": None}
    one = series(attributes=about)
    expected = np.where(one.values() == -1000, -1024, one.values())
    assert (read(one.write(tmp_path / "a"))[0] == expected).all()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_a_failure_of_the_machine_is_no_fault_of_the_file(tmp_path, series, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(np, "fromfile", fails)
    with pytest.raises(type(error)):
        read(series().write(tmp_path / "a"))


def enhanced(series, folder: Path) -> Path:
    """One Enhanced CT file with all frames in reverse order, rescale differing by frame."""
    values = series.values()
    image = series.image(0, values[0], generate_uid())
    for name in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ImagePositionPatient"):
        delattr(image, name)
    del image.ImageOrientationPatient, image.PixelSpacing
    image.SOPClassUID = EnhancedCTImageStorage
    image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    image.NumberOfFrames = len(values)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [0.7, 0.8], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    frames, stored = [], []
    for i, hu in reversed(list(enumerate(values))):
        frame, place, rescale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-100, -120, series.start + i * series.increment]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024 - i, "HU"
        frame.PlanePositionSequence = Sequence([place])
        frame.PixelValueTransformationSequence = Sequence([rescale])
        frames.append(frame)
        stored.append((hu.astype("<i2") + 1024 + i).astype("<i2"))
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    image.PixelData = np.stack(stored).tobytes()
    folder.mkdir(parents=True)
    image.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_enhanced_multi_frame_ct_is_a_volume(tmp_path, series, syntax):
    one = series(slices=12)
    folder = enhanced(one, tmp_path / "a")
    if syntax:
        image = pydicom.dcmread(folder / "enhanced.dcm")
        image.compress(syntax, generate_instance_uid=False)
        image.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    assert (read(folder)[0] == one.values()).all()


def encapsulated(file: Path, fragments_of_each: int, more: int, table: bool) -> None:
    """Write the compressed frames anew: each in fragments, and the first one `more` times again."""
    image = pydicom.dcmread(file)
    number = int(image.get("NumberOfFrames", 1))
    frames = list(generate_frames(image.PixelData, number_of_frames=number))
    frames += frames[:1] * more
    image.PixelData = encapsulate(frames, fragments_of_each, has_bot=table)
    image.save_as(file)


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("write", ["plain", "enhanced"])
def test_more_compressed_frames_than_promised_are_refused(tmp_path, series, write, syntax, table):
    one = series(slices=12)
    folder = one.write(tmp_path / "a") if write == "plain" else enhanced(one, tmp_path / "a")
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        image.compress(syntax, generate_instance_uid=False)
        image.save_as(file)
        encapsulated(file, 1, more=0, table=table)
    assert (read(folder)[0] == one.values()).all()
    file = min(folder.iterdir())
    encapsulated(file, 1, more=1, table=table)
    promised = 1 if write == "plain" else 12
    with pytest.raises(Refused, match=f"{promised + 1} compressed frames; expected {promised}$"):
        read(folder)


def test_compressed_pixels_that_lack_a_few_bytes_are_refused(tmp_path, series):
    folder = series(change=compress(JPEGLSLossless)).write(tmp_path / "a")
    file = min(folder.iterdir())
    data = file.read_bytes()
    start = data.index(b"\xff\xd8\xff") + 40
    file.write_bytes(data[:start] + data[start + 2 :])
    with pytest.raises(Refused, match="fragments do not follow one another"):
        read(folder)


@pytest.mark.parametrize(
    ("write", "table"), [("plain", True), ("plain", False), ("enhanced", True)]
)
def test_a_frame_in_several_fragments_is_one_frame(tmp_path, series, write, table):
    one = series(slices=12, matrix=(64, 64))
    folder = one.write(tmp_path / "a") if write == "plain" else enhanced(one, tmp_path / "a")
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        image.compress(JPEGLSLossless, generate_instance_uid=False)
        image.save_as(file)
        encapsulated(file, 7, more=0, table=table)
    assert (read(folder)[0] == one.values()).all()


def test_an_enhanced_pair_enters_the_dataset(tmp_path, series, dataset, deliver):
    full, low = series("L001", "FULL", slices=12), series("L001", "LOW", low=True, slices=12)
    enhanced(full, tmp_path / "source" / "full")
    enhanced(low, tmp_path / "source" / "low")
    done = deliver(dataset, tmp_path / "source")
    assert done.accepted == ["L001"]
    volume = done.snapshot.volume("L001")
    assert (volume.full[:] == full.values()).all()
    assert (volume.low[:] == low.values()).all()
    assert volume.positions == tuple(-50.0 + 3 * i for i in range(12))


def group(file: Path, frames: slice | None, macro: str, **attributes) -> None:
    """Put attributes into a functional group of some frames, or into the one that all share."""
    image = pydicom.dcmread(file)
    holders = (
        image.SharedFunctionalGroupsSequence
        if frames is None
        else image.PerFrameFunctionalGroupsSequence[frames]
    )
    for holder in holders:
        if macro not in holder:
            setattr(holder, macro, Sequence([Dataset()]))
        for name, value in attributes.items():
            setattr(holder[macro][0], name, value)
    image.save_as(file)


@pytest.mark.parametrize(
    ("frames", "macro"),
    [
        (None, "CTReconstructionSequence"),
        (slice(None), "CTReconstructionSequence"),
        (None, "UnassignedSharedConvertedAttributesSequence"),
    ],
)
def test_kernel_and_thickness_of_an_enhanced_pair_are_compared(
    tmp_path, series, dataset, deliver, frames, macro
):
    for dose, kernel, thickness in (("full", "B30f", 3), ("low", "B50f", 5)):
        one = series("L001", dose, low=dose == "low", slices=12)
        file = enhanced(one, tmp_path / "source" / dose) / "enhanced.dcm"
        image = pydicom.dcmread(file)
        del image.SliceThickness
        image.save_as(file)
        group(file, frames, macro, ConvolutionKernel=[kernel, "x"])
        group(file, None, "PixelMeasuresSequence", SliceThickness=thickness)
    (row,) = deliver(dataset, tmp_path / "source").admission.accepted
    assert row.kernel == "B30f"
    assert "kernels differ: low dose B50f, full dose B30f" in row.note
    assert "slice thickness differs: low dose 5 mm, full dose 3 mm" in row.note


def test_frames_of_several_kernels_or_thicknesses_have_none(tmp_path, series, dataset, deliver):
    for dose in ("full", "low"):
        one = series("L001", dose, low=dose == "low", slices=12)
        file = enhanced(one, tmp_path / "source" / dose) / "enhanced.dcm"
        group(file, None, "CTReconstructionSequence", ConvolutionKernel="B30f")
        measures = {"PixelSpacing": [0.7, 0.8], "SliceThickness": 3}
        group(file, None, "PixelMeasuresSequence", **measures)
    group(file, slice(7, 8), "CTReconstructionSequence", ConvolutionKernel="B50f")
    group(file, slice(7, 8), "PixelMeasuresSequence", **measures | {"SliceThickness": 5})
    (row,) = deliver(dataset, tmp_path / "source").admission.accepted
    assert row.note.split("; ") == [
        "kernels differ: low dose other, full dose B30f",
        *(f"{dose} dose: slices differ in rescale slope or intercept" for dose in ("low", "full")),
    ]
    found = scan(file.parent, CohortRules(), Pseudonyms(), tmp_path / "another memory", map)
    assert found.records[0].thickness is None


def test_limits_are_settings(tmp_path, series):
    folder = series(slices=10).write(tmp_path / "a")
    with pytest.raises(Refused, match="10 slices; expected 11"):
        read(folder, Limits(min_slices=11))
