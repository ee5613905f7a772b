"""Claim: a denoise killed outright at any moment leaves no half series, and a rerun the same bytes.

    python benchmarks/kills_denoise.py [--kills 20] [--seed 0]

Three series of 24 slices, restored by a small program. Each round forks a process that has
everything imported, SIGKILLs it at a random moment of the time that an undisturbed one takes, looks
at what has the name of a series, restores again, and compares every file with those of the
undisturbed run, byte for byte. The clock stands still, for each instance says when it was made.
Prints a line for each round that is not well, and the count; ends with status 1 if there was one.
"""

import argparse
import datetime as dt
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flows.compute import derivation, models
from flows.compute.sources import restore_source
from flows.settings import ClusterSettings, DenoiseSettings
from hqinet.restoration.export import save_exported
from storage.dicom.writing import SeriesIdentity, write_series

SLICES, SERIES = 24, 3


class Smoother(nn.Module):
    """Takes noise off by the mean of the slab."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.6))

    def forward(self, hu: Tensor) -> Tensor:
        return torch.lerp(hu[:, 1:2], hu.mean(1, keepdim=True), self.share)


class Stopped(dt.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return dt.datetime(2026, 11, 24, 12, 0, tzinfo=tz or dt.UTC)


def main() -> None:
    """Kill, look, go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # No pool of threads, which a fork would not take along.
    derivation.datetime = Stopped
    with tempfile.TemporaryDirectory(prefix="hqinet-kills-") as name:
        folder = Path(name)
        os.environ["HQINET_HOME"] = str(folder / "home")
        source = make_series(folder / "source")
        program = folder / "smoother.pt2"
        save_exported(Smoother().eval(), program)
        models.required_starter = lambda: program
        start = time.monotonic()
        wait(start_denoise(source, folder / "undisturbed"))
        length = time.monotonic() - start
        expected = content(folder / "undisturbed")
        assert len(expected) == SERIES * SLICES
        bad = 0
        for number in range(options.kills):
            moment = random.Random(options.seed + number).uniform(0, length)
            bad += not well(source, folder / str(number), moment, expected)
    print(f"{options.kills} kills within {length:.1f} s: {bad} bad")
    sys.exit(bad > 0)


def make_series(root: Path) -> Path:
    """Three series of a body of noise."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    body = np.where(np.hypot(x, y) < 0.9, 50.0, -1000.0)
    for patient in range(SERIES):
        noise = np.random.default_rng(patient).normal(0, 25, (SLICES, 96, 96))
        identity = SeriesIdentity(
            "LDCT", f"L{patient:03d}", "Low dose images", "ABDOMEN", "SIEMENS"
        )
        write_series(root, body + noise, (3.0, 0.7, 0.7), identity)
    return root


def start_denoise(source: Path, target: Path) -> int:
    """Restore in a forked process; returns its number."""
    process = os.fork()
    if process:
        return process
    try:
        settings = DenoiseSettings(model="starter", device="cpu")
        result = restore_source(source, target, settings, ClusterSettings(), "default")
        well = {one.outcome for one in result.series} <= {"restored", "done before"}
        os._exit(not well)
    except BaseException as error:  # noqa: BLE001 - the parent is told by the status
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def wait(process: int) -> int:
    """The exit status of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def content(target: Path) -> dict[str, bytes]:
    """The files of every folder that has the name of a series."""
    return {
        str(file.relative_to(target)): file.read_bytes()
        for file in target.glob("*/*")
        if not file.parent.name.endswith(".draft")
    }


def well(source: Path, target: Path, moment: float, expected: dict[str, bytes]) -> bool:
    """Whether a kill at a moment left whole series alone, which a rerun completes."""
    process = start_denoise(source, target)
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    wait(process)
    left = content(target)
    folders = {name.split("/")[0] for name in left}
    whole = all(
        left.get(name) == data for name, data in expected.items() if name.split("/")[0] in folders
    )
    drafts = len(list(target.glob("*.draft")))
    status = wait(start_denoise(source, target))
    after = content(target)
    good = whole and status == 0 and after == expected and not list(target.glob("*.draft"))
    print(
        f"killed after {moment:.2f} s: {len(folders)} series, {drafts} drafts; rerun {status}, "
        f"{'as undisturbed' if good else 'NOT WELL'}"
    )
    return good


if __name__ == "__main__":
    main()
