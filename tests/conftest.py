"""Tiny real DICOM: cohorts that are written file by file, with whatever a test wants wrong."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from hypothesis import settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

# Read when torch is imported. Tiny networks gain nothing from two threads, which wait for each
# other in busy loops and take minutes where a core is also wanted by something else.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# pynetdicom has programs of the names of DCMTK's, which an activated environment finds first.
os.environ["PATH"] = os.pathsep.join(
    folder
    for folder in os.environ["PATH"].split(os.pathsep)
    if Path(folder) != Path(sys.executable).parent
)

settings.register_profile("project", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("project")

AIR = -1024
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
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


@dataclass(frozen=True)
class Orthanc:
    """The ports of a server on loopback."""

    http: int
    dicom: int

    def store(self, folder: Path) -> None:
        """C-STORE all files of a folder."""
        entity = AE("HQINET")
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", self.dicom, ae_title="ORTHANC")
        assert association.is_established
        for file in sorted(folder.iterdir()):
            assert association.send_c_store(pydicom.dcmread(file)).Status == 0x0000
        association.release()

    def find(self, path: str) -> list[dict]:
        """QIDO-RS."""
        answer = httpx.get(f"http://127.0.0.1:{self.http}/dicom-web/{path}")
        return answer.raise_for_status().json()

    def retrieve(self, path: str) -> list[Dataset]:
        """WADO-RS: the instances below a path."""
        answer = httpx.get(
            f"http://127.0.0.1:{self.http}/dicom-web/{path}",
            headers={"Accept": "multipart/related; type=application/dicom; transfer-syntax=*"},
        ).raise_for_status()
        mark = re.search(r'boundary="?([^";]+)', answer.headers["Content-Type"]).group(1)
        parts = answer.content.split(f"--{mark}".encode())[1:-1]
        bodies = [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in parts]
        return [pydicom.dcmread(BytesIO(body)) for body in bodies]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with its DICOMweb plugin; needs Debian's orthanc and orthanc-dicomweb."""
    program = shutil.which("Orthanc")
    assert program, "install Debian's packages orthanc and orthanc-dicomweb"
    folder, server = tmp_path_factory.mktemp("orthanc"), Orthanc(free_port(), free_port())
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": server.http,
        "DicomPort": server.dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [str(ORTHANC_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log) as process,
    ):
        for _ in range(150):
            with suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{server.http}/dicom-web/studies").raise_for_status()
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield server
        process.terminate()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signed itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=hqinet",
        "-out",
        files[0],
        "-keyout",
        files[1],
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return files
