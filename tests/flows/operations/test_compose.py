"""`compose.yaml`: what it promises, and its services run natively from its own environment."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
import torch
import yaml

from flows import stores
from flows.operations import api, server
from flows.operations.destinations import require_destinations
from flows.settings import Settings, require_known_variables
from storage.errors import RegistryError
from storage.models import versions
from storage.models.registry import DatasetInputs

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONCE = {name for name, row in SERVICES.items() if row["restart"] == "no"}
GIVEN = {
    "POSTGRES_PASSWORD": "secret-of-postgres",
    "S3_USER": "object-store",
    "S3_PASSWORD": "secret-of-the-store",
    "MLFLOW_PASSWORD": "secret-of-mlflow",
    "MLFLOW_SECRET": "0123456789abcdef0123456789abcdef",
    "PREFECT_AUTH": "operator:secret-of-prefect",
    "DICOM_CALLERS": '["SCANNER1"]',
    "DICOM_RULES": "rules.toml",
    "DICOM_DESTINATIONS": "destinations.toml",
}
"""What an operator writes into `.env`."""
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[?-])([^}]*))?\}")


def expanded(text: str, given: dict[str, str]) -> str:
    """A string as Compose reads it. Raises KeyError for a variable that is asked for."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        return given.get(name) or (rest if kind == ":-" else given[name])

    return VARIABLE.sub(value, text).replace("$$", "$")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_and_looked_after(name):
    service = SERVICES[name]
    assert service["user"].split(":")[0] not in {"", "0", "root"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert name in ONCE or service["healthcheck"]["test"][0] == "CMD"
    for port in service.get("ports", []):
        assert expanded(port, {}).startswith("127.0.0.1:"), port
    for needed, how in service.get("depends_on", {}).items():
        done = "service_completed_successfully" if needed in ONCE else "service_healthy"
        assert how["condition"] == done, needed


@pytest.mark.parametrize("name", GIVEN)
def test_nothing_starts_without_what_has_no_default(name):
    less = {key: value for key, value in GIVEN.items() if key != name}
    expanded(str(COMPOSE), GIVEN)
    with pytest.raises(KeyError, match=name):
        expanded(str(COMPOSE), less)


@pytest.mark.parametrize("name", SERVICES)
def test_no_password_stands_in_the_file(name):
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY", variable):
            assert VARIABLE.fullmatch(value), variable
            assert VARIABLE.fullmatch(value)[2] == ":?", variable


@pytest.mark.parametrize("name", [name for name, row in SERVICES.items() if "build" in row])
def test_what_is_run_and_set_is_ours_to_run_and_set(name):
    service = SERVICES[name]
    program, *rest = service["command"]
    if program == "python":
        assert find_spec(rest[1]) is not None
    else:
        assert shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    require_known_variables(service.get("environment", {}))


@pytest.mark.parametrize("name", ["worker-cpu", "worker-gpu", "send"])
def test_who_queues_and_who_sends_know_the_same_destinations(name, tmp_path, monkeypatch):
    service, file = SERVICES[name], tmp_path / "destinations.toml"
    variables = service["environment"]
    places = {row["source"]: row["target"] for row in service["configs"]}
    assert places["destinations"] == variables["HQINET_SEND__DESTINATIONS"]
    assert "home:/data" in service["volumes"]
    file.write_text('[pacs]\nhost = "10.0.0.5"\nport = 104\nae_title = "PACS"\n')
    monkeypatch.setenv("HQINET_SEND__DESTINATIONS", str(file))
    for given in ({}, {"SEND_RESTORED": '["pacs"]'}):
        said = expanded(variables["HQINET_SEND__RESTORED"], given)
        monkeypatch.setenv("HQINET_SEND__RESTORED", said)
        require_destinations(Settings().send)


@contextmanager
def postgres(password: str, port: int) -> Iterator[None]:
    """PostgreSQL of Debian in a folder of its own; as root it would not start."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="hqinet-postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            shutil.chown(path, user or os.geteuid())
        make = [programs / "initdb", "--pgdata", folder / "data", "--username", "hqinet"]
        make += ["--auth", "scram-sha-256", "--pwfile", folder / "password", "--no-sync"]
        subprocess.run(make, user=user, cwd=folder, check=True, capture_output=True)
        serve = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-F"]
        serve += ["-p", str(port), "-k", str(folder)]
        with subprocess.Popen(serve, user=user, cwd=folder, stderr=subprocess.DEVNULL) as running:
            try:
                ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
                wait_until(lambda: subprocess.run(ready, check=False, capture_output=True))
                ask = [programs / "psql", "-h", "127.0.0.1", "-p", str(port), "-U", "hqinet"]
                ask += ["-d", "postgres", "-c", "CREATE DATABASE prefect"]
                ask += ["-c", COMPOSE["configs"]["databases"]["content"]]
                known = os.environ | {"PGPASSWORD": password}
                subprocess.run(ask, env=known, check=True, capture_output=True)
                yield
            finally:
                running.terminate()


def wait_until(ask: Callable[[], subprocess.CompletedProcess[bytes]], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while (done := ask()).returncode:
        assert time.monotonic() < until, done
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


class Stage:
    """The services of compose.yaml as processes of this machine, on other ports and folders."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        names = ("postgres:5432", "mlflow:5000", "prefect:4200", "scheduler:8786", "dask:8790")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._places = {"s3:9000": store.removeprefix("http://"), "0.0.0.0": "127.0.0.1"}
        self._places |= {"/data": str(folder / "home"), "/auth.ini": str(folder / "auth.ini")}
        self._places |= {"/tmp/prefect": str(folder / "prefect")}
        for name, port in self.ports.items():
            number = name.partition(":")[2]
            self._places |= {name: f"127.0.0.1:{port}", f":{number}": f":{port}"}
            self._places |= {number: str(port)}
        (folder / "auth.ini").write_text(self.moved(COMPOSE["configs"]["auth"]["content"]))

    def moved(self, text: str) -> str:
        """A string of the file as it is true here."""
        # At once and the longest first: a new port may look like another one's old.
        longest_first = sorted(self._places, key=len, reverse=True)
        places = re.compile(rf"({'|'.join(map(re.escape, longest_first))})(?!\w)")
        return places.sub(lambda found: self._places[found[0]], expanded(text, GIVEN))

    def environment(self, name: str) -> dict[str, str]:
        mine = ("PREFECT_", "HQINET_", "MLFLOW_", "AWS_")
        theirs = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
        said = SERVICES[name].get("environment", {}).items()
        return theirs | {key: self.moved(value) for key, value in said}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        program, *rest = map(self.moved, SERVICES[name]["command"])
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [Path(sys.executable).with_name(program), *rest],
                env=self.environment(name),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def is_healthy(self, name: str) -> subprocess.CompletedProcess[bytes]:
        _, *command = map(self.moved, SERVICES[name]["healthcheck"]["test"])
        command[0] = sys.executable
        return subprocess.run(command, check=False, capture_output=True)


SERVED = ("prefect", "mlflow", "scheduler", "dask-worker")


@pytest.fixture(scope="module")
def stage(tmp_path_factory, s3) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("stage"), s3["aws_endpoint"])
    for bucket in ("dataset", "mlflow"):
        httpx.put(f"{s3['aws_endpoint']}/{bucket}").raise_for_status()
    with ExitStack() as stack:
        port = stage.ports["postgres:5432"]
        stack.enter_context(postgres(GIVEN["POSTGRES_PASSWORD"], port))
        for name in SERVED:
            stack.callback(stack.enter_context(stage.start(name)).terminate)
        for name in SERVED:
            wait_until(lambda name=name: stage.is_healthy(name))
        yield stage


@pytest.fixture
def as_worker(stage, monkeypatch) -> Stage:
    """This process knows what a worker of the file is told."""
    for name, value in stage.environment("worker-cpu").items():
        monkeypatch.setenv(name, value)
    return stage


def test_a_delivery_becomes_a_commit_in_the_object_store(as_worker, tiny_cohort):
    command = [Path(sys.executable).with_name("hqinet"), "ingest", tiny_cohort, "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    snapshot = stores.dataset().snapshot()
    assert snapshot.commit == 1
    assert len(snapshot.patients()) == 5
    url = f"http://127.0.0.1:{as_worker.ports['prefect:4200']}/api"
    with api.client(url) as client:
        runs = client.post("/flow_runs/filter", json={}).raise_for_status().json()
    assert [run["state_name"] for run in runs if run["parent_task_run_id"] is None] == ["Refused"]


class Middle(torch.nn.Module):
    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return hu[:, 1:2] * 1.0


def test_a_model_lies_in_the_object_store_and_comes_back(as_worker, s3, tmp_path):
    registry = stores.registry()
    run = registry.start("trial", {}, DatasetInputs("s3://dataset", 1, "0" * 64))
    example = np.zeros((2, 3, 16, 24), np.float32)
    number = registry.register(run, Middle().eval(), example, {"recipe": "trial"})
    bucket = boto3.resource("s3", endpoint_url=s3["aws_endpoint"]).Bucket("mlflow")
    assert any(row.key.endswith("model.pt2") for row in bucket.objects.all())
    assert registry.model_file(registry.version(number), tmp_path).stat().st_size > 0


def test_versions_are_read_from_a_server_without_mlflow(as_worker, monkeypatch):
    registry = stores.registry()
    first = registry.versions()[0]
    registry.register(
        registry.start("another", {}, DatasetInputs("s3://dataset", 1, "0" * 64)),
        Middle().eval(),
        np.zeros((2, 3, 16, 24), np.float32),
        {"recipe": "another"},
    )
    registry.point(versions.CHAMPION, first.version)
    # A server gives so many at once, and the next ones when it is asked again.
    monkeypatch.setattr(versions, "_PAGE", 1)
    listed = stores.versions()
    assert [(row.tags["recipe"], row.aliases) for row in listed] == [
        ("another", ()),
        ("trial", (versions.CHAMPION,)),
    ]
    assert listed == registry.versions()
    uri = os.environ["HQINET_TRACKING_URI"]
    assert versions.served_versions(uri, "no-such-model", None) == []
    with pytest.raises(RegistryError, match=r"belongs to another dataset \("):
        versions.served_versions(uri, versions.MODEL, versions.Owner("other", lambda _: True))
    alone = (
        "from flows import stores; import sys; stores.versions(); print('mlflow' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", alone], check=True, capture_output=True, text=True)
    assert said.stdout == "False\n"


def test_a_wrong_password_is_one_line_that_says_what_to_set(as_worker, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    for registry in (stores, stores.registry()):
        with pytest.raises(RegistryError, match="password: set MLFLOW_TRACKING_USERNAME"):
            registry.versions()
    monkeypatch.setenv(api.CLIENTS, "operator:wrong")
    with (
        temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}),
        pytest.raises(server.ServerError, match=f"refuses the password: set {api.CLIENTS}"),
    ):
        server.server().__enter__()
