"""The Prefect server of a command: the one whose address is given, the home's, or one of its own.

Where neither is there, Prefect starts a server for the command and stops it at its end. A command
that is killed outright cannot stop it, and after many kills they would fill the memory.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from flows.errors import FlowError
from flows.operations import api, services
from flows.operations.processes import find, identity
from storage.stores.servers import answers

SERVER = "prefect.server.api.server:create_app"
EPHEMERAL = "PREFECT__SERVER_EPHEMERAL"
STARTED_BY = "_HQINET_SERVER_OF"
"""Variable of a server: the process of the command that started it."""


class ServerError(FlowError):
    """No Prefect server can be reached; one line that says what to do."""


def use_running(home: Path) -> None:
    """Take the server that `hqinet up` keeps running in this home, unless one is named."""
    running = services.read(home)
    if running is not None and running.is_up:
        os.environ.setdefault("PREFECT_API_URL", running.prefect)
        if api.SERVERS in os.environ:
            os.environ.setdefault(api.CLIENTS, os.environ[api.SERVERS])


@contextmanager
def server() -> Iterator[None]:
    """Flows run in here: the named server answers, or the command's own is started.

    Raises:
        ServerError: nothing answers at the address that was given, or it wants another password.
    """
    # Takes seconds to import, and reads the environment then.
    from prefect.settings import (  # noqa: PLC0415
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    if url := PREFECT_API_URL.value():
        if not answers(f"{url}/health"):
            raise ServerError(
                f"no Prefect server answers at {url}: start it, or unset PREFECT_API_URL; `hqinet "
                "status` shows the services of the home"
            )
        if not api.is_let_in(url):
            raise ServerError(
                f"Prefect's server at {url} refuses the password: set {api.CLIENTS}=user:password, "
                "as it was started with"
            )
        yield
        return
    _start()
    # A heartbeat tells a server a run that died from a slow one. The command's own dies with it,
    # and a flow waits at its end, up to a second, for the thread that beats.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _start() -> None:
    from prefect.server.api.server import SubprocessASGIServer  # noqa: PLC0415

    # Ctrl-C goes to every process of the terminal's command. This one must outlive it, or the flow
    # would wait for minutes to tell it that it ended.
    os.environ[STARTED_BY] = identity(psutil.Process())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_orphans(home: Path) -> list[int]:
    """End servers of this home whose command is gone; returns their process ids."""
    ended = []
    for process in psutil.process_iter(["cmdline"]):
        # Other users' processes, and those that end meanwhile, are nobody's orphans.
        with suppress(psutil.Error):
            if SERVER in (process.info["cmdline"] or []) and _is_orphan(process, home):
                process.terminate()
                ended.append(process.pid)
    return ended


def _is_orphan(process: psutil.Process, home: Path) -> bool:
    variables = process.environ()
    # A server that was started to stay is nobody's orphan: Prefect marks those it starts for a run.
    if variables.get("HQINET_HOME") != str(home) or EPHEMERAL not in variables:
        return False
    # By who started it, not by who is its parent now: `systemd --user` adopts orphans, and in a
    # container the command itself may be process 1.
    return find(variables.get(STARTED_BY, "")) is None
