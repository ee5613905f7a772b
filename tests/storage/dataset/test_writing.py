"""A volume is written whole or not named, and its address is of its content alone."""

import errno

import numpy as np
import obstore
import pytest

from storage.dataset import writing
from storage.errors import DatasetError
from storage.hounsfield import AIR
from storage.stores.location import Location

SHAPE = (5, 8, 6)


@pytest.fixture
def stacks() -> dict[str, np.ndarray]:
    hu = np.random.default_rng(0).normal(40, 12, SHAPE).astype(np.int16)
    return {"low": hu + np.int16(3), "full": hu}


def write(folder, stacks, shape=SHAPE):
    return writing.write(Location(folder / "d"), folder / "new", "A", shape, {}, stacks)


def test_how_slices_lie_in_memory_is_no_part_of_the_address(tmp_path, stacks):
    turned = {dose: [np.asfortranarray(image) for image in stacks[dose]] for dose in stacks}
    assert write(tmp_path, turned) == write(tmp_path, stacks)


def test_slices_of_air_say_nothing_of_the_person(tmp_path, stacks):
    longer = {
        dose: np.concatenate([stack, np.full((2, *SHAPE[1:]), AIR, np.int16)])
        for dose, stack in stacks.items()
    }
    with_air = write(tmp_path, longer, (7, *SHAPE[1:]))
    without = write(tmp_path, stacks)
    assert with_air.pixels != without.pixels
    assert with_air.slice_fingerprints == without.slice_fingerprints
    assert len(set(without.slice_fingerprints)) == 2 * SHAPE[0]


def test_what_reads_back_otherwise_is_no_volume(tmp_path, stacks, monkeypatch):
    class Rotten:
        def bytes(self):
            return b"rot"

    monkeypatch.setattr(obstore, "get", lambda *_: Rotten())
    with pytest.raises(DatasetError, match=r"0/0/0 reads back otherwise .* ingest again"):
        write(tmp_path, stacks)


def test_the_mark_of_a_complete_volume_is_put_last(tmp_path, stacks, monkeypatch):
    names, put = [], obstore.put
    monkeypatch.setattr(obstore, "put", lambda s, n, c: (names.append(n), put(s, n, c)))
    path = write(tmp_path, stacks).path
    assert names[-1] == f"{path}/zarr.json"
    assert sorted(names)[:2] == [f"{path}/full/c/0/0/0", f"{path}/full/zarr.json"]


def test_what_the_source_raises_is_not_said_of_the_scratch(tmp_path, stacks):
    def failing():
        yield stacks["full"][0]
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error") as raised:
        write(tmp_path, {"low": stacks["low"], "full": failing()})
    assert raised.value.errno == errno.EIO
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("stack", "found"),
    [
        (np.zeros((3, 4, 4), np.int16), "3 slices of the full-dose series came, not 5"),
        (np.zeros((6, 4, 4), np.int16), "6 slices of the full-dose series came, not 5"),
        (np.zeros((5, 4, 3), np.int16), r"int16 \(4, 3\), not int16 \(4, 4\)"),
        (np.zeros((5, 4, 4), np.int32), r"int32 \(4, 4\), not int16 \(4, 4\)"),
    ],
)
def test_what_is_no_volume_of_its_shape_is_not_written(tmp_path, stack, found):
    stacks = {"low": np.zeros((5, 4, 4), np.int16), "full": stack}
    with pytest.raises(DatasetError, match=found):
        write(tmp_path, stacks, (5, 4, 4))
    assert not any((tmp_path / "d").rglob("zarr.json"))
    assert not (tmp_path / "new").exists()
