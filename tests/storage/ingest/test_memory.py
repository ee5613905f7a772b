"""A long volume costs no more memory than a short one: it goes through a shard at a time."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from storage.ingest.cohort import CohortRules
from storage.ingest.conversion import Conversion
from storage.dataset.versions import Dataset
from storage.dicom.series import Limits
from storage.ingest.pairing import plan
from storage.ingest.pseudonyms import Pseudonyms
from storage.ingest.inventory import take_inventory

source, work = map(Path, sys.argv[1:])
names, rules = Pseudonyms(), CohortRules()
found = take_inventory(source, rules, names, work / "memory", map)
(pair,) = plan(found, rules, Limits(), names).pairs
convert = Conversion(source, Dataset(work / "dataset").location, work / "scratch", "c", names)

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
