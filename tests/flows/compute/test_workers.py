"""Where ingest writes and where it runs: homes, datasets of phantoms, clusters, `make clean`."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from distributed import LocalCluster

from flows import stores
from flows.compute.workers import ClusterError, Workers
from flows.ingest import open_delivery
from flows.operations import home as homes
from flows.settings import ClusterSettings, IngestSettings
from storage.dataset.rows import Refused
from storage.errors import StorageError
from storage.ingest.cohort import SYNTHETIC

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HQINET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("sign", ["%", "?"])
def test_a_home_that_a_database_url_cannot_name_is_refused(tmp_path, sign):
    with pytest.raises(homes.HomeError, match="choose another"):
        homes.enter(tmp_path / f"a{sign}b")
    assert not list(tmp_path.iterdir())


def test_an_ingest_without_news_imports_neither_dask_nor_torch(home):
    script = "import sys, flows.ingest; print(*{'dask', 'distributed', 'torch'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("memory", ["much", "2 elephants"])
def test_memory_that_is_no_size_is_refused(memory):
    assert ClusterSettings(memory="1.5 GiB").memory == "1.5 GiB"
    with pytest.raises(ValueError, match="memory"):
        ClusterSettings(memory=memory)


def test_patients_never_stand_among_phantoms(home, tmp_path):
    refused = Refused(key="refused:A", cohort=SYNTHETIC, patient="A", code="unreadable", reason="")
    settings = IngestSettings()
    open_delivery(tmp_path, SYNTHETIC, settings)
    stores.dataset().commit(lambda _: [refused], action="ingest")
    with pytest.raises(StorageError, match=r"phantoms .* another one"):
        open_delivery(tmp_path, "inbox", settings)
    assert open_delivery(tmp_path, SYNTHETIC, settings).cohort == SYNTHETIC
    stores.dataset().commit(lambda _: [replace(refused, cohort="inbox")], action="ingest")
    assert open_delivery(tmp_path, "another", settings).cohort == "another"


def test_a_cluster_class_needs_a_number_of_workers(tmp_path):
    with (
        Workers(ClusterSettings(where="distributed.LocalCluster"), tmp_path) as workers,
        pytest.raises(ClusterError, match="HQINET_CLUSTER__WORKERS"),
    ):
        list(workers.run(str, [1], retries=0))


class Failing:
    """A cluster of which one step fails as those of batch systems and Kubernetes do."""

    closed = 0

    def __init__(self, step: str) -> None:
        self.step = step
        if step == "start":
            raise TimeoutError("not actioned after 60 seconds")
        if step == "wait":
            Event().wait()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        Failing.closed += 1
        if self.step == "close":
            raise RuntimeError("delete refused")

    def scale(self, workers: int) -> None:
        raise RuntimeError(f"no room for {workers}")


@pytest.mark.parametrize(
    ("step", "said", "closed", "logged"),
    [
        ("start", "Failing' does not start: TimeoutError: not actioned after 60 .* look at", 0, ""),
        ("scale", "Failing' does not start: RuntimeError: no room for 3; look at", 1, ""),
        ("close", "RuntimeError: no room for 3;", 1, "could not be closed (RuntimeError: delete"),
        ("wait", "no worker came to the cluster .*Failing within 0.2 s", 0, "was still starting"),
    ],
)
def test_a_cluster_that_does_not_start_says_why_and_is_closed(
    tmp_path, monkeypatch, caplog, step, said, closed, logged
):
    monkeypatch.setattr(Failing, "closed", 0)
    monkeypatch.setattr("flows.compute.workers.QUEUE", 0.2)
    monkeypatch.setattr("flows.compute.workers.PARTING", 0.1)
    settings = ClusterSettings(where=f"{__name__}.Failing", workers=3, arguments={"step": step})
    with Workers(settings, tmp_path) as workers, pytest.raises(ClusterError, match=said):
        list(workers.run(str, [1], retries=0))
    assert Failing.closed == closed
    assert logged in caplog.text
    assert bool(logged) == bool(caplog.text)


def test_a_class_whose_import_is_for_the_main_thread_and_takes_ctrl_c(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "from distributed import LocalCluster as Cluster\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    settings = ClusterSettings(
        where="greedy.Cluster",
        workers=1,
        arguments={"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0"},
    )
    with Workers(settings, tmp_path) as workers:
        assert list(workers.run(str, [1], retries=0)) == [(1, "1")]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cluster_where_no_worker_comes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.compute.workers.QUEUE", 0.2)
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        Workers(ClusterSettings(where=empty.scheduler_address), tmp_path) as workers,
        pytest.raises(ClusterError, match="no worker came"),
    ):
        list(workers.run(str, [1], retries=0))


def test_as_many_local_workers_as_this_process_may_use_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", 3)
    monkeypatch.setattr("distributed.LocalCluster", lambda **arguments: arguments)
    with Workers(ClusterSettings(), tmp_path) as workers:
        assert workers._start_local()["n_workers"] == 3


def test_make_clean_leaves_the_home_with_its_dataset_and_models():
    # These tests themselves may run under make, which hands its flags on.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", "clean"],
        cwd=ROOT,
        env=alone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["rm", "-rf", ".venv"]
