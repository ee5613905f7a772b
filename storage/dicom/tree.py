"""The files below a folder, and what of it the system keeps shut."""

import os
from collections.abc import Iterator
from pathlib import Path

from storage.dicom.headers import FileHeader, unreadable


class Tree:
    """What lies below a root.

    Links are not followed: one that stays inside leads to a file that is found anyway, one that
    leaves is not part of the delivery.

    Attributes:
        folders: those that could be opened, below the root.
        closed: an unreadable header for each folder or file that the system keeps shut.
        links: those that were left.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folders: list[str] = []
        self.closed: list[FileHeader] = []
        self.links: list[str] = []

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
                    self.links.append(path)
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
        self.closed.append(unreadable(path, -1, -1, reason))
