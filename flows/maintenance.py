"""The weekly flow: the latest commit is verified, then what no commit needs is removed."""

from prefect import flow, get_run_logger
from pydantic import BaseModel

from flows import stores
from flows.errors import FlowError
from storage.dataset import upkeep
from storage.dataset.garbage import collect_garbage


class DamagedError(FlowError):
    """Volumes of the latest commit are not as they were written; one line that names one."""


class MaintenanceResult(BaseModel):
    """What was looked at and what was removed."""

    commit: int
    volumes: int
    removed: int
    bytes: int


@flow(name="maintenance")
def maintenance(deep: bool = False) -> MaintenanceResult:
    """Verify the latest commit of the dataset, and remove what no commit needs.

    Nothing is removed from a damaged dataset: the garbage may hold what repairs it.

    Args:
        deep: Read and hash every pixel, too.
    """
    dataset = stores.dataset()
    found = upkeep.verify(dataset.snapshot(), deep=deep)
    if found.problems:
        first = found.problems[0]
        raise DamagedError(
            f"{len(found.problems)} of {found.volumes} volumes of commit {found.commit} are "
            f"damaged, the first of {first.patient}: {first.problem}; ingest its delivery again, "
            "which writes it anew, or restore the dataset's backup"
        )
    garbage = collect_garbage(dataset, stores.scratch(), stores.memory(), dry_run=False)
    gone = (*garbage.volumes, *garbage.files, *garbage.scratch, *garbage.memory)
    get_run_logger().info(
        "commit %d: %d volumes whole; %d things removed, %d bytes",
        found.commit,
        found.volumes,
        len(gone),
        garbage.bytes,
    )
    return MaintenanceResult(
        commit=found.commit, volumes=found.volumes, removed=len(gone), bytes=garbage.bytes
    )
