"""A series is ordered in space and checked to be one volume."""

import numpy as np
import pytest

from storage.dicom.headers import read_header
from storage.dicom.limits import Limits
from storage.dicom.series import order
from storage.refusals import Refusal


def test_slices_stand_in_the_order_of_space_whatever_the_names(read, tmp_path, series):
    one = series(slices=30)
    hu, _ = read(one.write(tmp_path / "a"))
    assert list(hu[:, 0, 0]) == list(range(30))
    assert (hu == np.maximum(one.values(), -1024)).all()


@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [1, 0, 0, 0, -1, 0], [0, 1, 0, 0, 0, -1]],
)
def test_order_follows_the_normal_of_the_orientation(read, tmp_path, series, orientation):
    normal = np.cross(orientation[:3], orientation[3:])

    def place(i, image):
        image.ImageOrientationPatient = orientation
        image.ImagePositionPatient = list(normal * i * 2.5 + [5, 6, 7])
        return image

    hu, _ = read(series(change=place).write(tmp_path / "a"))
    assert list(hu[:, 0, 0]) == list(range(10))


def test_increment_is_measured_and_slice_thickness_is_not_it(tmp_path, series):
    folder = series(increment=1.5, attributes={"SliceThickness": 5}).write(tmp_path / "a")
    headers = [read_header(folder, file.name) for file in folder.iterdir()]
    assert order(headers, Limits()).geometry.spacing == (1.5, 0.7, 0.8)


def test_rounded_positions_are_even_enough(read, tmp_path, series):
    def rounded(i, image):
        image.ImagePositionPatient = [-100, -120, round(i * 0.6667, 1)]
        return image

    hu, _ = read(series(slices=40, change=rounded).write(tmp_path / "a"))
    assert len(hu) == 40


def test_a_constant_tilt_is_no_error(read, tmp_path, series):
    def tilted(i, image):
        image.GantryDetectorTilt = 12
        image.ImagePositionPatient = [-100, -120 + i * 0.64, i * 3]
        return image

    assert len(read(series(change=tilted).write(tmp_path / "a"))[0]) == 10


def test_limits_are_settings(read, tmp_path, series):
    folder = series(slices=10).write(tmp_path / "a")
    with pytest.raises(Refusal, match="10 slices; expected 11"):
        read(folder, Limits(min_slices=11))
