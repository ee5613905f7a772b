"""What is remembered of conversions: taken up while the volume is sure to stay."""

import os
import time

import pytest

from storage.catalog import Row
from storage.conversion import Memory
from storage.location import Location
from storage.pairing import Pair


@pytest.mark.parametrize(("named", "recalled"), [((), False), (("volumes/A/1",), True)])
def test_an_old_volume_is_taken_up_only_if_a_commit_names_it(tmp_path, named, recalled):
    marker = tmp_path / "volumes" / "A" / "1" / "zarr.json"
    marker.parent.mkdir(parents=True)
    marker.write_text("{}")
    two_days_ago = time.time() - 2 * 86400
    os.utime(marker, (two_days_ago, two_days_ago))
    row = Row(
        key="patient:A",
        cohort="c",
        status="accepted",
        patient="A",
        path="volumes/A/1",
        fingerprint="f",
    )
    memory = Memory(tmp_path / "memory")
    memory.remember(row)
    pair = Pair("A", None, None, "chest", None, "folder", (), "", "f")
    found = memory.recall(pair, Location(tmp_path), named)
    assert found == (row if recalled else None)
