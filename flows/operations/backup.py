"""A live home as one tar file, whole though the services write to it meanwhile.

What refers to something is copied before what it refers to: promotions name versions and commits,
the databases name models, commits name volumes, and none of those is written after its mention. So
all that a restored home speaks of is in it, and what came later is not spoken of.
"""

import os
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.errors import FlowError

LEFT_OUT = ("logs", "scratch", "cache", "scan")
"""Folders of a home that hold nothing which another run does not make again."""
_SQLITE = b"SQLite format 3\0"
_OF_A_DATABASE = ("-wal", "-shm", "-journal")
_DRAFT = ".draft"
"""Of files and folders, a series that is being restored among them, which are not whole yet."""
Kind = Callable[[Path], bool]


class BackupError(FlowError):
    """A place that cannot take the backup; one line that says what to do."""


def back_up(home: Path, target: Path) -> int:
    """Write a home, an absolute path, into a tar file; returns how many files it holds.

    The file has its name when it is complete.

    Raises:
        BackupError: something has that name already, or it lies in the home itself.
        OSError: a disk does not do what is asked.
    """
    target = target.expanduser().absolute()
    if target.exists():
        raise BackupError(f"{target} is there already: give another name, as one with the date")
    if target.is_relative_to(home):
        raise BackupError(f"{target} lies in the home: a backup belongs on another disk")
    draft = target.with_name(f"{target.name}{_DRAFT}")
    try:
        with tarfile.open(draft, "w") as tar:
            count = _fill(tar, home)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _fill(tar: tarfile.TarFile, home: Path) -> int:
    kept: set[Path] = set()
    # The last again: what was moved within the home while that was walked through.
    for kind in (_is_history, _is_database, _is_log, _is_anything, _is_anything):
        for file in _files(home):
            if kind(file.relative_to(home)) and file not in kept and _add(tar, file, home):
                kept.add(file)
    return len(kept)


def _is_history(file: Path) -> bool:
    return "promotions" in file.parts and _is_log(file)


def _is_database(file: Path) -> bool:
    return file.suffix == ".db"


def _is_log(file: Path) -> bool:
    return "_delta_log" in file.parts


def _is_anything(_file: Path) -> bool:
    return True


def _files(home: Path) -> Iterator[Path]:
    """All files that belong into a backup, those of a folder before those of the folders in it."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for place, folders, files in os.walk(home, onerror=fail):
        if Path(place) == home:
            folders[:] = [name for name in folders if name not in LEFT_OUT]
        folders[:] = sorted(name for name in folders if not name.endswith(_DRAFT))
        yield from (
            Path(place, name)
            for name in sorted(files)
            if not name.endswith((*_OF_A_DATABASE, _DRAFT, ".lock"))
        )


def _add(tar: tarfile.TarFile, file: Path, home: Path) -> bool:
    """Add a file under its place in the home; False if it is gone since it was seen."""
    name = str(file.relative_to(home))
    try:
        with file.open("rb") as content:
            if content.read(len(_SQLITE)) == _SQLITE:
                _add_database(tar, file, name)
                return True
            content.seek(0)
            tar.addfile(tar.gettarinfo(arcname=name, fileobj=content), content)
    except FileNotFoundError:
        return False
    return True


def _add_database(tar: tarfile.TarFile, file: Path, name: str) -> None:
    """Add a database as it is at one moment, whoever writes to it."""
    with TemporaryDirectory(dir=file.parent, prefix="backup-", suffix=_DRAFT) as folder:
        copy = Path(folder) / file.name
        with (
            closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=60)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        tar.add(copy, arcname=name)
