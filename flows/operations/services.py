"""The services of a home as they stand in its `services.json`, which their supervisor writes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from time import monotonic, sleep
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flows.errors import FlowError
from flows.operations import api, processes
from flows.operations import home as homes
from flows.operations.log import JSON_LINES
from storage.stores import files

LOOPBACK = "127.0.0.1"
STATE = "services.json"
FOLDERS = ("inbox", "denoise-inbox", "denoised", "logs")
STARTING = 240
"""Seconds that the services may take to be up; under load, Prefect alone takes one minute."""
STOPPING = 20
"""Seconds that they may take to end: the supervisor kills what is not gone before."""
POOLS: dict[str, int | None] = {"hqinet-cpu": None, "hqinet-gpu": 1}
"""Work pools, and how many runs each takes at once."""


class ServicesError(FlowError):
    """Services that do not start or stop; one line that names the log."""


class Service(BaseModel):
    """One process that the supervisor keeps running.

    Attributes:
        process: its identity; empty while it waits for its next start.
        starts: how often it was started.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    process: str = ""
    starts: int = 0

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return processes.find(self.process) is not None


class Services(BaseModel):
    """What `services.json` says.

    Attributes:
        supervisor: identity of the process that keeps the others running.
        reason: why they could not be started.
        prefect: URL of Prefect's API.
        mlflow: URL of MLflow's page; empty where HQINET_TRACKING_URI names another one.
    """

    supervisor: str
    state: Literal["starting", "up", "failed"]
    reason: str = ""
    prefect: str
    mlflow: str
    services: list[Service]

    @property
    def is_supervised(self) -> bool:
        """Whether the supervisor runs."""
        return processes.find(self.supervisor) is not None

    @property
    def is_up(self) -> bool:
        """Whether Prefect's server is the supervisor's own, and there."""
        prefect = next((row for row in self.services if row.name == "prefect"), None)
        return self.is_supervised and prefect is not None and prefect.runs


def read(home: Path) -> Services | None:
    """What stands in a home's `services.json`; None where there is none."""
    try:
        return Services.model_validate_json((home / STATE).read_text())
    except FileNotFoundError:
        return None


def write(home: Path, services: Services) -> None:
    """Say how the services are, whole or not at all."""
    files.write(home / STATE, services.model_dump_json(indent=1).encode())


def require_up(home: Path) -> Services:
    """The services of a home. Raises ServicesError if they do not run."""
    known = read(home)
    if known is None or not known.is_up:
        raise ServicesError(f"the services of {home} do not run: `hqinet up` starts them")
    return known


@contextmanager
def only_supervisor(home: Path) -> Iterator[None]:
    """Be the one supervisor of a home; the system gives the lock back when its process dies.

    Raises ServicesError if another one is at work.
    """
    with (home / "services.lock").open("a+", encoding="utf-8") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except OSError as error:
            raise ServicesError(f"the services of {home} are started already") from error
        try:
            yield
        finally:
            flock(file, LOCK_UN)


def make_folders(home: Path) -> None:
    """Make the inboxes and what else is expected in the home of services."""
    for name in FOLDERS:
        (home / name).mkdir(parents=True, exist_ok=True)


def free_port(wanted: int) -> int:
    """The port that is wanted, or the next one on which nobody listens.

    Raises ServicesError where a hundred are taken.
    """
    for port in range(wanted, wanted + 100):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise ServicesError(f"no port from {wanted} to {wanted + 99} is free")


def environment(home: Path, prefect: str) -> dict[str, str]:
    """The environment of every service: the shell's, the home's, and how runs are watched."""
    # What a command keeps off its terminal belongs into the log of a service.
    hidden = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
    # The server's password is that of its clients.
    password = os.environ.get(api.SERVERS)
    return {
        **{name: value for name, value in os.environ.items() if name != hidden},
        **homes.environment(home),
        "PREFECT_API_URL": prefect,
        # A cancelled run of a machine that is gone gives its slot back after this.
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "120",
        # Planning a hundred runs of each schedule ahead keeps SQLite busy, and serves nobody.
        "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "12",
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "5"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **JSON_LINES,
        "PYTHONUNBUFFERED": "1",
        **({api.CLIENTS: password} if password else {}),
    }


def supervisor_command(home: Path) -> list[str]:
    """What is run to keep the services of a home running."""
    return [sys.executable, "-m", "flows.operations.supervisor", str(home)]


def start(home: Path) -> Services:
    """Start the services in the background unless they run, and wait until they are up.

    Raises ServicesError if they do not come up.
    """
    known = read(home)
    if known is None or not known.is_supervised:
        make_folders(home)
        with (home / "logs" / "supervisor.log").open("a", encoding="utf-8") as log:
            child = subprocess.Popen(
                supervisor_command(home), stdout=log, stderr=log, start_new_session=True
            )
        return _wait_until_up(home, child)
    return _wait_until_up(home, None)


def _wait_until_up(home: Path, child: subprocess.Popen[bytes] | None) -> Services:
    until = monotonic() + STARTING
    while monotonic() < until:
        known = read(home)
        if child is not None and child.poll() is not None:
            said = known.reason if known is not None and known.state == "failed" else ""
            raise ServicesError(
                f"the services of {home} did not start: "
                f"{said or 'their supervisor ended'}; see {home / 'logs'}"
            )
        if known is not None and known.is_supervised and known.state == "up":
            return known
        sleep(0.2)
    raise ServicesError(
        f"the services of {home} are not up after {STARTING} s: see {home / 'logs'}; "
        "`hqinet down` ends them"
    )


def stop(home: Path) -> bool:
    """End the services of a home, and what a supervisor that was killed left; False if none ran.

    Raises ServicesError if they are still there after STOPPING seconds.
    """
    known = read(home)
    if known is None:
        return False
    supervisor = processes.find(known.supervisor)
    if supervisor is None:
        return end_leftovers(home, known)
    supervisor.terminate()
    until = monotonic() + STOPPING
    while processes.find(known.supervisor) is not None:
        if monotonic() > until:
            raise ServicesError(
                f"the services of {home} do not end: process {supervisor.pid} keeps them; see "
                f"{home / 'logs' / 'supervisor.log'}"
            )
        sleep(0.1)
    return True


def end_leftovers(home: Path, known: Services) -> bool:
    """End what a supervisor that was killed left: workers first, for they outlive their server."""
    found = [processes.find(row.process) for row in reversed(known.services)]
    left = [process for process in found if process is not None]
    for process in left:
        processes.end(processes.family(process), 5)
    processes.end(processes.lost_flow_runs(home), 5)
    return bool(left)
