"""The one process that keeps the services of a home running: `python -m ... HOME`.

Servers first, then what is deployed on them, then workers. What ends is started again, later each
time that it ends soon. Told to stop, it ends workers and their runs before the servers that these
report to. It imports neither Prefect nor MLflow: what watches them must not share their troubles.
"""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

import psutil

from flows.errors import FlowError
from flows.operations import home as homes
from flows.operations import processes
from flows.operations.log import UVICORN, open_log, say, shorten
from flows.operations.services import (
    LOOPBACK,
    POOLS,
    STATE,
    Service,
    Services,
    ServicesError,
    end_leftovers,
    environment,
    free_port,
    make_folders,
    only_supervisor,
    read,
    write,
)
from flows.settings import Settings
from storage.stores.servers import answers

STEADY = 60
"""Seconds after which a service that ends is started at once again."""
LONGEST_PAUSE = 60
WATCH = 0.5
WATCH_FLOWS = 5
PATIENCE = 180
"""Seconds that a server may take to answer."""
PARTING = 7
"""Seconds that runs may take to end: a training ends its step and saves."""
WORKERS_PARTING = 3
SERVERS_PARTING = 3
WATCH_NAME = "watch"


class StopRequested(Exception):  # noqa: N818 - no error: it is what the operator asked for
    """SIGTERM or Ctrl-C."""


@dataclass
class Child:
    """A service: its command, and the process that runs it now.

    Attributes:
        port: on which it listens; None for one that does not.
    """

    name: str
    command: list[str]
    port: int | None = None
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _begun: float = 0.0
    _pause: float = 0.0

    def start(self, variables: Mapping[str, str], folder: Path) -> None:
        """Start it; its output goes to its log."""
        with open_log(folder / f"{self.name}.log") as log:
            # A group of its own: a terminal's Ctrl-C reaches the supervisor alone.
            self.process = subprocess.Popen(
                self.command,
                env=dict(variables),
                cwd=folder.parent,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self.starts += 1
        self._begun = monotonic()

    def is_due(self) -> bool:
        """Whether it ended, and its pause is over."""
        if self.process is not None and self.process.poll() is None:
            return False
        if self.process is not None:
            lasted = monotonic() - self._begun
            self._pause = 0 if lasted > STEADY else min(max(1, 2 * self._pause), LONGEST_PAUSE)
            self._begun = monotonic()
            say(f"{self.name} ended with {self.process.returncode} after {lasted:.0f} s")
            self.process = None
        return monotonic() - self._begun >= self._pause

    @property
    def own(self) -> psutil.Process | None:
        """Its process, None where it is gone."""
        if self.process is None or self.process.poll() is not None:
            return None
        return psutil.Process(self.process.pid)

    def shown(self) -> Service:
        """How it stands in `services.json`."""
        own = self.own
        return Service(
            name=self.name,
            process="" if own is None else processes.identity(own),
            starts=self.starts,
        )


def servers(home: Path, settings: Settings) -> list[Child]:
    """Prefect's server, and MLflow's for the home's own database."""
    python = [sys.executable, "-m"]
    port = free_port(settings.services.prefect_port)
    made = [
        Child(
            "prefect",
            [*python, "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)],
            port,
        )
    ]
    if not settings.tracking_uri:
        folder = home / "mlflow"
        folder.mkdir(exist_ok=True)
        wanted = settings.services.mlflow_port
        port = free_port(wanted if wanted != port else wanted + 1)
        command = [*python, "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
        command += ["--default-artifact-root", (folder / "artifacts").as_uri()]
        command += ["--uvicorn-opts", f"--log-config {shlex.quote(str(UVICORN))}"]
        made.append(Child("mlflow", command, port))
    return made


def flow_runs(worker: psutil.Process) -> list[psutil.Process]:
    """The runs of a worker."""
    return [one for one in processes.family(worker) if processes.is_flow_run(one)]


def dicom(home: Path, settings: Settings) -> list[Child]:
    """The receiver and the sender, where the settings ask for them."""
    asked = {
        "receive": settings.receive.enabled,
        "send": settings.send.destinations is not None,
    }
    return [
        Child(verb, [sys.executable, "-m", "flows.cli.main", verb, "--json", "--home", str(home)])
        for verb, wanted in asked.items()
        if wanted
    ]


def workers() -> list[Child]:
    """A worker for each pool, and the watch over their runs."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool"]
    made = [Child(f"worker-{pool.removeprefix('hqinet-')}", [*command, pool]) for pool in POOLS]
    return [*made, Child(WATCH_NAME, [sys.executable, "-m", "flows.operations.watch"])]


@dataclass
class Supervisor:
    """Keeps the children of a home running until it is told to stop."""

    home: Path
    servers: list[Child]
    workers: list[Child]

    def __post_init__(self) -> None:
        ports = {child.name: child.port for child in self.servers}
        self.prefect = f"http://{LOOPBACK}:{ports['prefect']}/api"
        self.mlflow = f"http://{LOOPBACK}:{ports['mlflow']}" if "mlflow" in ports else ""
        self._variables = environment(self.home, self.prefect)
        self._logs = self.home / "logs"
        self._written: Services | None = None
        self._failing: dict[str, str] = {}

    def run(self) -> None:
        """Start everything in order, then watch; returns when told to stop.

        Raises ServicesError if a server does not answer, or nothing can be deployed on it.
        """
        try:
            self._tell("starting")
            for child in self.servers:
                child.start(self._variables, self._logs)
            for child in self.servers:
                self._wait_for(child)
            self._deploy()
            for child in self.workers:
                child.start(self._variables, self._logs)
            self._watch()
        except StopRequested:
            say("told to stop")
        except ServicesError as error:
            self._tell("failed", str(error))
            raise
        finally:
            self._stop()

    def _wait_for(self, child: Child) -> None:
        """Wait until a server of ours, not just anybody's, answers on its port."""
        assert child.port is not None
        until = monotonic() + PATIENCE
        while monotonic() < until:
            own = child.own
            if own is None:
                raise ServicesError(f"{child.name} ended; see {self._logs / child.name}.log")
            path = "/api/health" if child.name == "prefect" else "/health"
            url = f"http://{LOOPBACK}:{child.port}{path}"
            if processes.listens(own, child.port) and answers(url):
                self._tell("starting")
                return
            sleep(WATCH)
        raise ServicesError(f"{child.name} does not answer; see {self._logs / child.name}.log")

    def _deploy(self) -> None:
        command = [sys.executable, "-m", "flows.operations.deployment"]
        with open_log(self._logs / "deployment.log") as log:
            done = subprocess.run(
                command, env=self._variables, stdout=log, stderr=log, cwd=self.home, check=False
            )
        if done.returncode:
            raise ServicesError(f"prefect.yaml was not deployed; see {self._logs}/deployment.log")

    def _watch(self) -> None:
        looked = monotonic()
        while True:
            for child in (*self.servers, *self.workers):
                if child.is_due():
                    with self._outlive(f"{child.name} cannot be started"):
                        child.start(self._variables, self._logs)
            with self._outlive(f"{STATE} cannot be written"):
                self._tell("up")
            if monotonic() - looked > WATCH_FLOWS:
                self._end_lost_flow_runs()
                with self._outlive("logs cannot be shortened"):
                    shorten(self._logs)
                looked = monotonic()
            sleep(WATCH)

    @contextmanager
    def _outlive(self, what: str) -> Iterator[None]:
        """Go on after an OSError, as of a full disk: it is said once for as long as it lasts.

        It must end nothing that runs; whoever comes by here next tries again.
        """
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            if self._failing.get(what) != why:
                say(f"{what}: {why}")
            self._failing[what] = why
        else:
            self._failing.pop(what, None)

    def _end_lost_flow_runs(self) -> None:
        for process in processes.lost_flow_runs(self.home):
            say(f"flow run of process {process.pid} has lost its worker: it is ended")
            processes.end([process], PARTING)

    def _stop(self) -> None:
        """The watch, runs, workers, servers, in this order; nothing outlives it."""
        self._end(child for child in self.workers if child.name == WATCH_NAME)
        self._end_runs()
        running = [own for child in self.workers if (own := child.own)]
        families = [one for own in running for one in processes.family(own)]
        processes.end(running, WORKERS_PARTING)
        processes.end([one for one in families if one.is_running()], 1)
        self._end(self.servers)
        if self._written is not None and self._written.state != "failed":
            with self._outlive(f"{STATE} cannot be written"):
                self._tell("starting")

    def _end(self, children: Iterable[Child]) -> None:
        processes.end([own for child in children if (own := child.own)], SERVERS_PARTING)

    def _end_runs(self) -> None:
        """Tell runs to end while their worker is there, which hears how they do.

        A worker that is told to stop leaves its runs at once, saved or not.
        """
        told: set[psutil.Process] = set()
        until = monotonic() + PARTING
        while monotonic() < until:
            runs = {run for child in self.workers if (own := child.own) for run in flow_runs(own)}
            for run in runs - told:
                with suppress(psutil.Error):
                    run.terminate()
            if not runs:
                return
            told |= runs
            sleep(0.2)

    def _tell(self, state: str, reason: str = "") -> None:
        now = Services(
            supervisor=processes.identity(psutil.Process()),
            state=state,
            reason=reason,
            prefect=self.prefect,
            mlflow=self.mlflow,
            services=[child.shown() for child in (*self.servers, *self.workers)],
        )
        if now != self._written:
            write(self.home, now)
            self._written = now


def main() -> None:
    """Keep the services of a home running until SIGTERM or Ctrl-C."""
    home = homes.enter(Path(sys.argv[1]))
    make_folders(home)

    def stop(_number: int, _frame: FrameType | None) -> None:
        # Once: a second request must not break the parting off.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise StopRequested

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        with only_supervisor(home):
            before = read(home)
            if before is not None:
                end_leftovers(home, before)
            settings = Settings()
            others = [*workers(), *dicom(home, settings)]
            Supervisor(home, servers(home, settings), others).run()
    except FlowError as error:
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
