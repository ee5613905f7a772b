"""How many runs Prefect's server serves at once on SQLite, and on another database.

`python benchmarks/prefect_server.py [--database postgresql+asyncpg://...]`. Each client does over
and over what a run does: it is made, runs, logs ten lines, and is completed. The server has the
settings of `hqinet up`; its database is SQLite unless another one is named.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles

import httpx

from flows.operations import home as homes
from flows.operations.services import LOOPBACK, free_port

CLIENTS = (1, 2, 4, 8, 16, 32)
BUSY = 503
"""What Prefect answers while its database is locked; its own clients ask again."""
PATIENCE = 30
"""Seconds after which a client gives its run up."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--database", default="")
    arguments.add_argument("--seconds", type=float, default=20)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url, log = f"http://{LOOPBACK}:{free_port(4300)}/api", Path(folder) / "log"
        server = start(Path(folder), url, log, options.database)
        try:
            flow = httpx.post(f"{url}/flows/", json={"name": "load"}).json()["id"]
            for clients in CLIENTS:
                before = locked(log)
                measure(url, flow, clients, options.seconds)
                print(f"  'database is locked' in the log: {locked(log) - before}", flush=True)
        finally:
            server.terminate()
            server.wait()


def start(home: Path, url: str, log: Path, database: str) -> subprocess.Popen[bytes]:
    port = str(httpx.URL(url).port)
    variables = os.environ | homes.environment(home)
    if database:
        variables["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    (home / "prefect").mkdir()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK]
    with log.open("wb") as out:
        server = subprocess.Popen([*command, "--port", port], env=variables, stdout=out, stderr=out)
    for _ in range(600):
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/health").raise_for_status()
            return server
        time.sleep(0.2)
    raise SystemExit(log.read_text())


def locked(log: Path) -> int:
    return log.read_text(errors="replace").count("database is locked")


@dataclass
class Load:
    """What a client has seen.

    Attributes:
        waits: seconds of each change of state.
        busy: answers that the database is locked.
        lost: runs that got no answer for PATIENCE.
    """

    runs: int = 0
    waits: list[float] = field(default_factory=list)
    busy: int = 0
    lost: int = 0

    def run(self, client: httpx.Client, flow: str) -> None:
        """Make one run and bring it to its end."""
        made = {"flow_id": flow, "state": {"type": "PENDING"}}
        run = self._post(client, "/flow_runs/", made).json()["id"]
        for state in ("RUNNING", "COMPLETED"):
            begun = time.monotonic()
            self._post(client, f"/flow_runs/{run}/set_state", {"state": {"type": state}})
            self.waits.append(time.monotonic() - begun)
            self._post(client, "/logs/", [line(run) for _ in range(5)])
        self.runs += 1

    def _post(self, client: httpx.Client, path: str, body: object) -> httpx.Response:
        while (answer := client.post(path, json=body)).status_code == BUSY:
            self.busy += 1
            time.sleep(0.5)
        return answer.raise_for_status()


def measure(url: str, flow: str, clients: int, seconds: float) -> None:
    """Print runs a second, how long a change of state takes, and what was not answered."""
    until = time.monotonic() + seconds

    def load(_: int) -> Load:
        seen = Load()
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            while time.monotonic() < until:
                try:
                    seen.run(client, flow)
                except httpx.TimeoutException:
                    seen.lost += 1
        return seen

    with ThreadPoolExecutor(clients) as pool:
        seen = list(pool.map(load, range(clients)))
    taken = time.monotonic() - until + seconds
    waits = sorted(wait for one in seen for wait in one.waits)
    cuts = quantiles(waits, n=100)
    print(
        f"{clients} clients: {sum(one.runs for one in seen) / taken:.1f} runs/s; a change of state "
        f"takes {cuts[49]:.3f} s, 99 of 100 at most {cuts[98]:.2f} s; {sum(s.busy for s in seen)} "
        f"answers {BUSY}; {sum(one.lost for one in seen)} runs without an answer for {PATIENCE} s"
    )


def line(run: str) -> dict[str, object]:
    now = datetime.now(UTC).isoformat()
    return {"name": "load", "level": 20, "message": "a line", "timestamp": now, "flow_run_id": run}


if __name__ == "__main__":
    main()
