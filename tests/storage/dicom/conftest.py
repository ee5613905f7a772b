"""What the tests of this room write: Enhanced CT, any transfer syntax, derived series."""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedCTImageStorage, ExplicitVRBigEndian, generate_uid

from storage.dicom.derived import (
    Derivation,
    derived_instance,
    referenced_series,
    series_uid,
)
from storage.dicom.finding import find_series
from storage.dicom.limits import Limits
from storage.dicom.series import order
from storage.dicom.source_images import changed_values, source_images
from storage.dicom.stored_words import decoded

OPTIONS = '{"strength": 1.0}'
DERIVATION = Derivation(
    series=series_uid("1.2", ["1.2.1", "1.2.2"], "ab" * 32, OPTIONS),
    model="3",
    identity="ab" * 32,
    software="0.1.0",
    options=OPTIONS,
    description="Noise reduction by HQINet, model 3",
    contribution="commit 7",
    time=datetime(2026, 11, 24, 12, 0, tzinfo=UTC),
)


def derive(folder, change=0, derivation=DERIVATION):
    """Source images and derived instances of the one series in a folder, changed by some HU."""
    (found,), _ = find_series(folder)
    ordered = order(found.headers, Limits(min_slices=1))
    references = referenced_series(found.uid, [(h.sop_class, h.instance) for h in found.headers])
    pairs = []
    with tempfile.TemporaryDirectory() as scratch:
        read, words = decoded(found.root, ordered, Path(scratch))
    for hu, source in zip(read, source_images(found.root, ordered, words), strict=True):
        values = changed_values(source, hu, (hu + change).astype(np.int16))
        pairs.append((source, derived_instance(source, values, derivation, references)))
    return ordered, pairs


@pytest.fixture(scope="session")
def derivation() -> Derivation:
    """What made the derived series of these tests, on 24 November 2026 at 12:00 UTC."""
    return DERIVATION


@pytest.fixture(name="derive", scope="session")
def _derive() -> Callable:
    return derive


@pytest.fixture(scope="session")
def restored(tmp_path_factory) -> Callable[[Path], Path]:
    """Writes what a model that takes 7 HU off makes of the series in a folder; returns where."""

    def write(folder: Path) -> Path:
        target = tmp_path_factory.mktemp("restored")
        for number, (_, image) in enumerate(derive(folder, change=-7)[1], 1):
            image.save_as(target / f"{number:04d}.dcm", enforce_file_format=True)
        return target

    return write


@pytest.fixture(name="enhanced", scope="session")
def _enhanced() -> Callable:
    return enhanced


@pytest.fixture(name="recode", scope="session")
def _recode() -> Callable[[Path, str], None]:
    return recode


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


def recode(folder: Path, syntax: str) -> None:
    """Write the files of a folder anew in a transfer syntax of pydicom's name, or of GDCM's."""
    for file in folder.iterdir():
        uid = getattr(pydicom.uid, syntax, None)
        image = pydicom.dcmread(file)
        if uid is None:
            _recode_by_gdcm(file, getattr(gdcm.TransferSyntax, syntax))
        elif uid.is_compressed and not uid.is_deflated:
            image.compress(uid, generate_instance_uid=False)
            image.save_as(file)
        else:
            _rewrite(image, file, uid)


def _rewrite(image: Dataset, file: Path, syntax: UID) -> None:
    if syntax == ExplicitVRBigEndian:
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    # Elements that were not looked at would be written as they were read.
    fresh = Dataset()
    for element in image:
        fresh.add(element)
    fresh.file_meta = image.file_meta
    fresh.file_meta.TransferSyntaxUID = syntax
    fresh.save_as(file, enforce_file_format=True)


def _recode_by_gdcm(file: Path, syntax: int) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(file))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
