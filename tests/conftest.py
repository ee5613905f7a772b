"""Tiny real DICOM: cohorts that are written file by file, with whatever a test wants wrong."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

# Read when torch is imported. Tiny networks gain nothing from two threads, which wait for each
# other in busy loops and take minutes where a core is also wanted by something else.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("project", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("project")

AIR = -1024
Change = Callable[[int, Dataset], Dataset | None]


def anatomy(seed: int, slices: int, rows: int, columns: int) -> np.ndarray:
    """HU of a body in air, (slice, row, column), different for each seed and slice.

    The first pixel of each slice is its index: a test sees at once where an image landed.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    inside = (x / 0.8) ** 2 + (y / 0.7) ** 2 < 1
    hu = np.where(inside, rng.normal(40, 12, (slices, rows, columns)), -1000).round()
    hu[:, 0, 0] = np.arange(slices)
    return hu.astype(np.int16)


@dataclass
class Series:
    """One series to be written; `change` gets each image before it is saved.

    Attributes:
        change: called with the slice index and the data set; what it returns is saved in its
            place, nothing if it returns None.
    """

    patient: str = "L001"
    description: str = "Full Dose Images"
    hu: np.ndarray | None = None
    seed: int = 1
    low: bool = False
    slices: int = 10
    matrix: tuple[int, int] = (16, 20)
    increment: float = 3.0
    start: float = -50.0
    spacing: tuple[float, float] = (0.7, 0.8)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    change: Change = lambda _, image: image

    def values(self) -> np.ndarray:
        """HU of the series: the anatomy of its seed, noisier where it is low dose."""
        if self.hu is not None:
            return self.hu
        hu = anatomy(self.seed, self.slices, *self.matrix)
        if self.low:
            noise = np.random.default_rng(self.seed + 1000).normal(0, 30, hu.shape).round()
            noise[:, 0, 0] = 0
            hu = np.clip(hu + noise, AIR, 3071).astype(np.int16)
        return hu

    def write(self, folder: Path) -> Path:
        """Write the files, names shuffled against slice order; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        values = self.values()
        numbers = np.random.default_rng(7).permutation(len(values)) + 1
        uid = generate_uid(entropy_srcs=[self.patient, self.description, str(folder.name)])
        for index, hu in enumerate(values):
            image = self.change(index, self.image(index, hu, uid))
            if image is not None:
                name = getattr(image, "file_name", f"1-{numbers[index]:03d}.dcm")
                image.save_as(folder / name, enforce_file_format=True)
        return folder

    def image(self, index: int, hu: np.ndarray, uid: str) -> Dataset:
        """One CT image with the attributes of its kind."""
        image = Dataset()
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(index)])
        image.StudyInstanceUID = generate_uid(entropy_srcs=["study", self.patient])
        image.SeriesInstanceUID = uid
        image.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", uid])
        image.Modality = "CT"
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.PatientID = self.patient
        image.PatientName = f"Name^{self.patient}"
        image.Manufacturer = "SIEMENS"
        image.SeriesDescription = self.description
        image.BodyPartExamined = "ABDOMEN"
        image.InstanceNumber = index + 1
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [-100, -120, self.start + index * self.increment]
        image.PixelSpacing = list(self.spacing)
        image.SliceThickness = 5
        image.Rows, image.Columns = hu.shape
        image.SamplesPerPixel = 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation = 1
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, -1024, "HU"
        image.PixelData = (hu.astype("<i2") + 1024).astype("<i2").tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for name, value in self.attributes.items():
            setattr(image, name, value)
        return image


def write_pair(root: Path, patient: str = "L001", seed: int = 1, **both: Any) -> Path:
    """Low and full dose of one patient in the layout of a TCIA download; returns its folder."""
    study = root / "Collection" / patient / "01-01-2022-NA-NA-00001"
    Series(patient, "Full Dose Images", seed=seed, **both).write(study / "1.000-Full Dose Images-1")
    Series(patient, "Low Dose Images", seed=seed, low=True, **both).write(
        study / "1.000-Low Dose Images-2"
    )
    return study


@pytest.fixture(scope="session")
def series() -> type[Series]:
    """The class that writes one series."""
    return Series


@pytest.fixture(scope="session")
def pair() -> Callable[..., Path]:
    """The function that writes low and full dose of one patient."""
    return write_pair


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT; with the variable set, a missing folder is a failure."""
    named = os.environ.get("HQINET_REAL_DATA")
    if named is None:
        pytest.skip("HQINET_REAL_DATA is not set")
    folder = Path(named).absolute()
    assert folder.is_dir(), f"HQINET_REAL_DATA={named} is no folder"
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """Options of a real S3 server on loopback with a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A process of its own: a thread would wait for the lock that the client's call holds.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        options = {
            "aws_endpoint": f"http://127.0.0.1:{port}",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "aws_region": "us-east-1",
        }
        for _ in range(150):
            with suppress(httpx.TransportError):
                httpx.put(f"{options['aws_endpoint']}/ct-data").raise_for_status()
                break
            time.sleep(0.2)
        yield options
        server.terminate()
