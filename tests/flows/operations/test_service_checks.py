"""The doctor's look at servers: by version, time, password, and what is deployed on them."""

import re
import time
from base64 import b64encode
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from threading import Thread

import pytest

from flows.operations import api, deployment, service_checks
from flows.operations.check import Check


def test_mlflows_server_gets_its_own_password(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "prefect:secret")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "other")
    expected = "Basic " + b64encode(b"admin:other").decode()
    with service_checks._client("mlflow", "http://127.0.0.1:9") as client:
        request = next(client.auth.auth_flow(client.build_request("GET", "/version")))
    assert request.headers["Authorization"] == expected


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
    assert service_checks.servers(home) == Check(name="servers", found="mlflow")
    mlflow["version"] = "2.0.0"
    assert f"is 2.0.0, here {version('mlflow')}" in service_checks.servers(home).found
    mlflow["version"] = version("mlflow")
    mlflow["date"] = formatdate(time.time() - 60, usegmt=True)
    late = service_checks.servers(home)
    assert late.outcome == "failure"
    assert re.search(r"the clock of mlflow at http://.* is (59|60|61) s off", late.found)
    assert "NTP" in late.advice
    monkeypatch.setenv("HQINET_TRACKING_URI", "http://127.0.0.1:9")
    assert "mlflow at http://127.0.0.1:9 does not answer" in service_checks.servers(home).found


def test_the_servers_of_the_tests_agree_with_us(home, prefect_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    assert service_checks.servers(home) == Check(name="servers", found="prefect")


def test_services_of_another_host_are_judged_by_the_server_that_is_named(
    home, prefect_server, monkeypatch
):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    assert (
        service_checks.running(home).found
        == f"not of this home: PREFECT_API_URL is {prefect_server}"
    )
    nothing = service_checks.chain(home)
    assert (nothing.outcome, nothing.found) == ("note", "nothing is deployed there")
    with api.client(prefect_server) as client:
        flow = client.post("/flows/", json={"name": "promote"}).json()["id"]
        one = {"name": "rollback", "flow_id": flow, "tags": [deployment.TAG]}
        made = client.post("/deployments/", json=one).json()["id"]
        try:
            judged = service_checks.chain(home)
        finally:
            client.delete(f"/deployments/{made}")
    assert judged.outcome == "failure"
    assert "train-on-commit: not deployed" in judged.found
    assert "rollback" not in judged.found
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert service_checks.chain(home).outcome == "note"
