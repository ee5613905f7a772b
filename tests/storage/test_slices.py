"""Slices are what Zarr reads; what is lost or damaged is said with the shard's name."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import volumes
from storage.errors import DatasetError, StorageError
from storage.location import Location
from storage.slices import Slices

SLICES = 2 * volumes.SHARD_SLICES + 5


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Location, str]:
    """A volume of two shards and a part of a third."""
    root = tmp_path_factory.mktemp("slices")
    hu = np.random.default_rng(0).integers(-1024, 3071, (SLICES, 12, 9)).astype(np.int16)
    about = {"anatomy": "chest", "spacing": [1.0, 1.0, 1.0], "positions": list(range(SLICES))}
    location = Location(root / "dataset")
    stacks = {"low": hu[::-1], "full": hu}
    return location, volumes.write(location, root / "new", "A", hu.shape, about, stacks).path


@pytest.fixture
def copy(written, tmp_path) -> tuple[Slices, Path]:
    """The full dose in a folder of its own, and that folder."""
    location, path = written
    folder = tmp_path / "full"
    for file in Path(f"{location}/{path}/full/c").rglob("*"):
        if file.is_file():
            target = folder / "c" / file.relative_to(f"{location}/{path}/full/c")
            target.parent.mkdir(parents=True)
            target.write_bytes(file.read_bytes())
    return Slices(Location(folder), (SLICES, 12, 9), volumes.SHARD_SLICES), folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(-SLICES - 2, SLICES + 2), count=st.integers(0, SLICES))
def test_any_run_of_slices_is_what_zarr_reads(written, start: int, count: int) -> None:
    location, path = written
    theirs = zarr.open_group(f"{location}/{path}", mode="r")
    ours = volumes.open_volume(location, path, "A")
    for dose, slices in (("low", ours.low), ("full", ours.full)):
        run = slice(start, start + count)
        np.testing.assert_array_equal(slices[run], theirs[dose][:][run])
    assert slices[run].dtype == np.int16


def test_another_process_reads_what_was_pickled(written) -> None:
    location, path = written
    full = volumes.open_volume(location, path, "A").full
    assert (pickle.loads(pickle.dumps(full))[38:43] == full[38:43]).all()


def test_every_second_slice_is_no_run(written) -> None:
    location, path = written
    with pytest.raises(ValueError, match="not by 2"):
        volumes.open_volume(location, path, "A").full[::2]


def test_a_lost_shard_is_no_air(copy) -> None:
    full, folder = copy
    (folder / "c/1/0/0").unlink()
    assert full[:40].shape == (40, 12, 9)
    with pytest.raises(DatasetError, match=r"full/c/1/0/0: not there; remove the folder"):
        full[39:41]


@pytest.mark.parametrize("place", [10, -10, -700])
def test_a_damaged_byte_of_a_chunk_or_of_the_index_is_named(copy, place: int) -> None:
    full, folder = copy
    shard = folder / "c/1/0/0"
    content = bytearray(shard.read_bytes())
    content[place] ^= 0x10
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"full/c/1/0/0: damaged \(.*checksum"):
        full[40:80]


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_truncated_shard_is_named(copy, size: int) -> None:
    full, folder = copy
    shard = folder / "c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(StorageError, match="full/c/0/0/0: "):
        full[0:3]
