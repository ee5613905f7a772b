"""Training as a flow: retried from the checkpoint, stopped and resumed, on several processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
import pytest

from flows import stores
from flows.compute import training_job
from flows.compute.distributed import fit_distributed
from flows.compute.observations import Observations
from flows.ingest import ingest
from flows.settings import TrainSettings
from flows.train import AlreadyTrainingError, held, train, write_job
from hqinet.devices import DeviceError
from hqinet.training.checkpoint import load_checkpoint, load_network
from hqinet.training.interrupts import TrainingError, TrainingInterruptedError
from hqinet.training.recipe import load_recipe
from storage.errors import DatasetError, StorageError
from storage.models.registry import DatasetInputs


@pytest.fixture(scope="module")
def cohort(home, tiny_cohort):
    return ingest(str(tiny_cohort), "tiny")


def weights(run: str, home) -> dict:
    return load_network(home / "runs" / run / "best.pt")[0].state_dict()


def test_a_failed_task_goes_on_from_its_checkpoint(cohort, home, tiny_recipe, monkeypatch):
    undisturbed = train(tiny_recipe)
    steps, observe = [], training_job.RunObserver.on_step

    def fail_once(self, step, total, metrics):
        steps.append(step)
        if steps.count(5) == 1 and step == 5:
            raise StorageError("the store did not answer")
        observe(self, step, total, metrics)

    monkeypatch.setattr(training_job.RunObserver, "on_step", fail_once)
    retried = train(tiny_recipe)
    assert steps == [1, 2, 3, 4, 5, 4, 5, 6]
    assert stores.registry()._client.get_run(retried.run).info.status == "FINISHED"
    mine, theirs = weights(retried.run, home), weights(undisturbed.run, home)
    assert all(mine[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("trouble", [TrainingError("the loss is nan"), DatasetError("damaged")])
def test_trouble_that_stays_is_not_retried(cohort, tiny_recipe, monkeypatch, trouble):
    attempts = []

    def explode(self, step, total, metrics):
        attempts.append(step)
        raise trouble

    monkeypatch.setattr(training_job.RunObserver, "on_step", explode)
    with pytest.raises(type(trouble), match=str(trouble)):
        train(tiny_recipe)
    assert attempts == [1]


def test_several_processes_name_a_damaged_shard(cohort, home, tiny_recipe):
    snapshot = stores.dataset().snapshot()
    path = snapshot.patients("train")[0].path
    shard = home / "dataset" / path / "full/c/0/0/0"
    content = shard.read_bytes()
    shard.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    try:
        with pytest.raises(DatasetError, match=f"{path}/full/c/0/0/0: damaged"):
            train(tiny_recipe, settings=TrainSettings(device="cpu", processes=2))
    finally:
        shard.write_bytes(content)


def test_two_machines_train_what_one_trains(cohort, home, tiny_recipe, prefect_server):
    on_one = train(tiny_recipe, settings=TrainSettings(device="cpu", processes=2))
    assert load_checkpoint(home / "runs" / on_one.run / "checkpoint.pt")["step"] == 6
    losses = stores.registry()._client.get_metric_history(on_one.run, "loss")
    assert [row.step for row in losses] == [1, 2, 3, 4, 5, 6]
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {"NODES": "2", "NODE": "1", "RENDEZVOUS": meeting, "DEVICE": "cpu"}
    other = os.environ | {f"HQINET_TRAIN__{name}": value for name, value in variables.items()}
    command = [Path(sys.executable).with_name("hqinet"), "train", "--recipe", tiny_recipe]
    with subprocess.Popen(command, env=other, stdout=subprocess.PIPE, text=True) as joined:
        settings = TrainSettings(device="cpu", nodes=2, rendezvous=meeting)
        on_two = train(tiny_recipe, settings=settings)
        said, _ = joined.communicate(timeout=60)
    assert (joined.returncode, said.strip()) == (0, f"trained with {meeting}")
    mine, theirs = weights(on_two.run, home), weights(on_one.run, home)
    assert all(mine[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"nodes": 2}, "several nodes need a rendezvous, as `node0:29400`"),
        ({"nodes": 2, "node": 2, "rendezvous": "a:1"}, "node 2 is none of 2, which count from 0"),
    ],
)
def test_machines_that_could_not_meet_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        TrainSettings(**wrong)


@pytest.fixture
def command(cohort, home, hqinet, tmp_path, prefect_server):
    """The command, in the home that has the cohort."""
    command = hqinet(tmp_path, PREFECT_API_URL=prefect_server)
    command.home = home
    return command


def begun(command, *arguments: object) -> tuple[subprocess.Popen[str], Path]:
    """A training that has written another checkpoint, and the folder of its run."""

    def checkpoints() -> dict[Path, int]:
        files = (command.home / "runs").glob("*/checkpoint.pt")
        return {file: file.stat().st_mtime_ns for file in files}

    before = checkpoints()
    process = subprocess.Popen(
        [*command.program, "train", *arguments, "--home", command.home],
        env=command.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not (written := checkpoints().items() - before.items()) and time.monotonic() < end:
        time.sleep(0.05)
    ((checkpoint, _),) = written
    return process, checkpoint.parent


def longer(recipe: str, folder: Path, epochs: int) -> Path:
    """The recipe with epochs of 30 steps."""
    text = Path(recipe).read_text().replace("epochs = 2", f"epochs = {epochs}")
    file = folder / "longer.toml"
    file.write_text(text.replace("steps_per_epoch = 3", "steps_per_epoch = 30"))
    return file


def test_ctrl_c_saves_and_ends_soon(command, tmp_path, tiny_recipe):
    del command.environment["PREFECT_API_URL"]
    process, run = begun(command, "--recipe", longer(tiny_recipe, tmp_path, epochs=1000))
    # As a terminal does: to the command's own Prefect server as well.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"hqinet train --resume {run.name}" in errors
    assert len(errors.strip().splitlines()) == 1


def test_sigterm_saves_and_a_killed_or_stopped_run_is_resumed(command, tmp_path, tiny_recipe):
    killed, run = begun(command, "--recipe", longer(tiny_recipe, tmp_path, epochs=3))
    killed.kill()
    killed.communicate(timeout=60)
    assert load_checkpoint(run / "checkpoint.pt")["step"] == 30

    terminated, _ = begun(command, "--resume", run.name)
    terminated.send_signal(signal.SIGTERM)
    _, errors = terminated.communicate(timeout=60)
    stopped = load_checkpoint(run / "checkpoint.pt")["step"]
    assert 60 <= stopped < 90
    assert terminated.returncode == 130
    assert f"step {stopped}" in errors
    assert len(errors.strip().splitlines()) == 1

    resumed = command.json("train", "--resume", run.name)
    assert resumed["run"] == run.name
    assert load_checkpoint(run / "checkpoint.pt")["step"] == 90
    losses = stores.registry()._client.get_metric_history(run.name, "loss")
    assert {row.step for row in losses} == set(range(1, 91))


@pytest.mark.parametrize("request_to_stop", [signal.SIGTERM, signal.SIGINT])
def test_several_processes_save_when_told_to_stop(request_to_stop, command, tmp_path, tiny_recipe):
    command.environment["HQINET_TRAIN__PROCESSES"] = "2"
    process, run = begun(command, "--recipe", longer(tiny_recipe, tmp_path, epochs=1000))
    os.killpg(process.pid, request_to_stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    saved = load_checkpoint(run / "checkpoint.pt")["step"]
    assert f"step {saved}" in errors.splitlines()[-1]
    assert f"hqinet train --resume {run.name}" in errors.splitlines()[-1]
    assert stores.registry()._client.get_run(run.name).info.status == "KILLED"


def test_several_processes_die_with_the_one_that_started_them(command, tmp_path, tiny_recipe):
    command.environment["HQINET_TRAIN__PROCESSES"] = "2"
    process, _ = begun(command, "--recipe", longer(tiny_recipe, tmp_path, epochs=1000))
    started = psutil.Process(process.pid).children(recursive=True)
    ranks = [one for one in started if "training_job" in " ".join(one.cmdline())]
    assert len(ranks) >= 2
    process.kill()
    process.communicate(timeout=60)
    _, left = psutil.wait_procs(ranks, timeout=20)
    assert not left


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_told_to_stop_before_they_begin_several_processes_are_not_tried_again(
    ctrl_c, cohort, home, tmp_path, monkeypatch
):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nkill -TERM $PPID\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr("flows.compute.distributed.sys.executable", str(program))
    job = training_job.Job(run=tmp_path.name, commit=1, recipe=load_recipe("fast"), device="cpu")
    job.folder.mkdir(parents=True)
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        with pytest.raises(TrainingInterruptedError, match="told to stop"):
            fit_distributed(job, TrainSettings(processes=2), uuid4())
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("patient", ["MRN#101", "12/7", "Ärztin^Q,+@(1)"])
def test_any_patient_id_is_reported(cohort, tmp_path, monkeypatch, patient):
    monkeypatch.setattr(training_job.Job, "folder", tmp_path)
    registry = stores.registry()
    run = registry.start("odd", {}, DatasetInputs("x", 1, "0" * 64))
    job = training_job.Job(run=run, commit=1, recipe=load_recipe("fast"), device="cpu")
    with Observations(tmp_path, run, lambda: registry) as observations:
        anatomies = {patient: "chest"}
        observer = training_job.RunObserver(observations, job, anatomies, lambda *_: None)
        observer.on_epoch(1, {f"val_gain.{patient}": 1.5, "val_psnr": 30.0})
        image = np.zeros((8, 9), np.float32)
        observer.on_images(1, patient, image, image, image)
    metrics = registry._client.get_run(run).data.metrics
    assert set(metrics.values()) == {1.5, 30.0}
    assert len(list(tmp_path.rglob("*.png"))) == 1


def test_a_run_that_is_being_trained_is_not_trained_twice_and_its_holder_is_named(tmp_path):
    with (
        held(tmp_path),
        pytest.raises(AlreadyTrainingError, match=f"process {os.getpid()} on .* since 20"),
        held(tmp_path),
    ):
        pass
    with held(tmp_path):
        pass


def test_a_gpu_that_is_not_there_is_one_line_of_several_processes_too(cohort, tiny_recipe):
    with pytest.raises(DeviceError, match="'cuda' was asked for"):
        train(tiny_recipe, settings=TrainSettings(device="cuda", processes=2))


def test_an_mlflow_that_goes_away_ends_no_training_and_gets_the_rest_later(
    cohort, home, tiny_recipe, monkeypatch
):
    real = stores.registry
    away = [True]

    def registry():
        if away[0]:
            raise StorageError("no MLflow server answers at http://127.0.0.1:9")
        return real()

    opened = real()
    recipe = load_recipe(tiny_recipe)
    inputs = DatasetInputs("x", 1, stores.dataset().snapshot().digest)
    run = opened.start("away", {}, inputs)
    job = training_job.Job(run=run, commit=1, recipe=recipe, device="cpu")
    job.folder.mkdir(parents=True)
    write_job(job)
    monkeypatch.setattr(stores, "registry", registry)
    training_job.run(job, lambda *_: None)
    assert opened._client.get_metric_history(run, "loss") == []

    away[0] = False
    result = train(resume=run)
    assert result.run == run
    assert {row.step for row in opened._client.get_metric_history(run, "loss")} == set(range(1, 7))
    assert opened._client.list_artifacts(run, "validation")
