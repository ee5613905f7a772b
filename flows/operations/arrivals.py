"""What lies in an inbox: whether it still arrives, and whether it was taken before.

DICOM has no end of a delivery: it is complete when nothing in it has changed for a while, or when
whoever brings it puts a file COMPLETE into it last. An inbox may be a prefix of an object store,
which is mirrored into the home before it is read.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any

import obstore

from flows.errors import FlowError
from storage.stores import files
from storage.stores.location import Location, storage_errors

MARK = "COMPLETE"
"""Name of the file that says that nothing more comes; what is newer than it takes it back."""
NEVER = float("-inf")
FIRST_PAUSE = timedelta(minutes=5)
"""After the first failure: the next look at the inbox tries again."""
LONGEST_PAUSE = timedelta(hours=4)


class InboxError(FlowError):
    """An inbox that is not there; one line with its absolute path."""


@dataclass(frozen=True)
class Arrival:
    """A file or folder of an inbox.

    Attributes:
        digest: of the names, sizes and times of all its files; the content is not read.
        age: seconds since the latest change of a file; infinite where there is none.
        is_marked: whether it was marked complete, and nothing has come since. The mark itself is
            no file of it.
    """

    path: Path
    digest: str
    age: float
    is_marked: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it holds no file."""
        return self.age == float("inf")


def look_at(path: Path) -> Arrival:
    """Take a delivery's measure, without reading its files.

    What is renamed or removed meanwhile raises nothing: it is a change of this moment.
    """
    seen, latest, marked = hashlib.sha256(), NEVER, NEVER
    for file in _files(path):
        try:
            state = file.stat()
        except FileNotFoundError:
            latest = time()
            continue
        # The inode's time alone: by it a copy that keeps its times, as `cp -p` makes, is new. The
        # file's own may lie in the future, where the clock of whoever wrote it is wrong.
        changed = state.st_ctime
        if file == path / MARK:
            marked = changed
            continue
        seen.update(f"{file.relative_to(path.parent)}\0{state.st_size}\0".encode())
        seen.update(f"{state.st_mtime_ns}\n".encode())
        latest = max(latest, changed)
    return Arrival(path, seen.hexdigest(), time() - latest, marked >= latest)


def _files(path: Path) -> list[Path]:
    """A file itself, or all below a folder, but for drafts; of a folder that is shut, that folder.

    Whoever takes the delivery refuses it by name, where it would look empty here.
    """
    if path.is_file():
        return [path]
    shut: list[Path] = []

    def note(error: OSError) -> None:
        # A folder that is gone before it is entered is none of the delivery's any more.
        if not isinstance(error, FileNotFoundError):
            shut.append(Path(error.filename))

    # `Path.rglob` raises for both.
    walked = os.walk(path, onerror=note)
    found = [Path(folder, name) for folder, _, names in walked for name in names]
    return sorted([*shut, *(one for one in found if one.is_file() and not files.is_draft(one))])


@dataclass(frozen=True)
class Prefix:
    """An inbox in an object store, and the folder of the home that mirrors it."""

    location: Location
    mirror: Path

    def look(self) -> Arrival:
        """Take the delivery's measure, without reading an object. Raises StorageError."""
        seen, latest, marked = hashlib.sha256(), NEVER, NEVER
        for row in self._objects():
            changed = row["last_modified"].timestamp()
            if row["path"] == MARK:
                marked = changed
                continue
            seen.update(f"{row['path']}\0{row['size']}\0{row['e_tag']}\n".encode())
            latest = max(latest, changed)
        return Arrival(self.mirror, seen.hexdigest(), time() - latest, marked >= latest)

    def fetch(self) -> None:
        """Make the mirror what the prefix is; what has not changed is not read again.

        Raises StorageError, and InboxError for a key that would lead out of the mirror.
        """
        wanted = set()
        for row in self._objects():
            file = self.mirror / row["path"]
            if ".." in file.parts:
                raise InboxError(f"inbox {self.location}: the key {row['path']!r} is no path")
            wanted.add(file)
            modified = row["last_modified"].timestamp()
            if not file.exists() or (file.stat().st_size, file.stat().st_mtime) != (
                row["size"],
                modified,
            ):
                with storage_errors(f"{self.location}/{row['path']}"):
                    content = obstore.get(self.location.store(), row["path"]).bytes()
                file.parent.mkdir(parents=True, exist_ok=True)
                files.write(file, bytes(content))
                os.utime(file, (modified, modified))
        for file in self.mirror.rglob("*"):
            if file.is_file() and file not in wanted:
                file.unlink()

    def _objects(self) -> list[Any]:
        with storage_errors(str(self.location)):
            found = obstore.list(self.location.store()).collect()
        return sorted(found, key=lambda row: row["path"])


def as_prefix(inbox: str, home: Path) -> Prefix | None:
    """An inbox that is the prefix of an object store; None for a folder."""
    if "://" not in inbox:
        return None
    location = Location(inbox)
    # Two buckets may have a prefix of one name; the cohort is called after it.
    of_url = hashlib.sha256(location.url.encode()).hexdigest()[:8]
    return Prefix(location, home / "mirrors" / of_url / location.url.rpartition("/")[2])


def require_inbox(inbox: str) -> Path:
    """The inbox as an absolute path. Raises InboxError if there is no folder."""
    folder = Path(inbox).absolute()
    if not folder.is_dir():
        raise InboxError(
            f"inbox {folder} is {'no folder' if folder.exists() else 'not there'}: make it, or "
            "name another one in the deployment's parameters"
        )
    return folder


class Taken:
    """Which deliveries were taken, by their digests; kept in one file that survives a restart."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._digests: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}

    def __contains__(self, arrival: Arrival) -> bool:
        return self._digests.get(str(arrival.path)) == arrival.digest

    def lacks(self, arrival: Arrival, quiet: float) -> bool:
        """Whether a delivery is to be taken: it holds something, is new, and is complete.

        quiet: seconds without a change after which it is, where it was not marked complete.
        """
        complete = arrival.is_marked or arrival.age >= quiet
        return not arrival.is_empty and complete and arrival not in self

    def add(self, arrival: Arrival) -> None:
        """Remember a delivery; forget those that are gone."""
        self._digests = {path: d for path, d in self._digests.items() if Path(path).exists()}
        self._digests[str(arrival.path)] = arrival.digest
        self._file.parent.mkdir(parents=True, exist_ok=True)
        files.write(self._file, json.dumps(self._digests, indent=1).encode())


class PutOff:
    """Which deliveries failed, and wait twice as long each time; kept as `Taken` is."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._failures: dict[str, dict[str, Any]] = (
            json.loads(file.read_text()) if file.exists() else {}
        )

    def __contains__(self, arrival: Arrival) -> bool:
        """Whether a delivery is not to be tried now. One that has changed is."""
        return self._tries(arrival) > 0 and self._failures[str(arrival.path)]["until"] > time()

    def add(self, arrival: Arrival) -> None:
        """Put a delivery off that has failed; forget those that are gone."""
        tries = self._tries(arrival) + 1
        # The exponent is bounded before the power is taken: it may fail for days.
        pause = min(FIRST_PAUSE * 2 ** min(tries - 1, 20), LONGEST_PAUSE).total_seconds()
        failure = {"digest": arrival.digest, "tries": tries, "until": time() + pause}
        self._failures = {path: x for path, x in self._failures.items() if Path(path).exists()}
        self._failures[str(arrival.path)] = failure
        self._file.parent.mkdir(parents=True, exist_ok=True)
        files.write(self._file, json.dumps(self._failures, indent=1).encode())

    def _tries(self, arrival: Arrival) -> int:
        failure = self._failures.get(str(arrival.path), {})
        return failure["tries"] if failure.get("digest") == arrival.digest else 0
