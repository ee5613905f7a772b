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

from storage.cohort import CohortRules, Role
from storage.errors import SourceError
from storage.frames import Frame, Stored
from storage.headers import Record, read_record
from storage.location import storage_errors
from storage.pseudonym import Pseudonyms
from storage.refusals import Code

_VERSION = 2
CHUNK = 250

Chunk = Sequence[str]
# Runs a function over chunks of paths, in this process or on a cluster.
Mapper = Callable[[Callable[[Chunk], list[Record]], list[Chunk]], Iterable[list[Record]]]


@dataclass(frozen=True)
class Scan:
    """What lies in a delivery.

    Attributes:
        records: images and unreadable files, sorted by path.
        skipped: how many of each kind were counted and left (`projections`, `other`, `links`...).
    """

    records: tuple[Record, ...]
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


def scan(
    source: Path,
    rules: CohortRules,
    names: Pseudonyms,
    memory: Path,
    mapper: Mapper,
) -> Scan:
    """Look at every file below `source`; headers of files seen before are not read again.

    Args:
        memory: folder for what is remembered between scans.
        mapper: where the headers are read.

    Raises:
        SourceError: the source is not there, or is no folder.
    """
    if not source.is_dir():
        raise SourceError(
            f"source {names.path(str(source))} is {'no folder' if source.exists() else 'not there'}"
            ": give the folder of the delivery"
        )
    root = source.resolve()
    remembered = _Memory(memory, root, rules, names)
    skipped: Counter[str] = Counter()
    records: list[Record] = []
    unknown: list[str] = []
    for path, status in _walk(root, skipped):
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
    skipped.update(r.kind for r in records if r.kind not in ("image", "unreadable"))
    kept = (r for r in records if r.kind in ("image", "unreadable"))
    return Scan(tuple(sorted(kept, key=lambda r: r.path)), skipped)


def _walk(root: Path, skipped: Counter[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files below the root.

    Links are not followed: one that stays inside leads to a file that is found anyway, one that
    leaves is not part of the delivery.
    """
    folders = [root]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            skipped["closed folders"] += 1
            continue
        for entry in entries:
            if entry.is_symlink():
                skipped["links"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                # A file may be gone by now: deliveries are read while they are being moved.
                with suppress(FileNotFoundError):
                    yield os.path.relpath(entry.path, root), entry.stat(follow_symlinks=False)


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
