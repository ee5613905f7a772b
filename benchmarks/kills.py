"""Claim: an ingest killed outright at any moment leaves a dataset that opens, whole, and goes on.

    python benchmarks/kills.py [--kills 50] [--seed 0]

Each round starts `hqinet ingest` of one small delivery in a fresh home, SIGKILLs it at a random
moment of the time that an undisturbed run takes, opens what is there and reads every pixel, then
ingests again and compares the dataset's digest with that of the undisturbed run. Prints a line for
each round that is not well, and the count; ends with status 1 if there was one.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from flows.operations import home as homes
from storage.dataset import upkeep
from storage.dataset.versions import Dataset
from storage.dicom.writing import SeriesIdentity, write_series


def main() -> None:
    """Kill, look, go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hqinet-kills-") as name:
        folder = Path(name)
        homes.enter(folder / "server")
        # One server for all rounds, and Prefect reads its settings when it is imported.
        from prefect.settings import PREFECT_API_URL
        from prefect.testing.utilities import prefect_test_harness

        source = make_cohort(folder / "delivery")
        with prefect_test_harness():
            api = PREFECT_API_URL.value()
            start = time.monotonic()
            run(folder / "undisturbed", source, api).communicate()
            length = time.monotonic() - start
            expected = Dataset(folder / "undisturbed" / "dataset").snapshot().digest
            bad = 0
            for number in range(options.kills):
                moment = random.Random(options.seed + number).uniform(0, length)
                bad += not well(folder / str(number), source, api, moment, expected)
    print(f"{options.kills} kills within {length:.1f} s: {bad} bad")
    sys.exit(bad > 0)


def make_cohort(root: Path) -> Path:
    """Four pairs of 50 slices of noise."""
    for patient in range(4):
        rng = np.random.default_rng(patient)
        for description in ("Full dose images", "Low dose images"):
            identity = SeriesIdentity("LDCT", f"L{patient:03d}", description, "ABDOMEN", "SIEMENS")
            write_series(root, rng.normal(40, 20, (50, 64, 64)), (3.0, 0.7, 0.7), identity)
    return root


def run(home: Path, source: Path, api: str) -> subprocess.Popen[bytes]:
    """`hqinet ingest` as a process of its own."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "HQINET_"))}
    return subprocess.Popen(
        [Path(sys.executable).with_name("hqinet"), "ingest", source, "--home", home, "--json"],
        env=outside | {"PREFECT_API_URL": api},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def well(home: Path, source: Path, api: str, moment: float, expected: str) -> bool:
    """Whether a kill at a moment left a whole dataset that a rerun completes."""
    killed = run(home, source, api)
    time.sleep(moment)
    killed.kill()
    killed.wait()
    dataset = Dataset(home / "dataset")
    problems = []
    if dataset.catalog.exists():
        problems = upkeep.verify(dataset.snapshot(), deep=True).problems
    again = run(home, source, api)
    again.communicate()
    digest = dataset.snapshot().digest if dataset.catalog.exists() else "no dataset"
    good = not problems and again.returncode == 0 and digest == expected
    if not good:
        print(f"killed after {moment:.2f} s: {problems}, rerun {again.returncode}, digest {digest}")
    return good


if __name__ == "__main__":
    main()
