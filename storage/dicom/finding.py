"""A folder, a zip or a file -> the series in it, whatever the layout."""

import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.dicom.headers import FileHeader, read_header
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
            except (zipfile.BadZipFile, RuntimeError) as error:
                raise UnusableSourceError(
                    f"source {source}: cannot be unpacked: {error}"
                ) from error
            except OSError as error:
                raise SourceError(f"source {source}: cannot be unpacked now: {error}") from error
            yield Path(folder).resolve()
    else:
        yield source.resolve()


def find_series(place: Path) -> tuple[list[FoundSeries], list[FileHeader]]:
    """The series of images at a place, sorted by UID, and the files that cannot be read.

    Args:
        place: a folder, or one file.
    """
    root = place if place.is_dir() else place.parent
    files = sorted(p for p in root.rglob("*") if p.is_file()) if place.is_dir() else [place]
    groups: dict[str, list[FileHeader]] = defaultdict(list)
    unreadable = []
    for file in files:
        header = read_header(root, file.relative_to(root).as_posix())
        if header.kind == "unreadable":
            unreadable.append(header)
        elif header.kind == "image":
            groups[header.series].append(header)
    found = [
        FoundSeries(root, uid, headers[0].description, tuple(headers))
        for uid, headers in sorted(groups.items())
    ]
    return found, unreadable
