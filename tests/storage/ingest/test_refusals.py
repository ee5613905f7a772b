"""Whatever is wrong refuses that series or pair alone, with a stable code and the values."""

import errno
import os
import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from storage.refusals import Code

FULL = "Collection/L001/01-01-2022-NA-NA-00001/1.000-Full Dose Images-1"
LOW = "Collection/L001/01-01-2022-NA-NA-00001/1.000-Low Dose Images-2"


def at(index, **values):
    """Change some attributes of one slice."""

    def change(i, image):
        if i == index:
            for name, value in values.items():
                setattr(image, name, value)
        return image

    return change


def without(index):
    """Leave one slice out."""
    return lambda i, image: None if i == index else image


def absent(*names):
    """Delete attributes of every slice."""

    def change(_, image):
        for name in names:
            delattr(image, name)
        return image

    return change


def moved(index, z):
    return at(index, ImagePositionPatient=[-100, -120, z])


def tilting(i, image):
    image.GantryDetectorTilt = i
    return image


def turning(i, image):
    if i > 5:
        image.ImageOrientationPatient = [0.995, 0.0998, 0, -0.0998, 0.995, 0]
    return image


def wider(i, image):
    if i == 3:
        image.Rows, image.Columns = image.Columns, image.Rows
    return image


# What is done to the full-dose series -> code, and values that the reason must quote.
WRONG_SERIES = {
    "no position": (absent("ImagePositionPatient"), Code.MISSING_GEOMETRY, ["10 of 10"]),
    "no orientation": (absent("ImageOrientationPatient"), Code.MISSING_GEOMETRY, ["Orientation"]),
    "no spacing": (absent("PixelSpacing"), Code.MISSING_GEOMETRY, ["PixelSpacing"]),
    "position without numbers": (
        at(4, ImagePositionPatient=[-100, -120]),
        Code.MISSING_GEOMETRY,
        ["1 of 10"],
    ),
    "directions that are none": (
        at(2, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        Code.CONTRADICTORY_GEOMETRY,
        ["1.000", "expected 1, 1 and 0"],
    ),
    "spacing of zero": (
        at(0, PixelSpacing=[0, 0.8]),
        Code.CONTRADICTORY_GEOMETRY,
        ["0 x 0.8"],
    ),
    "two frames of reference": (
        at(3, FrameOfReferenceUID=generate_uid()),
        Code.CONTRADICTORY_GEOMETRY,
        ["FrameOfReference"],
    ),
    "a slice that jumps sideways": (
        at(4, ImagePositionPatient=[-90, -120, -38]),
        Code.CONTRADICTORY_GEOMETRY,
        ["10.00 mm"],
    ),
    "a slice missing": (without(4), Code.MISSING_SLICES, ["-41", "-35", "6 mm"]),
    "a slice twice": (moved(4, -47.0), Code.DUPLICATE_SLICES, ["-47"]),
    "uneven increments": (moved(4, -37.0), Code.UNEVEN_INCREMENTS, ["4", "median 3"]),
    "too few": (lambda i, image: image if i < 2 else None, Code.TOO_FEW_SLICES, ["2 slices"]),
    "two matrices": (wider, Code.MIXED_MATRIX, ["16 x 20 (9 files)", "20 x 16 (1 files)"]),
    "two pixel spacings": (at(5, PixelSpacing=[0.9, 0.8]), Code.MIXED_SPACING, ["0.9", "0.7"]),
    "a tilt that changes": (tilting, Code.CHANGING_TILT, ["0 to 9 degrees"]),
    "an orientation that changes": (turning, Code.MIXED_ORIENTATION, ["0.995"]),
    "lossy": (at(1, LossyImageCompression="01"), Code.LOSSY_COMPRESSION, ["01"]),
    "colour": (at(1, SamplesPerPixel=3), Code.UNSUPPORTED_PIXELS, ["SamplesPerPixel 3"]),
    "inverted": (
        at(1, PhotometricInterpretation="MONOCHROME1"),
        Code.UNSUPPORTED_PIXELS,
        ["MONOCHROME1"],
    ),
    "more pixels than the matrix": (
        at(1, PixelData=bytes(range(256)) * 5),
        Code.UNREADABLE,
        ["1280 bytes", "expected 640"],
    ),
    "a plain image of two frames": (
        at(1, NumberOfFrames=2, PixelData=bytes(range(256)) * 5),
        Code.UNSUPPORTED_PIXELS,
        ["NumberOfFrames 2", "1 frames"],
    ),
    "bits that are not there": (
        at(1, BitsStored=12, HighBit=9),
        Code.UNSUPPORTED_PIXELS,
        ["BitsStored 12", "HighBit 9"],
    ),
    "no rescale": (absent("RescaleSlope"), Code.NOT_HU, ["RescaleSlope"]),
    "slope of zero": (at(1, RescaleSlope=0), Code.NOT_HU, ["RescaleSlope is 0", "1 of 10 files"]),
    "electron density": (at(1, RescaleType="ED"), Code.NOT_HU, ["RescaleType"]),
    "blank": (
        lambda _, image: setattr(image, "PixelData", bytes(640)) or image,
        Code.ZERO_VARIANCE,
        ["full-dose series: all 10", "-1024 HU"],
    ),
    "blank in the middle": (at(5, PixelData=bytes(640)), Code.ZERO_VARIANCE, ["1 of 10", "-35"]),
}


@pytest.mark.parametrize("wrong", WRONG_SERIES)
def test_a_wrong_series_refuses_its_patient_alone(tmp_path, pair, series, dataset, deliver, wrong):
    change, code, quoted = WRONG_SERIES[wrong]
    source = tmp_path / "source"
    pair(source, "L002", seed=2)
    pair(source, "L001", seed=1)
    shutil.rmtree(source / FULL)
    series("L001", "Full Dose Images", seed=1, change=change).write(source / FULL)
    done = deliver(dataset, source)
    assert done.accepted == ["L002"]
    assert done.refused == [("L001", code)]
    reason = done.refusal.reason
    assert all(value in reason for value in quoted), reason
    assert done.refusal.source == "Collection/L001/01-01-2022-NA-NA-00001"
    assert all((source / file).is_file() for file in done.refusal.files)


@pytest.mark.parametrize("wrong", WRONG_SERIES)
def test_a_later_delivery_mends_it(tmp_path, pair, series, dataset, deliver, wrong):
    source = tmp_path / "source"
    pair(source, "L001", seed=1)
    shutil.move(source / FULL, tmp_path / "good")
    series("L001", "Full Dose Images", seed=1, change=WRONG_SERIES[wrong][0]).write(source / FULL)
    assert deliver(dataset, source).refused
    shutil.rmtree(source / FULL)
    shutil.move(tmp_path / "good", source / FULL)
    done = deliver(dataset, source)
    assert done.accepted == ["L001"]
    assert not done.refused
    assert [row.status for row in done.snapshot.rows] == ["accepted"]


def damage(file, how):
    data = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "text": b"this is no DICOM",
            "cut in the pixels": data[:-100],
            "cut in the header": data[:300],
            "cut in the preamble": data[:100],
            "noise": data[:132] + np.random.default_rng(0).bytes(len(data) - 132),
        }[how]
    )


@pytest.mark.parametrize(
    "how",
    ["empty", "text", "cut in the pixels", "cut in the header", "cut in the preamble", "noise"],
)
def test_a_damaged_file_refuses_its_patient(tmp_path, pair, dataset, deliver, how):
    source = tmp_path / "source"
    pair(source, "L001", seed=1)
    pair(source, "L002", seed=2)
    damage(source / LOW / "1-004.dcm", how)
    done = deliver(dataset, source)
    assert done.accepted == ["L002"]
    assert ("L001", "unreadable") in done.refused
    assert f"{LOW}/1-004.dcm" in {f for row in done.outcome.refused for f in row.files}


def test_a_damaged_file_in_a_heap_of_patients_is_refused_alone(tmp_path, series, dataset, deliver):
    heap = tmp_path / "heap"

    def named(prefix):
        def change(i, image):
            image.file_name = f"{prefix}{i}.dcm"
            return image

        return change

    for seed, patient in enumerate(("L001", "L002")):
        series(patient, "FULL", seed=seed, change=named(f"{patient}f")).write(heap)
        series(patient, "LOW", seed=seed, low=True, change=named(f"{patient}l")).write(heap)
    (heap / "broken.dcm").write_bytes(b"nothing")
    (heap / "readme.txt").write_text("stray")
    done = deliver(dataset, heap)
    assert done.accepted == ["L001", "L002"]
    assert done.refused == [(None, "unreadable")]
    assert done.refusal.source == "broken.dcm"
    (heap / "broken.dcm").unlink()
    again = deliver(dataset, heap)
    assert again.refused == []
    assert not again.snapshot.refused


@pytest.mark.parametrize(
    ("description", "code"),
    [("Full Dose Images", "no_low_dose"), ("Low Dose Images", "no_full_dose")],
)
def test_a_lone_series_has_no_partner(tmp_path, series, dataset, deliver, description, code):
    series("L001", description).write(tmp_path / "source" / "a")
    done = deliver(dataset, tmp_path / "source")
    assert done.refused == [("L001", code)]


def test_series_beside_the_pair_are_refused_alone(tmp_path, pair, series, dataset, deliver):
    source = tmp_path / "source"
    study = pair(source, "L001")
    scout = series(
        "L001", "Topogram", attributes={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    )
    scout.write(study / "scout")
    lone = series("L001", "Topogram", attributes={"ImageType": "LOCALIZER"}, slices=1)
    lone.write(study / "lone")
    screen = {"SOPClassUID": SecondaryCaptureImageStorage}
    series("L001", "Dose Report", attributes=screen, slices=1).write(study / "report")
    series("L001", "PET", attributes={"Modality": "PT"}).write(study / "pet")
    series("L001", "MPR").write(study / "mpr")
    done = deliver(dataset, source)
    assert done.accepted == ["L001"]
    assert sorted(code for _, code in done.refused) == [
        "localizer",
        "localizer",
        "not_ct",
        "secondary_capture",
        "unknown_role",
    ]


@pytest.mark.parametrize("closed", ["Collection/L002", "."])
def test_a_folder_that_cannot_be_opened_is_refused_until_it_can(
    tmp_path, pair, dataset, deliver, monkeypatch, closed
):
    source = tmp_path / "source"
    pair(source, "L001", seed=1)
    pair(source, "L002", seed=2)
    opened = os.scandir

    def scandir(path):
        if str(path) == str(source / closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path)

    with monkeypatch.context() as patch:
        patch.setattr("storage.dicom.tree.os.scandir", scandir)
        done = deliver(dataset, source)
    assert done.refused == [(None, "unreadable")]
    assert done.refusal.source == closed
    assert "Permission denied" in done.refusal.reason
    done = deliver(dataset, source)
    assert [row.patient for row in done.snapshot.patients()] == ["L001", "L002"]
    assert not done.snapshot.refused


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_failure_of_the_machine_is_asked_again_next_time(
    tmp_path, pair, dataset, deliver, monkeypatch, error
):
    pair(tmp_path / "source", "L001")
    opened = pydicom.dcmread

    def fails(stream, **options):
        if stream.name.endswith("Low Dose Images-2/1-004.dcm"):
            raise error
        return opened(stream, **options)

    with monkeypatch.context() as patch:
        patch.setattr("storage.dicom.headers.pydicom.dcmread", fails)
        assert deliver(dataset, tmp_path / "source").refused == [("L001", "unreadable")]
    assert deliver(dataset, tmp_path / "source").accepted == ["L001"]


def test_projections_are_counted_and_left(tmp_path, pair, series, dataset, deliver):
    source = tmp_path / "source"
    study = pair(source, "L001")
    raw = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"}
    series("L001", "Low Dose Projections", attributes=raw).write(study / "projections")
    done = deliver(dataset, source)
    assert (done.accepted, done.refused) == (["L001"], [])


def test_low_and_full_with_the_same_pixels_are_no_pair(tmp_path, series, dataset, deliver):
    series("L001", "FULL", seed=3).write(tmp_path / "source" / "full")
    series("L001", "LOW", seed=3).write(tmp_path / "source" / "low")
    assert deliver(dataset, tmp_path / "source").refused == [("L001", "identical_doses")]


def test_a_broken_redelivery_does_not_remove_the_patient(tmp_path, pair, dataset, deliver):
    source = tmp_path / "source"
    pair(source, "L001")
    good = deliver(dataset, source).snapshot
    damage(source / FULL / "1-003.dcm", "cut in the pixels")
    done = deliver(dataset, source)
    assert done.refused == [("L001", "unreadable")]
    assert done.snapshot.patients() == good.patients()
    assert (done.snapshot.volume("L001").full[:] == good.volume("L001").full[:]).all()


def test_unreadable_files_that_are_nobodys_are_one_refusal_a_folder(tmp_path, dataset, deliver):
    source = tmp_path / "source"
    for folder, count in (("a", 7), ("b", 1)):
        (source / folder).mkdir(parents=True)
        for number in range(count):
            (source / folder / f"{number}.dcm").write_text("<html>404</html>" * number)
    first, second = deliver(dataset, source).outcome.refused
    assert {first.source, second.source} == {"a", "b/0.dcm"}
    many = first if first.source == "a" else second
    assert many.files == tuple(f"a/{number}.dcm" for number in range(7))
    assert many.reason.startswith("7 files cannot be read; the first: the file is empty")
