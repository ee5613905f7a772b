"""What a conversion says, and costs: a long volume goes through memory a shard at a time."""

import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from storage.errors import DatasetError
from storage.ingest.conversion import convert
from storage.ingest.inventory import take_inventory
from storage.ingest.outcome import merge
from storage.ingest.planning import plan

SCRIPT = """
import sys
from pathlib import Path
from storage.dataset.versions import Dataset
from storage.ingest.conversion import Conversion
from storage.ingest.delivery import Delivery
from storage.ingest.inventory import take_inventory
from storage.ingest.planning import plan

source, work = map(Path, sys.argv[1:])
dataset = Dataset(work / "dataset")
delivery = Delivery(source, "c", dataset, work / "memory", work / "scratch")
here = lambda function, items: ((item, function(item)) for item in items)
(pair,) = plan(delivery, take_inventory(delivery, here)).pairs
convert = Conversion(source, dataset.location, work / "scratch", "c")

def peak():
    # Not ru_maxrss: a child begins with the peak of the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

before = peak()
row = convert(pair)
print(row.slices, peak() - before)
"""


def growth(source: Path, work: Path) -> tuple[int, float]:
    """Slices of the volume, and MiB that its conversion took beyond what was there."""
    command = [sys.executable, "-c", SCRIPT, str(source), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    slices, grown = done.stdout.split()
    return int(slices), float(grown)


def test_a_thousand_slices_take_no_more_memory_than_a_hundred(tmp_path, pair):
    pair(tmp_path / "short", "L001", slices=100, matrix=(128, 128), increment=0.5)
    pair(tmp_path / "long", "L001", slices=1000, matrix=(128, 128), increment=0.5)
    _, short = growth(tmp_path / "short", tmp_path / "a")
    slices, long = growth(tmp_path / "long", tmp_path / "b")
    assert slices == 1000
    # One dose of the long volume alone is 31 MiB.
    assert long < short + 15
    assert long < 200


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
    assert deliver(dataset, tmp_path / "source").outcome.accepted[0].note is None
    image = pydicom.dcmread(file)
    for keyword, value in values.items():
        image[keyword].value = value
    image.save_as(file)
    (row,) = deliver(dataset, tmp_path / "source").outcome.accepted
    assert row.note == note


def test_a_volume_that_is_gone_is_not_committed(tmp_path, pair, dataset, delivery, here):
    pair(tmp_path / "source", "L001")
    opened = delivery(tmp_path / "source")
    found = take_inventory(opened, here)
    planned = plan(opened, found)
    rows = list(convert(opened, planned, here))
    shutil.rmtree(tmp_path / "dataset" / "volumes")
    with pytest.raises(DatasetError, match=r"the first of L001: .* ingest again"):
        merge(opened, found, planned, rows)
    assert dataset.snapshot().commit == 0


def test_a_disk_that_failed_is_asked_again_next_time(
    tmp_path, pair, dataset, delivery, deliver, here
):
    def fails(_, items):
        for item in items:
            yield item, OSError(5, "Input/output error")

    pair(tmp_path / "source", "L001")
    opened = delivery(tmp_path / "source")
    found = take_inventory(opened, here)
    (refused,) = convert(opened, plan(opened, found), fails)
    assert (refused.code, refused.fingerprint) == ("conversion_failed", None)
    assert "OSError" in refused.reason
    assert "Input/output error" in refused.reason
    assert deliver(dataset, tmp_path / "source").accepted == ["L001"]
