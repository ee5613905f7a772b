"""What waits to be sent: a file for each series and destination, which survives every restart."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from fcntl import LOCK_EX, flock
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field
from pydicom.uid import UID

from flows.operations.journal import Step, note
from storage.stores import files

FIRST_PAUSE = timedelta(seconds=10)
LONGEST_PAUSE = timedelta(minutes=30)
OLDEST = timedelta(days=3)
"""After which a series is given up: by then somebody has to look."""
MOST = 1000
"""Series that wait for one destination; what comes on top is given up at once: it is long dead."""
ALARMED = timedelta(hours=1)
"""For so long the operator is told once of what is given up for a destination."""


class Job(BaseModel):
    """One series for one destination.

    Attributes:
        series: SeriesInstanceUID of what it was restored from, where that is known.
        mark: another one each time that the series is put, for it may have been restored anew.
        due: when it is tried next.
        said: why it was not sent when it was tried last.
        file: name of the file that it was read from.
        given_up: whether it was given up just now, and is tried no more by itself.
        alarms: whether the operator is to be told: it is the first of its destination for a while.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    destination: str
    series: str = ""
    mark: str = ""
    queued: datetime
    due: datetime
    tries: int = 0
    said: str = ""
    file: str = Field(default="", exclude=True)
    given_up: bool = Field(default=False, exclude=True)
    alarms: bool = Field(default=False, exclude=True)

    @property
    def uids(self) -> tuple[str, str]:
        """SeriesInstanceUIDs of source and derived series; empty where a folder has another name.

        A name that is no UID may be a person's.
        """
        derived = self.folder.name if UID(self.folder.name).is_valid else ""
        return self.series or derived, derived


class Outbox:
    """Jobs in HOME/outbox/DESTINATION; those that were given up lie in `given-up` beside them."""

    def __init__(self, home: Path) -> None:
        self._home, self._folder = home, home / "outbox"

    def put(self, folder: Path, destination: str, series: str = "") -> Job:
        """Queue a series for a destination; once, however often it is put.

        What is being sent while it is put waits on, with a new mark: it may be of before.

        series: SeriesInstanceUID of what it was restored from. Returns the job as it stands then:
        given up, where as many wait as may.
        """
        job = _new(folder, destination, series)
        with self._alone(destination):
            if (waiting := self._waiting(job)) is not None:
                again = waiting.model_copy(update={"mark": job.mark})
                self._write(again)
                return again
            if len(list(self._file(job).parent.glob("*.json"))) >= MOST:
                return self._give_up(job, f"{MOST} series wait for {destination} already")
            self._write(job)
        self._note(job, "queued")
        return job

    def put_again(self, folder: Path, destination: str) -> Job:
        """Queue a series that somebody sends by hand: as if never tried, however many wait."""
        job = _new(folder, destination, "")
        with self._alone(destination):
            self._write(job)
        self._note(job, "queued")
        return job

    def destinations(self) -> list[str]:
        """Those for which something waits, or was given up; a destinations file may name others."""
        return sorted(name.name for name in self._folder.glob("*") if any(name.rglob("*.json")))

    def waiting(self, destination: str) -> list[Job]:
        """All jobs of a destination, the oldest first."""
        return sorted(_jobs(self._folder / destination), key=lambda job: job.queued)

    def due(self, destination: str) -> list[Job]:
        """Those that are to be tried now."""
        now = datetime.now(UTC)
        return [job for job in self.waiting(destination) if job.due <= now]

    def given_up(self, destination: str) -> list[Job]:
        """Those that were not sent within OLDEST, or came on top of MOST."""
        return _jobs(self._folder / destination / "given-up")

    def sent(self, job: Job) -> None:
        """Forget a job that is done, and that it was given up before.

        One that was put again since it was read waits on.
        """
        self._note(job, "sent")
        with self._alone(job.destination):
            waiting = self._waiting(job)
            if waiting is not None and waiting.mark == job.mark:
                self._file(job).unlink(missing_ok=True)
        self._given_up(job).unlink(missing_ok=True)

    def failed(self, job: Job, said: str) -> Job:
        """Put a job off, twice as long each time, or give it up; returns it as it stands then."""
        now = datetime.now(UTC)
        # The exponent is bounded before the power is taken: a job may be tried for days.
        pause = min(FIRST_PAUSE * 2 ** min(job.tries, 20), LONGEST_PAUSE)
        update = {"tries": job.tries + 1, "said": said, "due": now + pause}
        later = job.model_copy(update=update)
        with self._alone(job.destination):
            if now - job.queued > OLDEST:
                return self._give_up(later, said)
            self._write(later)
        self._note(later, "not sent")
        return later

    def _give_up(self, job: Job, said: str) -> Job:
        place = self._given_up(job)
        lately = datetime.now(UTC).timestamp() - ALARMED.total_seconds()
        told = any(file.stat().st_mtime > lately for file in place.parent.glob("*.json"))
        update = {"said": said, "given_up": True, "alarms": not told and not place.exists()}
        last = job.model_copy(update=update)
        files.write(place, last.model_dump_json(indent=1).encode())
        self._file(job).unlink(missing_ok=True)
        self._note(last, "given up")
        return last

    def _note(self, job: Job, step: Step) -> None:
        series, derived = job.uids
        facts = {"derived": derived, "destination": job.destination, "tries": job.tries}
        note(self._home, series, step, **facts)

    @contextmanager
    def _alone(self, destination: str) -> Iterator[None]:
        """Keep flows and sender from changing the jobs of one destination at the same time."""
        folder = self._folder / destination
        folder.mkdir(parents=True, exist_ok=True)
        # It is unlocked when it is closed.
        with (folder / "lock").open("a", encoding="utf-8") as file:
            flock(file, LOCK_EX)
            yield

    def _waiting(self, job: Job) -> Job | None:
        """The job of the same series as it waits now."""
        with suppress(FileNotFoundError):
            return _read(self._file(job))
        return None

    def _file(self, job: Job) -> Path:
        return self._folder / job.destination / (job.file or _file_name(job.folder))

    def _given_up(self, job: Job) -> Path:
        return self._folder / job.destination / "given-up" / self._file(job).name

    def _write(self, job: Job) -> None:
        files.write(self._file(job), job.model_dump_json(indent=1).encode())


def _new(folder: Path, destination: str, series: str) -> Job:
    now, folder = datetime.now(UTC), folder.absolute()
    return Job(
        folder=folder,
        destination=destination,
        series=series,
        mark=uuid4().hex,
        queued=now,
        due=now,
    )


def _file_name(folder: Path) -> str:
    """What a job is called: after its series, or where the folder has no UID's name, its path too.

    By their last names alone, `a/low` and `b/low` would take each other's place.
    """
    if UID(folder.name).is_valid:
        return f"{folder.name}.json"
    return f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"


def _jobs(folder: Path) -> list[Job]:
    found = []
    for file in folder.glob("*.json"):
        # Another process may have sent it meanwhile.
        with suppress(FileNotFoundError):
            found.append(_read(file))
    return found


def _read(file: Path) -> Job:
    job = Job.model_validate_json(file.read_text())
    return job.model_copy(update={"file": file.name})
