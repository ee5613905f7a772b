"""Prefect servers that a killed command left behind.

Without a server's address, Prefect starts one for the command and stops it at its end. A command
that is killed outright cannot stop it, and after many kills they would fill the memory.
"""

from contextlib import suppress
from pathlib import Path

import psutil

SERVER = "prefect.server.api.server:create_app"
EPHEMERAL = "PREFECT__SERVER_EPHEMERAL"


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
    parent = process.parent()
    # In a container the command itself may be process 1.
    return parent is None or (parent.pid == 1 and "hqinet" not in " ".join(parent.cmdline()))
