"""Processes of a home, told from later ones that got their number, and ended in good order."""

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

ENGINE = "prefect.engine"
"""Module that a worker starts for each flow run."""


BOOT = Path("/proc/sys/kernel/random/boot_id")


def identity(process: psutil.Process) -> str:
    """A process, told from a later one that got its number, whatever the clock is set to."""
    try:
        # Ticks from boot to start, field 22 of proc(5); psutil's time of creation is of the clock.
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return f"{process.pid}@{stat[19]}-{BOOT.read_text().strip()}"
    except OSError:
        return _by_the_clock(process)


def _by_the_clock(process: psutil.Process) -> str:
    """The identity where there is no /proc, and that of versions before."""
    return f"{process.pid}@{process.create_time()}"


def find(known: str) -> psutil.Process | None:
    """The process of an identity, None if it is gone."""
    number, _, _ = known.partition("@")
    with suppress(psutil.Error, ValueError):
        process = psutil.Process(int(number))
        there = known in {identity(process), _by_the_clock(process)}
        if there and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def end_with(known: str) -> None:
    """Have this process end, at once and whatever it does, when the one of an identity is gone."""

    def wait() -> None:
        while find(known) is not None:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Ask processes to end, wait, and kill those that do not."""
    asked = list(processes)
    for process in asked:
        with suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(asked, timeout=seconds)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=2)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started, as far as they are still its own."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def listens(process: psutil.Process, port: int) -> bool:
    """Whether a process, or one that it started, has a port of this machine open."""
    for one in family(process):
        with suppress(psutil.Error):
            for row in one.net_connections(kind="inet"):
                if row.status == psutil.CONN_LISTEN and row.laddr.port == port:
                    return True
    return False


def is_flow_run(process: psutil.Process) -> bool:
    """Whether a process runs a flow for a worker."""
    with suppress(psutil.Error):
        return ENGINE in process.cmdline()
    return False


def lost_flow_runs(home: Path) -> list[psutil.Process]:
    """Flow runs of a home whose worker is gone: nobody sees them, and nobody could stop them."""
    found = []
    for process in psutil.process_iter():
        # Other users' processes, and those that end meanwhile, are not ours.
        with suppress(psutil.Error):
            if (
                is_flow_run(process)
                and process.environ().get("HQINET_HOME") == str(home)
                and not any(map(_is_worker, process.parents()))
            ):
                found.append(process)
    return found


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        return "worker" in words and "start" in words
    return False
