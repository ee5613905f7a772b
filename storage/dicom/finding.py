"""A folder, a zip or a file -> the series in it, whatever the layout."""

import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.dicom.headers import FileHeader, read_header, unreadable
from storage.dicom.tree import Tree
from storage.errors import SourceError, UnusableSourceError


@dataclass(frozen=True)
class FoundSeries:
    """The files that carry one SeriesInstanceUID, unordered and unjudged.

    Attributes:
        root: folder that the headers' paths are below.
    """

    root: Path
    uid: str
    description: str
    headers: tuple[FileHeader, ...]


@contextmanager
def opened(source: Path, scratch: Path) -> Iterator[Path]:
    """The folder of a source; a zip is unpacked below `scratch` meanwhile.

    Raises:
        SourceError: it is not there, or cannot be unpacked now.
        UnusableSourceError: a zip that is damaged, or asks for a password.
    """
    if source.is_dir():
        yield source.resolve()
    elif not source.exists():
        raise SourceError(f"source {source} is not there: give a folder, a zip or a DICOM file")
    elif zipfile.is_zipfile(source):
        with TemporaryDirectory(dir=scratch) as folder:
            try:
                with zipfile.ZipFile(source) as archive:
                    archive.extractall(folder)
            except (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError) as error:
                raise UnusableSourceError(
                    f"source {source}: cannot be unpacked: {error}"
                ) from error
            except OSError as error:
                raise SourceError(f"source {source}: cannot be unpacked now: {error}") from error
            yield Path(folder).resolve()
    else:
        yield source.resolve()


def find_series(place: Path) -> tuple[list[FoundSeries], list[FileHeader]]:
    """The series of images at a place, sorted by UID, and what cannot be read.

    That are files, folders that cannot be opened, and links, which are not followed.

    Args:
        place: a folder, or one file.
    """
    root, headers, unread = _looked_at(place)
    groups: dict[str, list[FileHeader]] = defaultdict(list)
    for header in headers:
        if header.kind == "unreadable":
            unread.append(header)
        elif header.kind == "image":
            groups[header.series].append(header)
    found = [
        FoundSeries(root, uid, headers[0].description, tuple(headers))
        for uid, headers in sorted(groups.items())
    ]
    return found, unread


def _looked_at(place: Path) -> tuple[Path, list[FileHeader], list[FileHeader]]:
    """The folder of a place, the headers of its files by path, and what could not be opened."""
    if not place.is_dir():
        return place.parent, [read_header(place.parent, place.name)], []
    tree = Tree(place)
    headers = [read_header(place, path) for path in sorted(path for path, _ in tree.files())]
    links = [
        unreadable(path, -1, -1, "a link, which is not followed: give what it leads to")
        for path in tree.links
    ]
    return place, headers, [*tree.closed, *links]
