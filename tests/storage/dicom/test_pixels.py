"""A series becomes HU exactly: every lossless syntax, stored bits, rescale, padding."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from storage.refusals import Refusal


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
def test_lossless_syntaxes_decode_to_the_same_hu(read, tmp_path, series, change):
    one = series(change=change)
    assert (read(one.write(tmp_path / "a"))[0] == one.values()).all()


@pytest.mark.parametrize(
    "kind", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEG2000Lossless"]
)
def test_jpeg_lossless_and_jpeg_2000_decode(read, tmp_path, series, recode, kind):
    one = series(matrix=(64, 72), slices=4)
    folder = one.write(tmp_path / "a")
    recode(folder, kind)
    assert ".1.2.4." in pydicom.dcmread(next(folder.iterdir())).file_meta.TransferSyntaxUID
    assert (read(folder)[0] == one.values()).all()


def test_files_without_preamble_or_extension_are_read(read, tmp_path, series):
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


def test_rescale_is_applied_a_slice_at_a_time(read, tmp_path, series):
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


def test_a_slope_that_is_no_whole_number_rounds_and_says_so(read, tmp_path, series):
    one = series(attributes={"RescaleSlope": "0.5", "RescaleIntercept": "-1024.25"})
    stored = one.values().astype(float) + 1024
    hu, reader = read(one.write(tmp_path / "a"))
    assert np.abs(hu - np.maximum(stored * 0.5 - 1024.25, -1024)).max() <= 0.5
    assert reader.rounded


def test_padding_and_values_below_air_become_air(read, tmp_path, series):
    def padded(_, image):
        stored = np.frombuffer(image.PixelData, "<i2").reshape(16, 20).copy()
        stored[0, 1], stored[0, 2], stored[0, 3] = -2000, -3024 + 1024, 500
        image.PixelPaddingValue = 500
        image.PixelData = stored.tobytes()
        return image

    hu, _ = read(series(change=padded).write(tmp_path / "a"))
    assert (hu[:, 0, 1:4] == -1024).all()


def test_padding_written_with_the_wrong_sign_is_padding(read, tmp_path, series):
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


def test_values_beyond_int16_are_held_and_counted(read, tmp_path, series):
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
def test_overlay_bits_in_the_pixel_word_are_no_measurement(read, tmp_path, series, signed):
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


def left_aligned(values: int):
    """12 bits stored up to the word's top; the values shifted up by so many bits."""

    def change(_, image):
        words = np.frombuffer(image.PixelData, "<u2") << values
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 15, 0
        image.PixelData = words.astype("<u2").tobytes()
        return image

    return change


def test_left_aligned_values_are_read_and_a_wrong_high_bit_is_refused(read, tmp_path, series):
    one = series(change=left_aligned(4))
    assert (read(one.write(tmp_path / "a"))[0] == one.values()).all()
    with pytest.raises(Refusal, match=r"BitsStored 12 up to HighBit 15.*expected HighBit 11"):
        read(series(change=left_aligned(0)).write(tmp_path / "b"))


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
def test_unused_bits_are_no_measurement_in_any_syntax(read, tmp_path, series, signed, syntax):
    one = series(change=stored_in_12_bits(signed, syntax))
    expected = one.values().copy()
    if not signed:
        expected[:, 0, 1] = -1024
    assert (read(one.write(tmp_path / "a"))[0] == expected).all()


def test_empty_elements_stand_for_their_defaults(read, tmp_path, series):
    about = {"HighBit": None, "PixelPaddingValue": 24, "PixelPaddingRangeLimit": None}
    one = series(attributes=about)
    expected = np.where(one.values() == -1000, -1024, one.values())
    assert (read(one.write(tmp_path / "a"))[0] == expected).all()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_a_failure_of_the_machine_is_no_fault_of_the_file(
    read, tmp_path, series, monkeypatch, error
):
    def fails(*_):
        raise error

    monkeypatch.setattr(np, "fromfile", fails)
    with pytest.raises(type(error)):
        read(series().write(tmp_path / "a"))
