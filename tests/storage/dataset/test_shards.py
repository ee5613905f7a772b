"""A shard is, byte for byte, what Zarr writes."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.dataset import shards, volumes, writing
from storage.hounsfield import AIR
from storage.stores.location import Location


@pytest.mark.parametrize(
    ("slices", "matrix"),
    [(n, (64, 48)) for n in (1, 39, 40, 41, 80, 97)] + [(2, (512, 512)), (2, (1, 3))],
)
def test_a_volume_is_byte_for_byte_what_zarr_writes(tmp_path, slices, matrix):
    # Noise of a clinical image: what cannot be compressed would say nothing of the codec.
    hu = np.random.default_rng(slices).normal(40, 12, (slices, *matrix)).astype(np.int16)
    hu[1::3] = AIR
    location = Location(tmp_path / "dataset")
    stacks = {"low": hu, "full": hu[::-1]}
    path = writing.write(location, tmp_path / "new", "A", hu.shape, {}, stacks).path
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


def test_chunks_are_bit_shuffled_zstd_of_level_3_with_a_checksum():
    blosc, checksum = (codec.to_dict() for codec in shards.codecs())
    chosen = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}
    assert chosen.items() <= blosc["configuration"].items()
    assert (blosc["name"], checksum["name"]) == ("blosc", "crc32c")


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
