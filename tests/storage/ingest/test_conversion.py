"""What is said of a conversion; what is remembered is taken up while the volume is sure to stay."""

import os
import time

import pydicom
import pytest

from storage.dataset.catalog import Row
from storage.ingest.conversion import Memory
from storage.ingest.pairing import Pair
from storage.stores.location import Location


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


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"RescaleIntercept": 0}, "full dose: slices differ in rescale slope or intercept"),
        ({"BitsStored": 10, "HighBit": 9}, "full dose: slices differ in bits stored"),
    ],
)
def test_a_slice_that_is_stored_otherwise_is_converted_so_and_it_is_said(
    tmp_path, series, dataset, deliver, values, note
):
    one = series("L001", "FULL", seed=1)
    series("L001", "LOW", seed=1, low=True).write(tmp_path / "source" / "low")
    file = min(one.write(tmp_path / "source" / "full").iterdir())
    assert deliver(dataset, tmp_path / "source").admission.accepted[0].note is None
    image = pydicom.dcmread(file)
    for keyword, value in values.items():
        image[keyword].value = value
    image.save_as(file)
    (row,) = deliver(dataset, tmp_path / "source").admission.accepted
    assert row.note == note
