"""Ingest is killed, starved and attacked; the dataset holds, and a rerun ends where it would."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from flows.ingest import ingest
from flows.settings import ClusterSettings
from storage.dataset import upkeep
from storage.dataset.versions import Dataset

COMMAND = "import sys; from flows.cli.main import main; sys.argv[0] = 'hqinet'; main()"


@pytest.fixture(scope="module")
def source(tmp_path_factory, pair) -> Path:
    root = tmp_path_factory.mktemp("crash") / "delivery"
    for number in range(4):
        pair(root, f"L00{number}", seed=number, slices=50, matrix=(64, 64))
    return root


@pytest.fixture(scope="module")
def undisturbed(home, source) -> str:
    """Digest of the dataset after an ingest that nothing disturbs."""
    ingest(str(source), cluster=ClusterSettings(workers=2))
    return Dataset(home / "dataset").snapshot().digest


def start(home: Path, source: Path, **limits: int) -> subprocess.Popen[str]:
    """`hqinet ingest SOURCE` as a process of its own, at this session's Prefect server."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "HQINET_CLUSTER__WORKERS": "2",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "ingest", str(source), "--home", str(home), "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for name, value in limits.items():
        # Its imports take seconds: it has written nothing yet.
        resource.prlimit(process.pid, getattr(resource, name), (value, value))
    return process


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def check(home: Path) -> None:
    """What is there opens and is whole."""
    dataset = Dataset(home / "dataset")
    if dataset.catalog.exists():
        snapshot = dataset.snapshot()
        assert snapshot.commit in (0, 1)
        assert not upkeep.verify(snapshot, deep=True).problems


def scratch_begins(home: Path) -> bool:
    return any((home / "scratch").glob("*/full"))


def volume_begins(home: Path) -> bool:
    return any((home / "dataset" / "volumes").glob("*/*"))


def table_begins(home: Path) -> bool:
    return (home / "dataset" / "catalog").is_dir()


@pytest.mark.parametrize("moment", [table_begins, scratch_begins, volume_begins])
def test_killed_at_a_moment_it_leaves_a_valid_commit_and_no_worker(
    tmp_path, source, undisturbed, moment
):
    home = tmp_path / "home"
    process = start(home, source)
    assert wait_until(lambda: moment(home) or process.poll() is not None, 60)
    time.sleep(random.Random(moment.__name__).uniform(0, 0.2))
    workers = family(process)
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(map(psutil.Process.is_running, workers)), 15), workers
    check(home)
    again = start(home, source)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, out + err
    assert Dataset(home / "dataset").snapshot().digest == undisturbed


def test_a_killed_worker_is_replaced_and_the_commit_is_whole(tmp_path, source, undisturbed):
    home = tmp_path / "home"
    process = start(home, source)
    assert wait_until(lambda: scratch_begins(home), 60)
    (home_of_volume,) = list((home / "scratch").glob("*/full"))[:1]
    worker = int(home_of_volume.parent.name.split("-")[0])
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert Dataset(home / "dataset").snapshot().digest == undisturbed


def test_a_disk_that_takes_no_more_ends_in_one_line(tmp_path, source, undisturbed):
    home = tmp_path / "home"
    full = start(home, source, RLIMIT_FSIZE=40_000)
    _, err = full.communicate(timeout=120)
    assert full.returncode == 1
    assert "the last commit is intact" in err
    assert len(err.strip().splitlines()) == 1
    check(home)
    again = start(home, source)
    again.communicate(timeout=120)
    assert Dataset(home / "dataset").snapshot().digest == undisturbed


@pytest.mark.parametrize("target", ["file/dataset", "/sys/hqinet/dataset"])
def test_a_target_that_cannot_be_written_ends_in_one_line(tmp_path, source, monkeypatch, target):
    (tmp_path / "file").write_text("a file stands here")
    monkeypatch.setenv("HQINET_DATASET", str(tmp_path / target))
    process = start(tmp_path / "home", source)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(err.strip().splitlines()) == 1
    assert target in err
    assert "run again" in err
