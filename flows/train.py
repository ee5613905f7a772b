"""The training flow: a pinned commit and a recipe become a run and a registered model version."""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from prefect import State, Task, flow, get_run_logger, runtime, task
from prefect.artifacts import create_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import TerminationSignal
from pydantic import BaseModel

from flows import events, lineage, stores
from flows.compute import training_job
from flows.compute.beginnings import seen_by
from flows.compute.distributed import fit_distributed
from flows.compute.envelopes import ENVELOPE, write_envelope
from flows.compute.progress import Display
from flows.compute.training_job import Job
from flows.errors import FlowError
from flows.retries import TRIED_AGAIN
from flows.settings import Settings, TrainSettings
from hqinet.restoration.export import deployable, example_windows
from hqinet.training.checkpoint import load_checkpoint, load_network
from hqinet.training.interrupts import TrainingError, TrainingInterruptedError
from hqinet.training.loop import BEST, CHECKPOINT
from hqinet.training.recipe import Recipe, load_recipe
from storage.errors import DatasetError, StorageError
from storage.models.registry import DatasetInputs
from storage.provenance import code_version
from storage.stores import files

DEFAULTS = Settings().train
RECIPE = Settings().recipe
NO_OVERRIDES: list[str] = []


class AlreadyTrainingError(TrainingError):
    """Another process trains this run."""


class UnregisteredError(FlowError):
    """A run is trained and its model not registered; one line that says how to go on."""


class TrainResult(BaseModel):
    """What `hqinet train --json` prints.

    `steps` are those made, `planned` those of the schedule, which `max_minutes` may cut short.
    """

    run: str
    model: int
    commit: int
    recipe: str
    steps: int
    planned: int


@flow(name="train")
def train(
    recipe: str = RECIPE,
    commit: int | None = None,
    resume: str | None = None,
    overrides: list[str] = NO_OVERRIDES,
    start: str | None = None,
    settings: TrainSettings = DEFAULTS,
) -> TrainResult:
    """Train a recipe on the training patients of a commit and register the result.

    Args:
        recipe: Name of a recipe or a TOML file.
        commit: Of the dataset; the latest if empty.
        resume: MLflow run to take up from its checkpoint, with its own recipe and commit.
        overrides: Lines of TOML on top of the recipe, as `model.width = 0.25`.
        start: Begins with the weights of `starter`, which ships with the package, or of a version.
        settings: How the machine is used.
    """
    resume = resume or begun_before()
    job = (
        reopen_run(resume, settings)
        if resume
        else open_run(recipe, overrides, commit, start, settings)
    )
    fit.with_options(retries=settings.retries)(job, settings)
    try:
        result = register(job)
    except StorageError as error:
        raise UnregisteredError(
            f"run {job.run} is trained and could not be registered: {error}; "
            f"`hqinet train --resume {job.run}` registers it"
        ) from error
    events.model_registered(result.model, result.run, result.commit)
    return result


def begun_before() -> str | None:
    """The MLflow run that an earlier attempt of this flow run began on this machine, if one did.

    A flow run whose machine died, or whose worker was stopped, is started again as the same flow
    run, and goes on from the checkpoint.
    """
    if not runtime.flow_run.run_count or runtime.flow_run.run_count < 2:
        return None
    for file in Settings().runs.glob("*/run.json"):
        # Not as a job: one of before may say what a job of today does not know.
        if json.loads(file.read_text()).get("flow_run") == runtime.flow_run.id:
            return file.parent.name
    return None


@task(cache_policy=NO_CACHE)
def open_run(
    recipe: str,
    overrides: list[str],
    commit: int | None,
    start: str | None,
    settings: TrainSettings,
) -> Job:
    """Pin the commit, open the MLflow run and write its `run.json`."""
    loaded = load_recipe(recipe, *overrides)
    snapshot = stores.dataset().snapshot(commit)
    registry = stores.registry()
    inputs = DatasetInputs(Settings().dataset_url, snapshot.commit, snapshot.digest)
    run = registry.start(f"{loaded.name}-commit-{snapshot.commit}", flatten(loaded), inputs)
    registry.tag_run(run, {"recipe": loaded.name, "code_version": code_version()})
    job = Job(
        run=run,
        commit=snapshot.commit,
        recipe=loaded,
        device=settings.device,
        start=start,
        flow_run=runtime.flow_run.id or "",
    )
    job.folder.mkdir(parents=True)
    registry.log_file(run, write_job(job))
    return job


@task(cache_policy=NO_CACHE)
def reopen_run(run: str, settings: TrainSettings) -> Job:
    """The job of an interrupted run; raises RegistryError if there is none of that id."""
    stores.registry().reopen(run)
    file = Settings().runs / run / "run.json"
    if not file.exists():
        raise TrainingError(f"run {run} left no folder here; resume it on the machine it ran on")
    job = Job.model_validate_json(file.read_text()).model_copy(update={"device": settings.device})
    write_job(job)
    return job


def write_job(job: Job) -> Path:
    """Write the job into its folder, whole or not at all: without it nothing resumes the run."""
    file = job.folder / "run.json"
    files.write(file, job.model_dump_json(indent=1).encode())
    return file


def worth_retrying(_task: Task, _run: TaskRun, state: State) -> bool:
    """Whether another try may end better: not after a request to stop, or trouble that stays."""
    try:
        state.result()
    except (TrainingError, DatasetError):
        return False
    except Exception:  # noqa: BLE001 - what it was decides nothing else
        return True
    return False


@task(cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def fit(job: Job, settings: TrainSettings) -> None:
    """Train, from the checkpoint if there is one: a retry of this task goes on, not back."""
    artifact = create_progress_artifact(progress=0.0, key="training", description=f"run {job.run}")
    try:
        with held(job.folder), watched(job.run):
            if settings.processes * settings.nodes == 1:
                with Display(artifact) as display:
                    training_job.run(job, display)
            else:
                fit_distributed(job, settings, artifact)
    except AlreadyTrainingError:
        raise
    except KeyboardInterrupt:
        close_run(job.run, "KILLED")
        raise
    except TrainingInterruptedError as error:
        close_run(job.run, "KILLED")
        if runtime.deployment.id:
            # Its worker is told to stop: crashed, not failed, so that the run is started again.
            raise TerminationSignal(signal.SIGTERM) from error
        message = f"{error}: `hqinet train --resume {job.run}`"
        raise TrainingInterruptedError(message) from error
    except Exception:
        close_run(job.run, "FAILED")
        raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let no other process train in a run's folder meanwhile.

    Raises AlreadyTrainingError, naming the process that does. The system gives the lock back when
    its process dies.
    """
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise AlreadyTrainingError(
                f"run {folder.name} is being trained already, by {file.read() or 'another process'}"
                ": wait for it, or stop it first"
            ) from error
        file.truncate(0)
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        file.flush()
        yield


@contextmanager
def watched(run: str) -> Iterator[None]:
    """Log the machine's use to the run, where MLflow takes it; training does not wait for that."""
    with ExitStack() as stack:
        with suppress(StorageError):
            stack.enter_context(stores.registry().watch_system(run))
        yield


def close_run(run: str, status: str) -> None:
    """Close a run that failed; that MLflow does not answer must not hide why it did."""
    try:
        stores.registry().finish(run, status)
    except StorageError as error:
        get_run_logger().warning("run %s could not be closed as %s: %s", run, status, error)


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def register(job: Job) -> TrainResult:
    """Register the best weights of a finished run in pt2 form, tagged with its lineage."""
    registry = stores.registry()
    snapshot = stores.dataset().snapshot(job.commit)
    network, _ = load_network(job.folder / BEST)
    steps = load_checkpoint(job.folder / CHECKPOINT)["step"]
    _, planned = job.recipe.steps(sum(row.slices for row in snapshot.patients("train")))
    tags = lineage.tags(snapshot, job.recipe.name)
    if job.start:
        tags |= lineage.started_from(job.start, seen_by(job.start), snapshot)
    drawn = job.recipe.sampling.dose
    registry.log_file(job.run, write_envelope(job.folder / ENVELOPE, snapshot, drawn))
    version = registry.register(
        job.run, deployable(network, job.recipe.model), example_windows().numpy(), tags
    )
    registry.finish(job.run)
    get_run_logger().info("run %s is model version %d", job.run, version)
    return TrainResult(
        run=job.run,
        model=version,
        commit=snapshot.commit,
        recipe=job.recipe.name,
        steps=steps,
        planned=planned,
    )


def flatten(recipe: Recipe) -> dict[str, object]:
    """The recipe's leaves by dotted name, as MLflow takes parameters."""
    leaves: dict[str, object] = {}
    for section, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            leaves |= {f"{section}.{key}": leaf for key, leaf in value.items()}
        else:
            leaves[section] = value
    return leaves
