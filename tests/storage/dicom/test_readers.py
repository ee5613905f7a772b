"""Other programs read source and derived series as one geometry."""

import json
import subprocess
from pathlib import Path

import dcm2niix
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everybody calls it


@pytest.fixture(scope="module", params=["straight", "oblique", "tilted"])
def both(request, tmp_path_factory, series, restored) -> tuple[Path, Path]:
    turn = np.radians(20)
    oblique = [round(np.cos(turn), 6), round(np.sin(turn), 6), 0, 0, 0, -1]
    tilted = [1, 0, 0, 0, round(np.cos(turn), 6), round(np.sin(turn), 6)]
    more = {
        "straight": {},
        "oblique": {"ImageOrientationPatient": oblique},
        "tilted": {"ImageOrientationPatient": tilted, "GantryDetectorTilt": 20},
    }[request.param]

    def place(index, image):
        if request.param == "oblique":
            image.ImagePositionPatient = [
                round(-3 * index * np.sin(turn), 4),
                round(3 * index * np.cos(turn), 4),
                7,
            ]
        return image

    folder = tmp_path_factory.mktemp(request.param)
    one = series(slices=6, matrix=(40, 48), attributes=more, change=place)
    source = one.write(folder)
    return source, restored(source)


def by_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    return reader.Execute()


def test_simpleitk_sees_one_grid(both):
    source, derived = map(by_itk, both)
    assert derived.GetSize() == source.GetSize() == (48, 40, 6)
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(derived, what)() == getattr(source, what)()
    low, restored = map(sitk.GetArrayFromImage, (source, derived))
    assert set(np.unique(restored - low).tolist()) <= {-7, 0}


def by_dcm2niix(folder: Path, target: Path) -> tuple[np.ndarray, dict]:
    target.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "y", "-f", "out", "-o", target, folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    # One volume: a series that splits becomes several. A tilt gets an evened one beside it.
    files = [file for file in target.glob("*.nii") if "_Tilt" not in file.name]
    image = sitk.ReadImage(str(min(files)))
    assert len(files) == 1
    grid = np.concatenate([image.GetSpacing(), image.GetOrigin(), image.GetDirection()])
    return grid, json.loads(min(target.glob("*.json")).read_text())


def test_dcm2niix_makes_one_volume_of_the_same_grid(both, tmp_path):
    (grid, said), (other, also) = (
        by_dcm2niix(folder, tmp_path / name) for folder, name in zip(both, "ab", strict=True)
    )
    assert np.array_equal(grid, other)
    assert said["Modality"] == also["Modality"] == "CT"
    assert also["ImageType"][:2] == ["DERIVED", "SECONDARY"]
