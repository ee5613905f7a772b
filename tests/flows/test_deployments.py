"""A real Prefect server and worker on loopback: deploy everything, see schedules, run one."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PREFECT = Path(sys.executable).with_name("prefect")


class Server:
    """A Prefect server with its own home, and the commands that talk to it."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}/api"
        self.home = home
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
            "HQINET_HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def command(self, *arguments: str) -> str:
        """Run `prefect ARGUMENTS` in the repository and return what it printed."""
        done = subprocess.run(
            [PREFECT, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def process(self, *arguments: str) -> Iterator[None]:
        """Keep `prefect ARGUMENTS` running meanwhile."""
        log = (self.home / f"{arguments[0]}.log").open("w")
        with (
            log,
            subprocess.Popen(
                [PREFECT, *arguments], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            ) as process,
        ):
            try:
                yield
            finally:
                process.terminate()
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    # A worker that is told to stop just as a run ends may wait for it for ever.
                    process.kill()

    def ask(self, path: str, **body: object) -> list[dict]:
        """Filtered objects of the server's API."""
        answer = httpx.post(f"{self.api}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()


def wait_for(condition, seconds: float, what: str):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.5)
    pytest.fail(f"{what} did not come within {seconds} s")


def alive(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("deployed"))
    with server.process("server", "start", "--host", "127.0.0.1"):
        wait_for(lambda: alive(server.api), 90, "the server")
        # The commands are those that the header of prefect.yaml gives its reader.
        header = (ROOT / "prefect.yaml").read_text().split("name: hqinet")[0]
        for line in re.findall(r"prefect (work-pool .+)", header):
            server.command(*line.split())
        server.command("--no-prompt", "deploy", "--all")
        yield server


def test_every_deployment_of_the_file_is_there(server):
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    deployed = server.ask("deployments/filter")
    assert sorted(row["entrypoint"] for row in deployed) == sorted(
        row["entrypoint"] for row in declared
    )
    assert all(row["description"] for row in deployed)


def test_pools_are_process_pools_and_the_gpu_takes_one_run(server):
    pools = {row["name"]: row for row in server.ask("work_pools/filter")}
    assert {pool["type"] for pool in pools.values()} == {"process"}
    assert pools["hqinet-gpu"]["concurrency_limit"] == 1


def test_parameters_make_a_filled_form(server):
    rows = {row["entrypoint"]: row for row in server.ask("deployments/filter")}
    schema = rows["flows.train.train"]["parameter_openapi_schema"]
    assert schema["properties"]["recipe"]["default"] == "fast"
    assert "recipe" in schema["properties"]["recipe"]["description"].lower()
    ingest = rows["flows.ingest.ingest"]["parameter_openapi_schema"]
    assert ingest["definitions"]["IngestSettings"]["properties"]
    for name, field in ingest["definitions"]["IngestSettings"]["properties"].items():
        assert field.get("description") or "$ref" in str(field), name


def test_the_cron_deployment_gets_future_runs(server):
    inbox = next(
        row
        for row in server.ask("deployments/filter")
        if row["entrypoint"] == "flows.ingest.ingest"
    )
    runs = wait_for(
        lambda: server.ask(
            "flow_runs/filter",
            flow_runs={
                "deployment_id": {"any_": [inbox["id"]]},
                "state": {"type": {"any_": ["SCHEDULED"]}},
            },
        ),
        60,
        "a scheduled run",
    )
    assert all(run["auto_scheduled"] for run in runs)
    assert all(run["expected_start_time"][11:16] == "02:00" for run in runs)


def test_a_worker_runs_the_ingest_deployment_to_the_end(server, tiny_cohort):
    from storage.dataset.versions import Dataset

    inbox = next(
        row
        for row in server.ask("deployments/filter")
        if row["entrypoint"] == "flows.ingest.ingest"
    )
    run = server.ask(
        f"deployments/{inbox['id']}/create_flow_run", parameters={"source": str(tiny_cohort)}
    )

    def ended() -> dict | None:
        now = httpx.get(f"{server.api}/flow_runs/{run['id']}", timeout=30).json()
        return now if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    with server.process("worker", "start", "--pool", "hqinet-cpu", "--type", "process"):
        last = wait_for(ended, 120, "the end of the run")
    assert last["state_type"] == "COMPLETED", last["state"]
    snapshot = Dataset(server.home / "dataset").snapshot()
    assert snapshot.commit == 1
    assert snapshot.patients()
