"""A delivery -> records: one look at every header, remembered until the file changes.

What is remembered holds no name, UID or path, only digests of them (keyed when pseudonymising).
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from storage.dicom.frames import Frame, Stored
from storage.dicom.headers import Record, read_record
from storage.errors import SourceError
from storage.ingest.cohort import CohortRules, Role
from storage.ingest.pseudonyms import Pseudonyms
from storage.refusals import Code
from storage.stores.location import storage_errors

_VERSION = 5
CHUNK = 250

Chunk = Sequence[str]
# Runs a function over chunks of paths, in this process or on a cluster.
Mapper = Callable[[Callable[[Chunk], list[Record]], list[Chunk]], Iterable[list[Record]]]


@dataclass(frozen=True)
class Inventory:
    """What lies in a delivery.

    Attributes:
        records: images, unreadable files and folders that cannot be opened, sorted by path.
        folders: those that were opened.
        skipped: how many of each kind were counted and left (`projections`, `other`, `links`...).
    """

    records: tuple[Record, ...]
    folders: tuple[str, ...]
    skipped: Counter[str]


@dataclass(frozen=True)
class ChunkReader:
    """Reads the headers of some files; picklable, for a cluster."""

    root: Path
    rules: CohortRules
    names: Pseudonyms

    def __call__(self, paths: Chunk) -> list[Record]:
        """The records of the files, in their order."""
        return [read_record(self.root, path, self.rules, self.names) for path in paths]


def require_folder(source: Path, shown: str) -> None:
    """Raise SourceError if a delivery is not there or no folder.

    Args:
        shown: its path as it may be shown.
    """
    if not source.is_dir():
        raise SourceError(
            f"source {shown} is {'no folder' if source.exists() else 'not there'}"
            ": give the folder of the delivery"
        )


def take_inventory(
    source: Path,
    rules: CohortRules,
    names: Pseudonyms,
    memory: Path,
    mapper: Mapper,
) -> Inventory:
    """Look at every file below `source`; headers of files seen before are not read again.

    Args:
        memory: folder for what is remembered between scans.
        mapper: where the headers are read.

    Raises:
        SourceError: the source is not there, or is no folder.
    """
    require_folder(source, names.path(str(source)))
    root = source.resolve()
    remembered = _Memory(memory, root, rules, names)
    tree = _Tree(root)
    records: list[Record] = []
    unknown: list[str] = []
    for path, status in tree.files():
        record = remembered.get(path, status)
        if record is None:
            unknown.append(path)
        else:
            records.append(record)
    chunks = [unknown[i : i + CHUNK] for i in range(0, len(unknown), CHUNK)]
    for found in mapper(ChunkReader(root, rules, names), chunks):
        records.extend(found)
    if unknown or len(remembered) != len(records):
        remembered.save(records)
    skipped = Counter(r.kind for r in records if r.kind not in ("image", "unreadable"))
    if tree.links:
        skipped["links"] = tree.links
    kept = [r for r in (*records, *tree.closed) if r.kind in ("image", "unreadable")]
    return Inventory(tuple(sorted(kept, key=lambda r: r.path)), tuple(tree.folders), skipped)


class _Tree:
    """What lies below the root.

    Links are not followed: one that stays inside leads to a file that is found anyway, one that
    leaves is not part of the delivery.

    Attributes:
        folders: those that could be opened, below the root.
        closed: an unreadable record for each folder or file that the system keeps shut.
        links: how many were left.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folders: list[str] = []
        self.closed: list[Record] = []
        self.links = 0

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Walk the tree; yield paths below the root."""
        waiting = ["."]
        while waiting:
            folder = waiting.pop()
            try:
                entries = list(os.scandir(self._root / folder))
            except OSError as error:
                self._shut(folder, "folder", error)
                continue
            self.folders.append(folder)
            for entry in entries:
                path = entry.name if folder == "." else f"{folder}/{entry.name}"
                if entry.is_symlink():
                    self.links += 1
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        # Gone by now: deliveries are read while they are being moved.
                        continue
                    except OSError as error:
                        self._shut(path, "file", error)
                        continue
                    yield path, status

    def _shut(self, path: str, what: str, error: OSError) -> None:
        reason = f"the {what} cannot be opened: {error.strerror}"
        self.closed.append(Record(path, -1, -1, "unreadable", code=Code.UNREADABLE, reason=reason))


class _Memory:
    """Records of an earlier scan of the same source under the same rules."""

    def __init__(self, folder: Path, root: Path, rules: CohortRules, names: Pseudonyms) -> None:
        key = json.dumps([_VERSION, str(root), rules.model_dump_json(), names.digest("scan")])
        self._file = folder / f"{names.digest(key)}.jsonl"
        self._names = names
        self._known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):
            for line in self._file.read_text(encoding="utf-8").splitlines():
                path, *values = json.loads(line)
                self._known[path] = values

    def __len__(self) -> int:
        return len(self._known)

    def get(self, path: str, status: os.stat_result) -> Record | None:
        """What is remembered of a file, if it has not changed since."""
        values = self._known.get(self._names.digest(path))
        if values is None or values[:2] != [status.st_size, status.st_mtime_ns]:
            return None
        return _record(path, values)

    def save(self, records: Iterable[Record]) -> None:
        """Remember these records and no others; whole or not at all."""
        with storage_errors(str(self._file.parent)):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(f".{uuid.uuid4().hex}.draft")
            with draft.open("w", encoding="utf-8") as out:
                for record in records:
                    known = [self._names.digest(record.path), *_values(record)]
                    out.write(json.dumps(known) + "\n")
            draft.replace(self._file)


_PLAIN = [f.name for f in fields(Record) if f.name not in ("path", "frames", "stored")]


def _values(record: Record) -> list[Any]:
    plain = [getattr(record, name) for name in _PLAIN]
    return [*plain, list(map(astuple, record.frames)), record.stored and astuple(record.stored)]


def _record(path: str, values: Sequence[Any]) -> Record:
    known = dict(zip(_PLAIN, values, strict=False))
    known["role"] = Role(known["role"])
    known["code"] = Code(known["code"]) if known["code"] else None
    frames, stored = values[-2:]
    return Record(
        path,
        **known,
        frames=tuple(Frame(*(tuple(v) if v else None for v in frame)) for frame in frames),
        stored=Stored(*stored[:-1], tuple(stored[-1]) if stored[-1] else None) if stored else None,
    )
