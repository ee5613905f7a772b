"""The event of a commit: told once, also of one whose ingest died before it could tell."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import events
from storage.dataset.versions import Dataset
from storage.errors import DatasetError
from storage.stores import files


class CommitNews:
    """What of a dataset this home has told; the number of the last commit stands in a file.

    A run begins before it commits and tells after it has. The next run tells what lies between,
    and of two runs at once one tells for both.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._file = folder / f"{dataset.identity}.json"
        self._dataset = dataset

    def begin(self) -> None:
        """Take what there is now for told, where nothing was ever told."""
        with self._alone():
            if self._told() is None:
                self._write(self._dataset.snapshot().commit)

    def tell(self) -> None:
        """Emit the event of what was committed since the last one, if anything was."""
        with self._alone():
            told, now = self._told(), self._dataset.snapshot()
            if told is None or now.commit <= told:
                return
            known = self._patients(told)
            new = [row for row in now.patients() if row.patient not in known]
            trained_on = sum(row.split == "train" for row in new)
            events.dataset_committed(self._dataset.identity, now.commit, trained_on)
            self._write(now.commit)

    def _patients(self, commit: int) -> set[str]:
        """Those of a commit; none where it was removed meanwhile, so that all are new."""
        try:
            return {row.patient for row in self._dataset.snapshot(commit).patients()}
        except DatasetError:
            return set()

    def _told(self) -> int | None:
        try:
            return int(json.loads(self._file.read_text())["commit"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _write(self, commit: int) -> None:
        files.write(self._file, json.dumps({"commit": commit}).encode())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else of this home tells meanwhile; the lock goes with the process."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
