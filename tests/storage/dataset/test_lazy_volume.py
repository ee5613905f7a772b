"""Slices are what Zarr reads; what is lost or damaged is said with the shard's name."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import obstore
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.dataset import volumes, writing
from storage.dataset.lazy_volume import LazyVolume
from storage.dataset.rows import Accepted
from storage.errors import DatasetError
from storage.stores.location import Location

SLICES = 2 * volumes.SHARD_SLICES + 5


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Location, str]:
    """A volume of two shards and a part of a third."""
    root = tmp_path_factory.mktemp("slices")
    hu = np.random.default_rng(0).integers(-1024, 3071, (SLICES, 12, 9)).astype(np.int16)
    about = {"anatomy": "chest", "spacing": [1.0, 1.0, 1.0], "positions": list(range(SLICES))}
    location = Location(root / "dataset")
    stacks = {"low": hu[::-1], "full": hu}
    return location, writing.write(location, root / "new", "A", hu.shape, about, stacks).path


def row(path: str) -> Accepted:
    """The row that names the volume, without the size that it was written with."""
    return Accepted(
        patient="A",
        cohort="c",
        path=path,
        digest="",
        slices=SLICES,
        matrix=(12, 9),
        spacing=(1.0, 1.0, 1.0),
        anatomy="chest",
        vendor="GE",
    )


@pytest.fixture(scope="module")
def theirs(written) -> dict[str, np.ndarray]:
    """Both doses as Zarr reads them."""
    location, path = written
    group = zarr.open_group(f"{location}/{path}", mode="r")
    return {dose: group[dose][:] for dose in ("low", "full")}


class Copy:
    """The full dose of a volume for itself, in a folder or on a server."""

    def __init__(self, written: tuple[Location, str], location: Location) -> None:
        self.location, self.store = location, location.store(create=True)
        for i in range(3):
            original, path = written
            self.put(i, Path(f"{original}/{path}/full/c/{i}/0/0").read_bytes())

    def get(self, shard: int) -> bytearray:
        return bytearray(obstore.get(self.store, f"full/c/{shard}/0/0").bytes())

    def put(self, shard: int, content: bytes) -> None:
        obstore.put(self.store, f"full/c/{shard}/0/0", bytes(content))

    def slices(self, *matrix: int) -> LazyVolume:
        return LazyVolume(
            self.location, "full", (SLICES, *(matrix or (12, 9))), volumes.SHARD_SLICES
        )


@pytest.fixture(params=["folder", "s3"])
def copy(request, written, tmp_path) -> Copy:
    if request.param == "folder":
        return Copy(written, Location(tmp_path / "volume"))
    options = request.getfixturevalue("s3")
    return Copy(written, Location(f"s3://ct-data/{tmp_path.name}", options))


def bounds(size: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(-size - 2, size + 2)


def indices(size: int) -> st.SearchStrategy[int | slice]:
    steps = st.none() | st.sampled_from([1, 2, 7, -1, -3])
    return st.integers(-size, size - 1) | st.builds(slice, bounds(size), bounds(size), steps)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=indices(SLICES) | st.tuples(indices(SLICES), indices(12), indices(9)))
def test_any_part_is_what_zarr_reads(written, theirs, index: Any) -> None:
    location, path = written
    ours = volumes.open_volume(location, row(path))
    for dose, slices in (("low", ours.low), ("full", ours.full)):
        part = slices[index]
        np.testing.assert_array_equal(part, theirs[dose][index], strict=True)
        assert part.dtype == np.int16


def test_numpy_takes_it_for_an_array(written, theirs) -> None:
    location, path = written
    low = volumes.open_volume(location, row(path)).low
    assert (len(low), low.shape, low.dtype, low.ndim) == (SLICES, (SLICES, 12, 9), np.int16, 3)
    np.testing.assert_array_equal(np.asarray(low), theirs["low"])
    assert np.asarray(low, np.float32).dtype == np.float32
    assert sum(1 for _ in low) == SLICES
    for missing in (SLICES, -SLICES - 1, (0, 12), (slice(None), 0, 9)):
        with pytest.raises(IndexError):
            low[missing]


def test_another_process_reads_what_was_pickled(written) -> None:
    location, path = written
    full = volumes.open_volume(location, row(path)).full
    assert (pickle.loads(pickle.dumps(full))[38:43] == full[38:43]).all()


def test_threads_read_beside_each_other(written) -> None:
    location, path = written
    full = volumes.open_volume(location, row(path)).full
    whole = pickle.loads(pickle.dumps(full))[:]
    with ThreadPoolExecutor(16) as readers:
        runs = [slice(i % SLICES, i % SLICES + 3) for i in range(400)]
        for run, read in zip(runs, readers.map(full.__getitem__, runs), strict=True):
            np.testing.assert_array_equal(read, whole[run])


def test_a_lost_shard_is_no_air(copy) -> None:
    copy.store.delete("full/c/1/0/0")
    full = copy.slices()
    assert full[:40].shape == (40, 12, 9)
    with pytest.raises(DatasetError, match=r"full/c/1/0/0: not there: look whether"):
        full[39:41]


@pytest.mark.parametrize("place", [10, -10, -700])
def test_a_damaged_byte_of_a_chunk_or_of_the_index_is_named(copy, place: int) -> None:
    content = copy.get(1)
    content[place] ^= 0x10
    copy.put(1, content)
    with pytest.raises(
        DatasetError, match=r"full/c/1/0/0: damaged \(.*checksum.*remove the folder"
    ):
        copy.slices()[40:80]


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_truncated_shard_is_named(copy, size: int) -> None:
    copy.put(0, copy.get(0)[:size])
    with pytest.raises(DatasetError, match="full/c/0/0/0: damaged"):
        copy.slices()[0:3]


@pytest.mark.parametrize("entry", [(10**9, 10), (0, 2**63), (2**64 - 1, 2**64 - 1), (0, 0), (0, 7)])
def test_an_index_that_names_other_bytes_is_damaged(copy, entry: tuple[int, int]) -> None:
    content = copy.get(2)
    start = len(content) - 16 * volumes.SHARD_SLICES - 4
    index = np.frombuffer(content[start:-4], "<u8").copy().reshape(-1, 2)
    index[1] = entry
    checksum = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    copy.put(2, content[:start] + index.tobytes() + checksum)
    with pytest.raises(DatasetError, match="full/c/2/0/0: damaged"):
        copy.slices()[80:83]


def test_chunks_of_another_matrix_are_damaged(copy) -> None:
    with pytest.raises(DatasetError, match="a chunk of 216 bytes, expected 240"):
        copy.slices(12, 10)[0:3]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"zarr_format": 9}', b"\xff\x00"])
@pytest.mark.parametrize("name", ["zarr.json", "low/zarr.json"])
def test_damaged_metadata_is_said_in_one_line(written, tmp_path, name: str, damage: bytes) -> None:
    location, path = written
    shutil.copytree(f"{location}/{path}", tmp_path / path)
    (tmp_path / path / name).write_bytes(damage)
    for read, of in (
        (volumes.open_volume, row(path)),
        (volumes.check, row(path)),
        (volumes.digest, path),
    ):
        with pytest.raises(DatasetError, match=r"not there, or a zarr\.json of it is damaged"):
            read(Location(tmp_path), of)


def test_arrays_of_another_layout_are_not_read(written, tmp_path) -> None:
    location, path = written
    shutil.copytree(f"{location}/{path}", tmp_path / path)
    file = tmp_path / path / "low/zarr.json"
    file.write_text(file.read_text().replace('"int16"', '"int32"'))
    with pytest.raises(DatasetError, match="damaged"):
        volumes.open_volume(Location(tmp_path), row(path))
