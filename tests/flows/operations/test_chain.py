"""The chain on real servers and workers, in the middle of which a machine dies; nobody types."""

import os
import signal
from datetime import datetime
from pathlib import Path

import psutil
import pydicom
import pytest

from flows.operations import processes


def flow_runs_of(process: psutil.Process) -> list[psutil.Process]:
    return [one for one in processes.family(process) if processes.is_flow_run(one)]


@pytest.fixture(scope="module")
def champion(installation, pair) -> dict:
    """The run that promoted a model, of a delivery that only lay in the inbox."""
    inbox = installation.home / "inbox"
    for number in range(5):
        pair(inbox, f"L10{number}", seed=number, slices=4, matrix=(48, 56))
    installation.start("ingest-inbox", inbox="inbox", quiet=0)
    installation.ended("ingest-inbox")
    die_in_training(installation)
    installation.ended("train-on-commit", 180)
    installation.ended("evaluate-on-version")
    return installation.ended("promote-on-report")


def die_in_training(installation) -> None:
    """Kill the training and its worker, as a machine that loses power would."""
    worker = processes.find(installation.service("worker-gpu").process)
    checkpoint = installation.home / "runs"
    installation.wait(lambda: list(checkpoint.glob("*/checkpoint.pt")), 90, "a checkpoint")
    doomed = [*flow_runs_of(worker), worker]
    assert len(doomed) == 2
    for process in doomed:
        os.kill(process.pid, signal.SIGKILL)


def test_an_inbox_becomes_a_champion_though_a_machine_dies(installation, champion):
    assert champion["state"]["name"] == "Completed"
    models = installation.command.json("models")["models"]
    assert [row["aliases"] for row in models] == [["champion"]]


def test_the_training_that_died_was_marked_within_two_minutes_and_went_on(installation, champion):
    (run,) = installation.runs("train-on-commit")
    states = installation.states(run)
    names = [state["name"] for state in states]
    first = ["Running", "Crashed", "AwaitingRetry", "Pending", "Running", "Completed"]
    assert names[-len(first) :] == first
    assert "heartbeat stopped" in states[-5]["message"]
    running, crashed = (datetime.fromisoformat(state["timestamp"]) for state in states[-6:-4])
    assert (crashed - running).total_seconds() < 120
    # One run in MLflow: the second attempt went on with what the first had begun.
    (job,) = (installation.home / "runs").glob("*/run.json")
    assert run["id"] in job.read_text()
    assert installation.service("worker-gpu").starts == 2


def test_a_low_dose_series_is_restored_by_that_champion(installation, champion, series):
    study = installation.home / "denoise-inbox" / "study"
    series("L300", "Low Dose Images", seed=30, low=True, slices=4, matrix=(48, 56)).write(study)
    installation.start("denoise-inbox", quiet=0, settings={"strict": False})
    installation.ended("denoise-inbox")
    (first, *_) = sorted((installation.home / "denoised").glob("*/*.dcm"))
    image = pydicom.dcmread(first)
    assert "model 1" in image.DerivationDescription
    assert Path(image.filename).parent.name == image.SeriesInstanceUID
