"""One geometry: measured from headers, cropped, placed in patient coordinates, kept as JSON."""

import json

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.dicom.frames import Frame, Stored
from storage.dicom.geometry import Geometry, images_of, measure
from storage.dicom.headers import FileHeader, read_header
from storage.dicom.limits import Limits
from storage.dicom.series import order
from storage.refusals import Code, Refusal

STORED = Stored(offset=0, dtype="<i2", bits=16, high=15, padding=None)
# What decimal strings of 16 characters leave of a position and of a direction cosine.
DECIMALS, COSINE_DECIMALS = 4, 9


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """Row, column and normal of a plane that is turned about all three axes."""
    axes = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        axes = axes @ turn
    return axes


@st.composite
def series(draw) -> tuple[list[FileHeader], np.ndarray]:
    """Headers of a series in any orientation and tilt, out of order, and where its slices lie."""
    count = draw(st.integers(3, 40))
    angle = st.floats(-3.1, 3.1)
    row, column, normal = rotation(draw(st.tuples(angle, angle, angle)))
    increment = draw(st.floats(0.5, 5))
    tilt = draw(st.sampled_from([(0.0, 0.0), (0.0, 0.3), (-0.2, 0.0), (0.11, -0.07)]))
    start = np.array(draw(st.tuples(*[st.floats(-500, 500)] * 3)))
    step = increment * (normal + tilt[0] * row + tilt[1] * column)
    places = np.round(start + np.outer(np.arange(count), step), DECIMALS)
    cosines = tuple(np.round(np.concatenate([row, column]), COSINE_DECIMALS).tolist())
    enhanced = draw(st.booleans())
    ranks = draw(st.permutations(range(count)))
    frames = [Frame(tuple(places[i].tolist()), cosines, (0.7, 0.8), (1.0, 0.0)) for i in ranks]
    groups = [tuple(frames)] if enhanced else [(frame,) for frame in frames]
    headers = [
        FileHeader(
            path=f"{number}.dcm",
            size=1,
            mtime_ns=1,
            kind="image",
            rows=16,
            columns=20,
            frame_of_reference="1.2.3",
            frames=group,
            stored=STORED,
        )
        for number, group in enumerate(groups)
    ]
    return headers, places


@given(series())
def test_every_slice_is_placed_where_its_header_says(made):
    headers, places = made
    geometry = order(headers, Limits()).geometry
    found = np.array([geometry.place(i) for i in range(len(geometry))])
    np.testing.assert_allclose(found, places, atol=5e-3)
    assert geometry.frame_of_reference == "1.2.3"


@given(series(), st.data())
def test_a_crop_lies_where_its_slices_lay(made, data):
    whole = order(made[0], Limits())
    start = data.draw(st.integers(0, len(whole.slices) - 1))
    stop = data.draw(st.integers(start + 1, len(whole.slices)))
    part = whole.crop(start, stop)
    assert part.slices == whole.slices[start:stop]
    placed = [part.geometry.place(i) for i in range(stop - start)]
    there = [whole.geometry.place(i) for i in range(start, stop)]
    np.testing.assert_allclose(placed, there, atol=1e-9)


@given(series())
def test_what_stands_with_the_volume_is_the_geometry(made):
    geometry = order(made[0], Limits()).geometry
    stored = json.loads(json.dumps(geometry.attributes()))
    again = Geometry.from_attributes(stored | {"frame_of_reference": "1.2.3"})
    assert again == geometry
    assert ("shift" in stored) == any(geometry.shift)


def test_a_volume_that_was_written_before_tilt_was_kept_has_none():
    old = {"spacing": [3, 1, 1], "positions": [0, 3], "orientation": [1, 0, 0, 0, 1, 0]}
    geometry = Geometry.from_attributes(old | {"origin": [-100.0, -120.0]})
    assert geometry.place(1) == (-100, -120, 3)


def test_a_cropped_tilted_pair_is_stored_where_it_lies(tmp_path, series, dataset, deliver):
    def tilted(first):
        def change(i, image):
            image.ImagePositionPatient = [-100, -120 + (first + i) * 0.64, (first + i) * 3]
            return image

        return change

    for dose, first in (("Full", 0), ("Low", 2)):
        one = series("L001", f"{dose} Dose", low=dose == "Low", change=tilted(first))
        one.write(tmp_path / "source" / dose)
    volume = deliver(dataset, tmp_path / "source").snapshot.volume("L001")
    geometry = Geometry.from_attributes(volume.attributes)
    expected = [(-100, -120 + i * 0.64, i * 3) for i in range(2, 10)]
    np.testing.assert_allclose([geometry.place(i) for i in range(8)], expected, atol=1e-3)
    assert geometry.frame_of_reference


@pytest.mark.parametrize("drift", [0.0, 0.04])
def test_a_line_that_bends_a_little_each_slice_is_no_tilt(tmp_path, series, drift):
    def bent(i, image):
        image.ImagePositionPatient = [-100 + drift * i * i / 10, -120, i * 3]
        return image

    folder = series(slices=40, change=bent).write(tmp_path / "a")
    headers = [read_header(folder, file.name) for file in folder.iterdir()]
    if not drift:
        assert measure(images_of(headers), Limits())[1].shift == (0.0, 0.0)
        return
    with pytest.raises(Refusal, match="beside the line of the others") as refused:
        measure(images_of(headers), Limits())
    assert refused.value.code is Code.CONTRADICTORY_GEOMETRY


@pytest.mark.real
def test_real_series_are_placed_where_their_headers_say(real_data):
    for name in ("ldct-mini", "limb-mini"):
        folders = sorted({file.parent for file in (real_data / name).rglob("*.dcm")})
        assert folders
        for folder in folders:
            files = sorted(folder.glob("*.dcm"))
            series = order([read_header(folder, file.name) for file in files], Limits())
            for index, item in enumerate(series.slices):
                image = pydicom.dcmread(folder / item.path, stop_before_pixels=True)
                there = [float(v) for v in image.ImagePositionPatient]
                np.testing.assert_allclose(series.geometry.place(index), there, atol=0.05)
