"""A training in several processes, on one machine or on several: torchrun, and how it is stopped.

The first machine opens the run; the others join it by the same command and settings, with a number
of their own. They share the home's folder and its dataset; what they train they are told.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client

from flows import stores
from flows.compute import training_job
from flows.compute.training_job import Job
from flows.errors import FlowError
from flows.operations.processes import identity
from flows.settings import TrainSettings
from hqinet.devices import pick_device
from hqinet.training.interrupts import TrainingInterruptedError

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask for a stop; a terminal sends the last when it closes."""
PATIENCE = 3600
"""Seconds that processes told to stop may take to end their step and save."""


class LostProcessError(FlowError):
    """A process of a distributed run ended; one line. Another try may do."""


def fit_distributed(job: Job, settings: TrainSettings, artifact: UUID) -> None:
    """Run the job under torchrun, one process a device; all are told of SIGTERM and Ctrl-C.

    Raises DeviceError for a device that is not here, what the run's processes say of themselves,
    and LostProcessError where they say nothing.
    """
    pick_device(job.device)
    for name in training_job.REASONS:
        (job.folder / name).unlink(missing_ok=True)
    with get_client(sync_client=True) as client:
        environment = os.environ | {"PREFECT_API_URL": str(client.api_url)}
    told = [str(job.folder / "run.json"), str(artifact)]
    code, stopped = _torchrun(settings, job.folder / "ranks", told, environment)
    for name, kind in training_job.REASONS.items():
        if (job.folder / name).exists():
            raise kind((job.folder / name).read_text())
    if stopped and code:
        raise TrainingInterruptedError("training was told to stop and ended without saving")
    if code:
        raise LostProcessError(
            f"run {job.run}: its processes ended with {code}; see their log, and go on with "
            f"`hqinet train --resume {job.run}`"
        )


def join(settings: TrainSettings) -> None:
    """Give this machine's processes to the run that the first machine opens, until it ends.

    Raises DeviceError for a device that is not here, and LostProcessError if that ends badly, of
    which the first machine says more.
    """
    pick_device(settings.device)
    logs = stores.scratch() / f"ranks-{settings.node}"
    code, _ = _torchrun(settings, logs, [], dict(os.environ))
    if code:
        raise LostProcessError(
            f"machine {settings.node} of {settings.nodes}: its processes ended with {code}; what "
            f"the first one says at {settings.rendezvous} is why"
        )


def _torchrun(
    settings: TrainSettings, logs: Path, told: list[str], environment: dict[str, str]
) -> tuple[int, bool]:
    """The exit status of this machine's processes, and whether they were told to stop."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += _rendezvous(settings)
    command += [f"--nproc-per-node={settings.processes}", f"--log-dir={logs}"]
    command += [f"--shutdown-timeout={PATIENCE}", "-m", "flows.compute.training_job", *told]
    environment = environment | {training_job.STARTED_BY: identity(psutil.Process())}
    asked_to_stop: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on() -> None:
        # Once, and as SIGINT: torchrun gives up waiting at a second one.
        if asked_to_stop and running:
            running.pop().send_signal(signal.SIGINT)

    def stop(number: int, _frame: FrameType | None) -> None:
        asked_to_stop.append(number)
        pass_on()

    # A hangup that `nohup` has turned off stays so. Ctrl-C, which a script turns off for what runs
    # in its background, is heeded, as in one process: a child ignores what is ignored here.
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    asked = [number for number in STOPS if number != signal.SIGHUP or not ignored]
    before = {number: signal.signal(number, stop) for number in asked}
    try:
        # A group of its own, which the terminal's signals do not reach.
        with subprocess.Popen(
            command, env=environment, stdout=sys.stderr, process_group=0
        ) as process:
            running.append(process)
            pass_on()
            return process.wait(), bool(asked_to_stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rendezvous(settings: TrainSettings) -> list[str]:
    if settings.nodes == 1:
        return ["--standalone"]
    host, _, port = settings.rendezvous.rpartition(":")
    # Static: the first machine, which knows the run, has the first process.
    return [
        f"--nnodes={settings.nodes}",
        f"--node-rank={settings.node}",
        f"--master-addr={host}",
        f"--master-port={port}",
    ]
