"""A delivery -> records: one look at every header, remembered until the file changes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage.dicom.headers import FileHeader, read_header
from storage.dicom.tree import Tree
from storage.ingest.delivery import Delivery, Run, require_folder
from storage.ingest.memory import InventoryMemory
from storage.ingest.records import Record, understand

CHUNK = 250
_NAMED = 5
"""So many files of each kind that is left aside are named."""


@dataclass(frozen=True)
class Left:
    """Files of one kind that were left aside.

    Attributes:
        files: the first few, as they may be shown.
    """

    count: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """What lies in a delivery.

    Attributes:
        records: images, unreadable files and folders that cannot be opened, sorted by path.
        folders: those that were opened.
        left: what was left aside, by kind (`projections`, `ignored`, `other`, `links`).
    """

    records: tuple[Record, ...]
    folders: tuple[str, ...]
    left: Mapping[str, Left]


def take_inventory(delivery: Delivery, run: Run) -> Inventory:
    """Look at every file of a delivery; headers of files seen before are not read again.

    Args:
        run: where headers are read.

    Raises:
        SourceError: the source is not there, or is no folder.
    """
    require_folder(delivery.source, delivery.names.path(str(delivery.source)))
    remembered = InventoryMemory(delivery)
    tree = Tree(delivery.root)
    records: list[Record] = []
    unknown: list[str] = []
    for path, status in tree.files():
        record = remembered.get(path, status)
        if record is None:
            unknown.append(path)
        else:
            records.append(record)
    chunks = [unknown[i : i + CHUNK] for i in range(0, len(unknown), CHUNK)]
    for _, headers in run(partial(read_headers, delivery.root), chunks):
        if isinstance(headers, Exception):
            raise headers
        records += (understand(h, delivery.rules, delivery.names) for h in headers)
    if unknown or len(remembered) != len(records):
        remembered.save(records)
    useful = [r for r in (*records, *map(Record, tree.closed)) if _is_useful(r)]
    return Inventory(
        tuple(sorted(useful, key=lambda record: record.path)),
        tuple(tree.folders),
        _left(delivery, records, tree.links),
    )


def read_headers(root: Path, paths: Sequence[str]) -> list[FileHeader]:
    """The headers of some files, in their order; the work of a cluster.

    No secret is needed: identifiers become digests in the process that holds the delivery.
    """
    return [read_header(root, path) for path in paths]


def _is_useful(record: Record) -> bool:
    return record.kind in ("image", "unreadable")


def _left(delivery: Delivery, records: Sequence[Record], links: Sequence[str]) -> dict[str, Left]:
    of: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if not _is_useful(record):
            of[record.kind].append(record.path)
    if links:
        of["links"] = list(links)
    return {
        kind: Left(len(paths), tuple(map(delivery.names.path, sorted(paths)[:_NAMED])))
        for kind, paths in sorted(of.items())
    }
