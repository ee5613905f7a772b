"""A real PACS, Orthanc, takes source and derived series, and gives them back as one study."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Pacs:
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
def pacs(tmp_path_factory) -> Iterator[Pacs]:
    """Orthanc with its DICOMweb plugin; needs Debian's orthanc and orthanc-dicomweb."""
    program = shutil.which("Orthanc")
    assert program, "install Debian's packages orthanc and orthanc-dicomweb"
    folder, server = tmp_path_factory.mktemp("orthanc"), Pacs(free_port(), free_port())
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": server.http,
        "DicomPort": server.dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [str(PLUGIN)],
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


def test_source_and_derived_stand_in_one_study_and_come_back_as_they_were(
    pacs, tmp_path, series, restored
):
    source = series("L042", slices=5, matrix=(40, 48)).write(tmp_path / "source")
    derived = restored(source)
    pacs.store(source)
    pacs.store(derived)
    first = pydicom.dcmread(min(derived.iterdir()))
    (study,) = pacs.find("studies?PatientID=L042")
    assert study["0020000D"]["Value"] == [first.StudyInstanceUID]
    rows = pacs.find(f"studies/{first.StudyInstanceUID}/series?includefield=0008103E")
    described = {row["0020000E"]["Value"][0]: row["0008103E"]["Value"][0] for row in rows}
    assert described[first.SeriesInstanceUID] == "HQINet 3 Full Dose Images"
    assert sorted(described.values()) == ["Full Dose Images", "HQINet 3 Full Dose Images"]
    for folder in (source, derived):
        sent = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, folder.iterdir())}
        uid = next(iter(sent.values())).SeriesInstanceUID
        back = pacs.retrieve(f"studies/{first.StudyInstanceUID}/series/{uid}")
        assert {image.SOPInstanceUID for image in back} == sent.keys()
        for image in back:
            assert image.PixelData == sent[image.SOPInstanceUID].PixelData
            assert image.to_json() == sent[image.SOPInstanceUID].to_json()
