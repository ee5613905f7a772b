"""Whether a volume is whole is known without reading a pixel, by what was written of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.dataset import volumes, writing
from storage.dataset.rows import Accepted
from storage.errors import DatasetError
from storage.stores.location import Location


@pytest.fixture
def row(tmp_path) -> Accepted:
    """The row of a volume of two shards a dose."""
    hu = np.random.default_rng(0).integers(-1024, 3071, (45, 12, 9)).astype(np.int16)
    about = {"anatomy": "chest", "spacing": [1.0, 1.0, 1.0], "positions": list(range(45))}
    stacks = {"low": hu[::-1], "full": hu}
    written = writing.write(Location(tmp_path), tmp_path / "new", "A", hu.shape, about, stacks)
    return Accepted(
        patient="A",
        cohort="c",
        path=written.path,
        digest=written.digest,
        size=written.size,
        slices=45,
        matrix=(12, 9),
        spacing=(1.0, 1.0, 1.0),
        anatomy="chest",
        vendor="GE",
    )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty], ids=["lost", "cut", "empty"])
@pytest.mark.parametrize("name", ["full/c/1/0/0", "low/c/0/0/0"])
@pytest.mark.parametrize("known", [True, False], ids=["size known", "before sizes were kept"])
def test_a_shard_that_is_not_as_it_was_written_is_noticed(tmp_path, row, name, damage, known):
    location, named = Location(tmp_path), row if known else replace(row, size=None)
    assert volumes.is_whole(location, named)
    volumes.check(location, named)
    damage(tmp_path / row.path / name)
    assert not volumes.is_whole(location, named)
    with pytest.raises(DatasetError, match=r"remove the folder|look whether"):
        volumes.check(location, named)


@pytest.mark.parametrize("name", ["zarr.json", "low/zarr.json"])
def test_metadata_that_are_lost_are_noticed(tmp_path, row, name):
    (tmp_path / row.path / name).unlink()
    assert not volumes.is_whole(Location(tmp_path), row)


def test_what_another_writer_left_beside_them_does_not_count(tmp_path, row):
    (tmp_path / row.path / "full" / "c" / "0" / "0" / "0#1").write_bytes(b"half")
    assert volumes.is_whole(Location(tmp_path), row)


def test_a_volume_that_is_gone_is_not_whole(tmp_path, row):
    shutil.rmtree(tmp_path / row.path)
    assert not volumes.is_whole(Location(tmp_path), row)
    with pytest.raises(DatasetError, match="ingest the cohort again"):
        volumes.check(Location(tmp_path), row)
