"""A shard is, byte for byte, what Zarr writes."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import shards, volumes
from storage.errors import DatasetError
from storage.location import Location


@pytest.mark.parametrize("slices", [1, 39, 40, 41, 80, 97])
def test_a_volume_is_byte_for_byte_what_zarr_writes(tmp_path, slices):
    hu = np.random.default_rng(slices).integers(-1024, 3071, (slices, 12, 9)).astype(np.int16)
    hu[1::3] = volumes.AIR
    location = Location(tmp_path / "dataset")
    stacks = {"low": hu, "full": hu[::-1]}
    path = volumes.write(location, tmp_path / "new", "A", hu.shape, {}, stacks).path
    ours = tmp_path / "dataset" / path
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for dose, stack in stacks.items():
        (theirs / dose).mkdir()
        (theirs / dose / "zarr.json").write_bytes((ours / dose / "zarr.json").read_bytes())
        with zarr.config.set({"array.write_empty_chunks": True}):
            zarr.open_array(str(theirs / dose))[:] = stack
        assert contents(ours / dose) == contents(theirs / dose)
        assert len(contents(ours / dose)) == 1 + -(-slices // volumes.SHARD_SLICES)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(-32768, 32767), st.integers(0, 2**32))
def test_a_chunk_decodes_to_its_slice(rows, columns, lowest, seed):
    image = np.random.default_rng(seed).integers(lowest, 32768, (rows, columns)).astype(np.int16)
    decoded = np.empty_like(image)
    shards.decode(memoryview(shards.encode(image)), decoded)
    assert np.array_equal(decoded, image)
    # A slice that lies otherwise in memory is the same slice.
    assert shards.encode(np.asfortranarray(image)) == shards.encode(image)


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
        volumes.write(Location(tmp_path / "d"), tmp_path / "n", "A", (5, 4, 4), {}, stacks)
    assert not any((tmp_path / "d").rglob("zarr.json"))
    assert not (tmp_path / "n").exists()
