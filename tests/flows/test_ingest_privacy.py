"""Nothing that names a person leaves the delivery: every byte of the home is searched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset as Header

from flows.ingest import ingest
from flows.settings import IngestSettings
from storage.dataset.versions import Dataset
from storage.errors import StorageError
from storage.ingest import pseudonyms

COMMAND = "import sys; from flows.cli.main import main; sys.argv[0] = 'hqinet'; main()"
SECRET = "ZZSECRET"
KEY = "a key that only this test knows"
PATIENT = f"{SECRET}-4711"

TEXTS = ("LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE")


def fill_with_secrets(image: Header) -> Header:
    """Put the word into every text attribute of the standard, and into private ones."""
    for tag, (kind, _, _, _, keyword) in DicomDictionary.items():
        if kind in TEXTS and tag >> 16 > 2 and keyword not in image:
            image.add_new(tag, kind, f"{SECRET}{tag:x}"[:16])
    image.Manufacturer = f"SIEMENS {SECRET}"
    image.ConvolutionKernel = f"B40f {SECRET}"
    image.BodyPartExamined = f"{SECRET}"
    block = image.private_block(0x0099, f"{SECRET} creator", create=True)
    block.add_new(1, "LO", f"{SECRET} private")
    return image


@pytest.fixture(scope="module")
def source(tmp_path_factory, series) -> Path:
    """A pair, a broken pair, a lone series, a scout and a broken file, under telling paths."""
    root = tmp_path_factory.mktemp("private") / f"{SECRET}^Meyer" / f"{SECRET} delivery"

    def telling(patient: str, description: str, broken: int | None = None, **about) -> None:
        def change(i: int, image: Header) -> Header:
            image.file_name = f"{SECRET}_{i}.dcm"
            if i == broken:
                image.PixelData = image.PixelData[:-100]
            return fill_with_secrets(image)

        one = series(patient, f"{description} {SECRET}", change=change, **about)
        one.write(root / patient / f"{description} {SECRET}")

    for patient, seed in ((PATIENT, 1), (f"{SECRET}-2", 2)):
        telling(patient, "FULL", seed=seed)
        telling(patient, "LOW", seed=seed, low=True, broken=4 if seed == 2 else None)
    telling(f"{SECRET}-3", "LOW", low=True, seed=3)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    telling(PATIENT, "Scout", attributes=scout, slices=1)
    (root / f"{SECRET}.dcm").write_bytes(SECRET.encode())
    return root


@pytest.fixture(scope="module")
def cohort_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("cohort") / "cohort.toml"
    file.write_text(f"pseudonymise = true\nignore = ['folder of {SECRET} senior']\n")
    return file


def run(source: Path, home: Path, cohort_file: Path) -> subprocess.CompletedProcess[str]:
    # A Prefect server of its own, so that its database lies in this home too.
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "HQINET_INGEST__COHORT_FILE": str(cohort_file),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
        pseudonyms.VARIABLE: KEY,
    }
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "ingest", str(source), "--home", str(home), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_no_byte_of_a_pseudonymised_ingest_names_anyone(tmp_path, source, cohort_file):
    home = tmp_path / "home"
    done = run(source, home, cohort_file)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["accepted"]) == 1
    codes = sorted(row["code"] for row in result["refused"])
    assert codes == ["localizer", "no_full_dose", "unreadable", "unreadable"]
    dataset = Dataset(home / "dataset")
    # Parquet is compressed: what it holds is searched as text beside the bytes.
    texts = [done.stdout, done.stderr]
    texts += [str(dataset.snapshot(c.commit).rows) for c in dataset.log()]
    texts += [str(c) for c in dataset.log()]
    files = [file for file in home.rglob("*") if file.is_file()]
    assert home / "prefect" / "prefect.db" in files
    words = [SECRET.encode(), b"Name^", KEY.encode(), *uids(source)]
    for word in words:
        assert not [text for text in texts if word.decode() in text], word
        assert not [file for file in files if word in file.read_bytes()], word
        assert not [file for file in files if word.decode() in str(file)], word


def uids(source: Path) -> list[bytes]:
    import pydicom

    image = pydicom.dcmread(next((source / PATIENT).rglob("*.dcm")))
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    return [str(image[name].value).encode() for name in names]


def test_the_same_key_gives_the_same_patient_and_another_key_another(
    home, source, cohort_file, monkeypatch
):
    settings = IngestSettings(cohort_file=cohort_file)
    monkeypatch.setenv(pseudonyms.VARIABLE, KEY)
    first = ingest(str(source), settings=settings)
    again = ingest(str(source), settings=settings)
    assert (again.commit, again.unchanged) == (1, 1)
    assert first.accepted[0].patient == pseudonyms.Pseudonyms(KEY).patient(PATIENT)
    assert pseudonyms.Pseudonyms("another key of length").patient(PATIENT) != (
        first.accepted[0].patient
    )


@pytest.mark.parametrize("key", [None, "short"])
def test_without_a_secret_nothing_is_read(home, source, cohort_file, monkeypatch, key):
    monkeypatch.delenv(pseudonyms.VARIABLE, raising=False)
    if key:
        monkeypatch.setenv(pseudonyms.VARIABLE, key)
    with pytest.raises(StorageError, match=pseudonyms.VARIABLE):
        ingest(str(source), settings=IngestSettings(cohort_file=cohort_file))


def test_pydicom_warns_of_no_path():
    """A process of its own: pytest has its own filters."""
    warn = "warnings.warn_explicit('in file /Name^Patient', UserWarning, 'f', 1, '{}.filereader')"
    for module, seen in (("pydicom", False), ("another", True)):
        code = f"import warnings, storage.dicom.headers; {warn.format(module)}"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert ("Name^Patient" in done.stderr) == seen
