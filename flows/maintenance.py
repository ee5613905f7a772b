"""The weekly flow: the latest commit is verified, then what no commit needs is removed."""

from datetime import UTC, datetime
from zlib import crc32

from prefect import flow, get_run_logger
from pydantic import BaseModel

from flows import stores
from flows.errors import FlowError
from storage.dataset import upkeep
from storage.dataset.garbage import collect_garbage

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
"""A Monday from which weeks are counted."""


class DamagedError(FlowError):
    """Volumes of the latest commit are not as they were written; one line that names one."""


class MaintenanceResult(BaseModel):
    """What was looked at and what was removed."""

    commit: int
    volumes: int
    deep: int
    removed: int
    bytes: int


@flow(name="maintenance")
def maintenance(deep_within: int = 13) -> MaintenanceResult:
    """Verify the latest commit of the dataset, and remove what no commit needs.

    Nothing is removed from a damaged dataset: the garbage may hold what repairs it.

    Args:
        deep_within: Weeks within which every pixel is read and hashed once, a share each week; 1:
            all of them now; 0: never.
    """
    dataset = stores.dataset()
    if not dataset.catalog.exists():
        # As where series are restored alone.
        get_run_logger().warning(
            "there is no dataset at %s: nothing was verified", dataset.location
        )
        return MaintenanceResult(commit=0, volumes=0, deep=0, removed=0, bytes=0)
    snapshot = dataset.snapshot()
    found = upkeep.verify(snapshot)
    due = due_in(datetime.now(UTC), [row.patient for row in snapshot.patients()], deep_within)
    problems = found.problems or upkeep.verify(snapshot, deep=True, only=due).problems
    if problems:
        first = problems[0]
        raise DamagedError(
            f"{len(problems)} of {found.volumes} volumes of commit {found.commit} are "
            f"damaged, the first of {first.patient}: {first.problem}; ingest its delivery again, "
            "which writes it anew, or restore the dataset's backup"
        )
    garbage = collect_garbage(dataset, stores.scratch(), stores.memory(), dry_run=False)
    gone = (*garbage.volumes, *garbage.files, *garbage.scratch, *garbage.memory)
    get_run_logger().info(
        "commit %d: %d volumes whole, %d of them to the pixel; %d things removed, %d bytes",
        found.commit,
        found.volumes,
        len(due),
        len(gone),
        garbage.bytes,
    )
    return MaintenanceResult(
        commit=found.commit,
        volumes=found.volumes,
        deep=len(due),
        removed=len(gone),
        bytes=garbage.bytes,
    )


def due_in(now: datetime, patients: list[str], weeks: int) -> list[str]:
    """The patients whose pixels are read in the week of `now`, so that all are within `weeks`."""
    if weeks < 1:
        return []
    week = (now - MONDAY).days // 7 % weeks
    return [one for one in patients if crc32(one.encode()) % weeks == week]
