"""One training run as a process: reads the pinned commit, trains, and reports to MLflow.

In-process for one device; for several, `torch.distributed.run` starts
`-m flows.compute.training_job RUN.json ID` once a rank; ID is the progress artifact on Prefect's
page. Without them, on another machine than the first, the first rank tells what is trained.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol
from uuid import UUID

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from flows import stores
from flows.compute.beginnings import weights_of
from flows.compute.observations import Observations
from flows.compute.pairs import pairs_of
from flows.compute.progress import Display
from flows.operations.processes import end_with
from flows.settings import Settings
from hqinet.devices import pick_device
from hqinet.report.pictures import panel, save_curves
from hqinet.training import loop as training
from hqinet.training.interrupts import TrainingError, TrainingInterruptedError
from hqinet.training.recipe import Recipe
from storage.dataset.writing import folder_name
from storage.errors import DatasetError, StorageError

REASONS: dict[str, type[Exception]] = {
    "stopped.txt": TrainingInterruptedError,
    "error.txt": TrainingError,
    "damaged.txt": DatasetError,
    "store.txt": StorageError,
}
"""Files in the run's folder that say, in one line, why a distributed run stopped."""
STARTED_BY = "_HQINET_RANK_OF"
"""Variable of a rank: the process that started torchrun. It dies with that one, which alone may say
that the run is being trained: another attempt would write the same checkpoint meanwhile."""


class Job(BaseModel):
    """All that a training process must be told; written to the run's folder as `run.json`."""

    model_config = ConfigDict(frozen=True)

    run: str
    commit: int
    recipe: Recipe
    device: str
    start: str | None = None
    """What the weights are at first; None: what the recipe's seed draws."""
    flow_run: str = ""
    """Prefect's flow run that began it: its next attempt goes on with it."""

    @property
    def folder(self) -> Path:
        """Of the run: checkpoints, pictures, and the job itself."""
        return Settings().runs / self.run


class Unobserved:
    """What the other ranks of a distributed run report to: nobody, and it is never called."""

    def on_step(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Take no note."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Take no note."""

    def on_images(
        self, epoch: int, patient: str, low: np.ndarray, restored: np.ndarray, full: np.ndarray
    ) -> None:
        """Take no note."""


class Progress(Protocol):
    """Is told how far a run is: step of steps, and the numbers of that step."""

    def __call__(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Take note."""


class RunObserver:
    """Notes what training reports, for MLflow, and passes progress on."""

    def __init__(
        self, observations: Observations, job: Job, anatomies: dict[str, str], progress: Progress
    ) -> None:
        """`anatomies`: patient to anatomy, for the window of validation images."""
        self._observations, self._job, self._progress = observations, job, progress
        self._anatomies = anatomies

    def on_step(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Take a step's metrics."""
        self._observations.metrics(step, metrics)
        self._progress(step, steps, metrics)

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Take an epoch's metrics."""
        # Patients' IDs stand in some names; MLflow takes fewer characters than DICOM.
        self._observations.metrics(epoch, {_safe(name): value for name, value in metrics.items()})

    def on_images(
        self, epoch: int, patient: str, low: np.ndarray, restored: np.ndarray, full: np.ndarray
    ) -> None:
        """Store a validation slice at the epochs 1, 2, 4, 8, ...: few, however many there are."""
        if epoch & (epoch - 1):
            return
        path = self._job.folder / "images" / f"epoch-{epoch:04d}-{folder_name(patient)}.png"
        path.parent.mkdir(exist_ok=True)
        panel(low, restored, full, self._anatomies[patient]).save(path)
        self._observations.file(path, "validation")


def _safe(name: str) -> str:
    kind, dot, patient = name.partition(".")
    return f"{kind}.{folder_name(patient)}" if dot else name


def run(job: Job, progress: Progress) -> None:
    """Train as the job says; the run's folder then holds the checkpoints and the curves."""
    snapshot = stores.dataset().snapshot(job.commit)
    anatomies = {row.patient: row.anatomy for row in snapshot.patients()}
    observed: AbstractContextManager[Observations | None] = (
        Observations(job.folder, job.run, stores.registry) if first_rank() else nullcontext()
    )
    with observed as observations:
        observer = (
            RunObserver(observations, job, anatomies, progress) if observations else Unobserved()
        )
        trained = training.train(
            job.recipe,
            pairs_of(snapshot, "train"),
            pairs_of(snapshot, "validation"),
            folder=job.folder,
            device=job.device,
            observer=observer,
            start=weights_of(job.start) if job.start else None,
        )
        if observations:
            save_curves(trained.history, job.folder / "curves.png")
            observations.file(job.folder / "curves.png")


def first_rank() -> bool:
    """Whether this process is the one that reports."""
    return os.environ.get("RANK", "0") == "0"


def main() -> None:
    """One rank of a distributed run; what stopped it stands in a file of REASONS for its parent."""
    end_with(os.environ[STARTED_BY])
    told = None
    if sys.argv[1:]:
        told = Job.model_validate_json(Path(sys.argv[1]).read_text()), UUID(sys.argv[2])
    try:
        join_ranks(told[0].device if told else Settings().train.device)
        told = tell_all(told)
        with Display(told[1]) as display:
            run(told[0], display)
    except tuple(REASONS.values()) as error:
        if told is not None:
            file = next(file for file, kind in REASONS.items() if isinstance(error, kind))
            (told[0].folder / file).write_text(str(error))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def tell_all(told: tuple[Job, UUID] | None) -> tuple[Job, UUID]:
    """What the first rank was told, which on other machines nobody knows."""
    box = [told]
    torch.distributed.broadcast_object_list(box, src=0)
    (heard,) = box
    if heard is None:
        raise TrainingError("the first machine (HQINET_TRAIN__NODE=0) opens the run")
    return heard


def join_ranks(device: str) -> None:
    """Meet the other processes of the run. Raises DeviceError for a device that is not here."""
    on_gpu = pick_device(device).type == "cuda"
    if on_gpu:
        # What NCCL gathers goes through the current device, which would be the first for all.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")


if __name__ == "__main__":
    main()
