"""Garbage: volumes that no commit names, what killed runs left behind, outdated memory."""

import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore

from storage.dataset.versions import Dataset
from storage.stores.location import Location, storage_errors

GRACE = timedelta(hours=24)
"""A running ingest has volumes that no commit names yet; none runs longer than this."""
REMEMBERED = timedelta(days=30)
"""What ingest remembers of a delivery is useless once the delivery no longer comes."""


@dataclass(frozen=True)
class Garbage:
    """What no commit needs.

    Attributes:
        volumes, files, scratch, memory: paths; of volumes, of the catalog and half-written files,
            of the scratch folder, and of what ingest remembers.
        bytes: that the volumes take.
        removed: False for a dry run.
    """

    volumes: list[str]
    files: list[str]
    scratch: list[str]
    memory: list[str]
    bytes: int
    removed: bool


def collect_garbage(
    dataset: Dataset,
    scratch: Path | None = None,
    memory: Path | None = None,
    *,
    dry_run: bool,
    grace: timedelta = GRACE,
) -> Garbage:
    """Remove volumes that no commit ever named, files of killed writers, old scratch and memory.

    Args:
        scratch, memory: folders of the home, to clear them too.
        dry_run: list, remove nothing.
        grace: what is younger is left alone: a running ingest may need it. Memory stays for
            `REMEMBERED` after it was last used.
    """
    location, now = dataset.location, datetime.now(UTC)
    before = now - grace
    unneeded, size = _unneeded_volumes(location, dataset.catalog.paths_ever(), before)
    # The table counts whole hours: rather one file too many is left than one that is needed gone.
    hours = max(0, math.ceil(grace / timedelta(hours=1)))
    files = [f"catalog/{name}" for name in dataset.catalog.unneeded_files(hours)]
    halves = _half_written(location, before)
    leftovers = _old_entries(scratch, before)
    forgotten = _old_files(memory, now - REMEMBERED)
    if not dry_run:
        with storage_errors(str(location)):
            for path in unneeded:
                _remove_volume(location, path, before)
            if files:
                obstore.delete(location.store(), files)
            for entry in (*halves, *leftovers, *forgotten):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    return Garbage(
        volumes=unneeded,
        files=[*files, *(file.relative_to(location.url).as_posix() for file in halves)],
        scratch=[entry.name for entry in leftovers],
        memory=[file.name for file in forgotten],
        bytes=size,
        removed=not dry_run,
    )


def _unneeded_volumes(
    location: Location, needed: Iterable[str], before: datetime
) -> tuple[list[str], int]:
    keep, newest, size = set(needed), {}, {}
    with storage_errors(str(location)):
        for batch in obstore.list(location.store(), "volumes"):
            for entry in batch:
                path = "/".join(entry["path"].split("/")[:3])
                newest[path] = max(newest.get(path, entry["last_modified"]), entry["last_modified"])
                size[path] = size.get(path, 0) + entry["size"]
    found = sorted(path for path in newest if path not in keep and newest[path] < before)
    return found, sum(size[path] for path in found)


def _remove_volume(location: Location, path: str, before: datetime) -> None:
    """Remove a volume, its marker of completeness first; not if it was written again just now."""
    store = location.store()
    objects = [entry for batch in obstore.list(store, path) for entry in batch]
    if any(entry["last_modified"] >= before for entry in objects):
        return
    marker = f"{path}/zarr.json"
    obstore.delete(store, [e["path"] for e in objects if e["path"] == marker])
    obstore.delete(store, [e["path"] for e in objects if e["path"] != marker])
    if not location.remote:
        shutil.rmtree(Path(location.url) / path, ignore_errors=True)


def _half_written(location: Location, before: datetime) -> list[Path]:
    """Staged files of a killed local writer (`name#1`); an object store has none."""
    if location.remote:
        return []
    files = (f for f in Path(location.url).rglob("*#*") if re.search(r"#\d+$", f.name))
    return [file for file in files if file.is_file() and _modified(file) < before]


def _old_entries(folder: Path | None, before: datetime) -> list[Path]:
    """Entries of a folder in which nothing is younger."""
    if folder is None or not folder.is_dir():
        return []
    return [
        entry
        for entry in sorted(folder.iterdir())
        if max(map(_modified, [entry, *entry.rglob("*")])) < before
    ]


def _old_files(folder: Path | None, before: datetime) -> list[Path]:
    """Files below a folder that are older."""
    found = sorted(folder.rglob("*")) if folder is not None else []
    return [file for file in found if file.is_file() and _modified(file) < before]


def _modified(file: Path) -> datetime:
    try:
        return datetime.fromtimestamp(file.lstat().st_mtime, UTC)
    except FileNotFoundError:
        # Someone is working here: it counts as brand new.
        return datetime.now(UTC)
