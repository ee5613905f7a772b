"""The look over an installation: what is wrong is a failure with what to do, and nothing raises."""

import re
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import pytest

from flows import stores
from flows.ingest import ingest
from flows.operations import api, deployment, doctor
from flows.operations import home as homes
from flows.operations.outbox import Outbox
from flows.settings import Settings


@pytest.fixture
def found(home, monkeypatch):
    """Examine the home of this file; outcomes by name."""
    for name, value in homes.environment(home).items():
        if name.startswith(("DO_NOT", "MLFLOW_DISABLE", "PREFECT_SERVER_ANALYTICS")):
            monkeypatch.setenv(name, value)

    def look() -> dict[str, doctor.Check]:
        return {check.name: check for check in doctor.examine(home)}

    return look


def test_a_new_home_has_notes_and_no_failure(found, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_SPACE", 0)
    checks = found()
    assert {c.name for c in checks.values() if c.outcome == "failure"} == set()
    assert checks["dataset"].advice == "`hqinet ingest SOURCE`"
    assert checks["services"].found == "down"
    assert "no champion" in checks["models"].found


def test_a_damaged_volume_is_named(found, home, tiny_cohort):
    ingest(str(tiny_cohort), "tiny")
    assert found()["dataset"].found == "commit 1, 5 volumes whole"
    row = stores.dataset().snapshot().patients()[0]
    shutil.rmtree(Path(home) / "dataset" / row.path)
    check = found()["dataset"]
    assert check.outcome == "failure"
    assert f"1 of 5 volumes are damaged, the first of {row.patient}" in check.found


@pytest.mark.parametrize(
    ("variable", "value", "name", "says"),
    [
        ("DO_NOT_TRACK", "0", "telemetry", "DO_NOT_TRACK=0"),
        ("HQINET_CLUSTER__WHERE", "tcp://127.0.0.1:9", "workers", "no Dask scheduler answers"),
        ("HQINET_TRAIN__DEVICE", "cuda", "device", "cuda"),
        ("HQINET_SEND__RESTORED", '["pacs"]', "outbox", "no destination 'pacs'"),
        ("HQINET_NONSENSE", "1", "dataset", "HQINET_NONSENSE is no setting"),
    ],
)
def test_what_is_wrong_is_a_failure_that_says_so(found, monkeypatch, variable, value, name, says):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(doctor, "TIMEOUT", 1)
    check = found()[name]
    assert check.outcome == "failure"
    assert says in check.found
    assert check.advice


def test_a_destination_that_is_dead_is_a_failure(found, monkeypatch, tmp_path):
    file = tmp_path / "destinations.toml"
    file.write_text('[pacs]\nhost = "127.0.0.1"\nport = 9\nae_title = "PACS"\n')
    monkeypatch.setenv("HQINET_SEND__DESTINATIONS", str(file))
    check = found()["outbox"]
    assert check.outcome == "failure"
    assert "pacs: PACS at 127.0.0.1:9 takes no association" in check.found


def test_what_waits_for_a_destination_without_a_table_is_a_failure(found, monkeypatch, tmp_path):
    home = Settings().home.absolute()
    job = Outbox(home).put(tmp_path / "1.2.3", "former")
    try:
        check = found()["outbox"]
        assert check.outcome == "failure"
        assert "no destination 'former'" in check.found
    finally:
        Outbox(home).sent(job)


def test_mlflows_server_gets_its_own_password(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "prefect:secret")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "other")
    expected = "Basic " + b64encode(b"admin:other").decode()
    with doctor._client("mlflow", "http://127.0.0.1:9") as client:
        request = next(client.auth.auth_flow(client.build_request("GET", "/version")))
    assert request.headers["Authorization"] == expected


def test_a_full_disk_a_missing_decoder_and_a_package_out_of_range(found, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_SPACE", 2**80)
    monkeypatch.setitem(doctor.DECODERS, "JPEG XL", "no_such_module")
    monkeypatch.setattr(doctor, "version", lambda name: "99" if name == "fastapi" else "0")
    checks = found()
    assert checks["space"].outcome == "failure"
    assert checks["decoders"].found == "no decoder of JPEG XL"
    assert "fastapi 99, expected" in checks["packages"].found


@pytest.fixture
def mlflow(monkeypatch) -> Iterator[dict[str, str]]:
    """What a server that the settings name says of its version and the time; see `says`."""
    says = {"version": version("mlflow"), "date": formatdate(usegmt=True)}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/version" else 404)
            self.end_headers()
            self.wfile.write(says["version"].encode())

        def date_time_string(self, _timestamp: float | None = None) -> str:
            return says["date"]

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HQINET_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    yield says
    server.shutdown()


def test_a_server_is_asked_for_its_version_and_the_time(home, mlflow, monkeypatch):
    assert doctor.servers(home) == doctor.Check(name="servers", found="mlflow")
    mlflow["version"] = "2.0.0"
    assert f"is 2.0.0, here {version('mlflow')}" in doctor.servers(home).found
    mlflow["version"] = version("mlflow")
    mlflow["date"] = formatdate(time.time() - 60, usegmt=True)
    late = doctor.servers(home)
    assert late.outcome == "failure"
    assert re.search(r"the clock of mlflow at http://.* is (59|60|61) s off", late.found)
    assert "NTP" in late.advice
    monkeypatch.setenv("HQINET_TRACKING_URI", "http://127.0.0.1:9")
    assert "mlflow at http://127.0.0.1:9 does not answer" in doctor.servers(home).found


def test_the_servers_of_the_tests_agree_with_us(home, prefect_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    assert doctor.servers(home) == doctor.Check(name="servers", found="prefect")


def test_services_of_another_host_are_judged_by_the_server_that_is_named(
    home, prefect_server, monkeypatch
):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    assert doctor.running(home).found == f"not of this home: PREFECT_API_URL is {prefect_server}"
    nothing = doctor.chain(home)
    assert (nothing.outcome, nothing.found) == ("note", "nothing is deployed there")
    with api.client(prefect_server) as client:
        flow = client.post("/flows/", json={"name": "promote"}).json()["id"]
        one = {"name": "rollback", "flow_id": flow, "tags": [deployment.TAG]}
        made = client.post("/deployments/", json=one).json()["id"]
        try:
            judged = doctor.chain(home)
        finally:
            client.delete(f"/deployments/{made}")
    assert judged.outcome == "failure"
    assert "train-on-commit: not deployed" in judged.found
    assert "rollback" not in judged.found
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert doctor.chain(home).outcome == "note"
