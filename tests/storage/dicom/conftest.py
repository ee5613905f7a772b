"""What the tests of this room write: Enhanced CT, and files in any transfer syntax."""

from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedCTImageStorage, ExplicitVRBigEndian, generate_uid


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
