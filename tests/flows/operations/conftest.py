"""Real services of a home of their own: `hqinet up`, and the API of its server."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.operations.services import Service, Services, read

POLICY = """
# A tiny network need not be good, only judged.
patients = 2
margin = -100.0
anatomy_loss = 100.0
patient_loss = 100.0

[hu_bias]
lung = 1000.0
fat = 1000.0
soft = 1000.0
bone = 1000.0
"""
BRIEFLY_TRAINED = """
# The demo's, for two minutes of training on two patients.
patients = 2
texture = 0.5

[reader]
detection = 0.5
size = 0.5
contrast = 0.5

[hu_bias]
fat = 30.0
"""
EPOCHS = 20
"""A second or two of training: enough to be killed in, and to remove noise."""


class Operator:
    """A webhook on loopback, and what it was told."""

    def __init__(self) -> None:
        told: list[dict] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.told = told
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()


class Installation:
    """A home whose services run, and its server's API."""

    def __init__(self, command: Any, operator: Operator) -> None:
        self.command, self.operator = command, operator
        self.home: Path = command.home

    def services(self) -> Services:
        known = read(self.home)
        assert known is not None
        return known

    def service(self, name: str) -> Service:
        return next(row for row in self.services().services if row.name == name)

    def post(self, path: str, **body: object) -> Any:
        url = f"{self.services().prefect}/{path}"
        # Prefect answers 503 while its SQLite is locked; its own clients ask again, too.
        while (answer := httpx.post(url, json=body, timeout=30)).status_code == 503:
            time.sleep(0.5)
        answer.raise_for_status()
        return answer.json()

    def deployment(self, name: str) -> dict:
        found = self.post("deployments/filter", deployments={"name": {"any_": [name]}})
        assert len(found) == 1, name
        return found[0]

    def start(self, name: str, **parameters: object) -> dict:
        """Run a deployment now, as its schedule would."""
        path = f"deployments/{self.deployment(name)['id']}/create_flow_run"
        return self.post(path, parameters=parameters)

    def runs(self, name: str) -> list[dict]:
        """The runs of a deployment that are due, latest first."""
        found = self.post(
            "flow_runs/filter",
            deployments={"name": {"any_": [name]}},
            sort="EXPECTED_START_TIME_DESC",
        )
        return [run for run in found if not run["auto_scheduled"]]

    def states(self, run: dict) -> list[dict]:
        """What the states of a run were, first to last."""
        url = f"{self.services().prefect}/flow_run_states/?flow_run_id={run['id']}"
        return sorted(httpx.get(url, timeout=30).json(), key=lambda row: row["timestamp"])

    def ended(self, name: str, seconds: float = 120, of: int = 1) -> dict:
        """The latest of so many runs of a deployment, once they are over."""
        runs = self.wait(lambda: over(self.runs(name), of), seconds, f"the end of {name}")
        assert {run["state_type"] for run in runs} == {"COMPLETED"}, runs[0]["state"]
        return runs[0]

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # The server is away while a test has killed it.
            with suppress(httpx.TransportError):
                if value := condition():
                    return value
            time.sleep(0.3)
        logs = {file.name: file.read_text()[-2000:] for file in (self.home / "logs").iterdir()}
        return pytest.fail(f"{what} did not come within {seconds} s: {logs}")


def over(runs: list[dict], of: int) -> list[dict]:
    # One that crashed is started again.
    ends = ("COMPLETED", "FAILED", "CANCELLED")
    found = [run for run in runs if run["state_type"] in ends]
    return found if len(found) >= of else []


@pytest.fixture(scope="module")
def stranger() -> Iterator[int]:
    """Somebody else's server, on the port that ours would like to have."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def installation(hqinet, stranger, tiny_recipe, tmp_path_factory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    recipe, policy = folder / "brief.toml", folder / "lenient.toml"
    text = Path(tiny_recipe).read_text()
    recipe.write_text(text.replace("epochs = 2", f"epochs = {EPOCHS}"))
    policy.write_text(POLICY)
    destinations = folder / "destinations.toml"
    destinations.write_text('[nowhere]\nhost = "127.0.0.1"\nport = 9\nae_title = "NOWHERE"\n')
    operator = Operator()
    command = hqinet(
        folder,
        HQINET_RECIPE=str(recipe),
        HQINET_POLICY=str(policy),
        HQINET_CLUSTER__WORKERS="1",
        HQINET_INGEST__SPLIT_TARGETS='{"train": 0.5, "validation": 0.15, "test": 0.35}',
        HQINET_SEND__DESTINATIONS=str(destinations),
        HQINET_SERVICES__PREFECT_PORT=str(stranger),
        HQINET_SERVICES__MLFLOW_PORT=str(stranger + 20),
        HQINET_SERVICES__LOST_AFTER="40",
        HQINET_SERVICES__WEBHOOK=operator.url,
        PREFECT_WORKER_QUERY_SECONDS="1",
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
    )
    with installed(command, operator) as services:
        yield services


@contextmanager
def installed(command: Any, operator: Operator) -> Iterator[Installation]:
    """The services of a command's home run in here."""
    try:
        up = command("up")
        assert up.returncode == 0, up.stderr + logs(command.home)
        yield Installation(command, operator)
    finally:
        command("down")


@pytest.fixture(scope="module")
def department(hqinet, tmp_path_factory) -> Iterator[Installation]:
    """Services as shipped, but for a recipe of a minute or two, and a policy that bears with it.

    Two of the first four patients are to be tested on: of fewer there is no confidence.
    """
    folder, operator = tmp_path_factory.mktemp("department"), Operator()
    policy = folder / "policy.toml"
    policy.write_text(BRIEFLY_TRAINED)
    command = hqinet(
        folder,
        HQINET_RECIPE="demo",
        HQINET_POLICY=str(policy),
        HQINET_SERVICES__WEBHOOK=operator.url,
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
    )
    splits = folder / "splits.csv"
    splits.write_text("patient,split\nC901,train\nC902,test\nL901,validation\nL902,test\n")
    reserved = command("dataset", "splits", "import", splits, "--reserve")
    assert reserved.returncode == 0, reserved.stderr
    with installed(command, operator) as services:
        yield services


def logs(home: Path) -> str:
    return "\n".join(file.read_text()[-2000:] for file in (home / "logs").glob("*.log"))
