"""What waits to be sent: a file for each series and destination, which survives every restart."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flows.operations.journal import Step, note
from storage.stores import files

FIRST_PAUSE = timedelta(seconds=10)
LONGEST_PAUSE = timedelta(minutes=30)
OLDEST = timedelta(days=3)
"""After which a series is given up: by then somebody has to look."""
MOST = 1000
"""Series that wait for one destination; what comes on top is given up at once: it is long dead."""


class Job(BaseModel):
    """One series for one destination.

    Attributes:
        series: SeriesInstanceUID of what it was restored from, where that is known.
        due: when it is tried next.
        said: why it was not sent when it was tried last.
        given_up: whether it is tried no more by itself.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    destination: str
    series: str = ""
    queued: datetime
    due: datetime
    tries: int = 0
    said: str = ""
    given_up: bool = False


class Outbox:
    """Jobs in HOME/outbox/DESTINATION; those that were given up lie in `given-up` beside them."""

    def __init__(self, home: Path) -> None:
        self._home, self._folder = home, home / "outbox"

    def put(self, folder: Path, destination: str, series: str = "") -> Job:
        """Queue a series for a destination; once, however often it is put.

        series: SeriesInstanceUID of what it was restored from. Returns the job as it stands then:
        given up, where as many wait as may.
        """
        now, folder = datetime.now(UTC), folder.absolute()
        job = Job(folder=folder, destination=destination, series=series, queued=now, due=now)
        if self._file(job).exists():
            return _read(self._file(job))
        if len(list(self._file(job).parent.glob("*.json"))) >= MOST:
            return self._give_up(job, f"{MOST} series wait for {destination} already")
        self._write(job)
        self._note(job, "queued")
        return job

    def waiting(self, destination: str) -> list[Job]:
        """All jobs of a destination, the oldest first."""
        found = [_read(file) for file in (self._folder / destination).glob("*.json")]
        return sorted(found, key=lambda job: job.queued)

    def due(self, destination: str) -> list[Job]:
        """Those that are to be tried now."""
        now = datetime.now(UTC)
        return [job for job in self.waiting(destination) if job.due <= now]

    def given_up(self, destination: str) -> list[Job]:
        """Those that were not sent within OLDEST, or came on top of MOST."""
        return [_read(file) for file in (self._folder / destination / "given-up").glob("*.json")]

    def sent(self, job: Job) -> None:
        """Forget a job that is done, and that it was given up before."""
        self._note(job, "sent")
        self._file(job).unlink(missing_ok=True)
        self._given_up(job).unlink(missing_ok=True)

    def failed(self, job: Job, said: str) -> Job:
        """Put a job off, twice as long each time, or give it up; returns it as it stands then."""
        now = datetime.now(UTC)
        # The exponent is bounded before the power is taken: a job may be tried for days.
        pause = min(FIRST_PAUSE * 2 ** min(job.tries, 20), LONGEST_PAUSE)
        update = {"tries": job.tries + 1, "said": said, "due": now + pause}
        later = job.model_copy(update=update)
        if now - job.queued > OLDEST:
            return self._give_up(later, said)
        self._write(later)
        self._note(later, "not sent")
        return later

    def _give_up(self, job: Job, said: str) -> Job:
        last = job.model_copy(update={"said": said, "given_up": True})
        files.write(self._given_up(job), last.model_dump_json(indent=1).encode())
        self._file(job).unlink(missing_ok=True)
        self._note(last, "given up")
        return last

    def _note(self, job: Job, step: Step) -> None:
        facts = {"derived": job.folder.name, "destination": job.destination, "tries": job.tries}
        note(self._home, job.series or job.folder.name, step, **facts)

    def _file(self, job: Job) -> Path:
        return self._folder / job.destination / f"{job.folder.name}.json"

    def _given_up(self, job: Job) -> Path:
        return self._folder / job.destination / "given-up" / self._file(job).name

    def _write(self, job: Job) -> None:
        files.write(self._file(job), job.model_dump_json(indent=1).encode())


def _read(file: Path) -> Job:
    return Job.model_validate_json(file.read_text())
