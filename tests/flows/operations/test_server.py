"""The server of a command: heartbeats only for one that outlives the run; orphans are known."""

import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from flows.operations import api, server
from flows.operations.processes import identity


def heartbeat() -> int | None:
    from prefect.settings import get_current_settings

    return get_current_settings().flows.heartbeat_frequency


def test_only_a_server_that_stays_is_sent_heartbeats(prefect_server, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with server.server():
        assert heartbeat() == 30
    started = []
    monkeypatch.setattr(server, "_start", lambda: started.append("its own"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}), server.server():
        assert started == ["its own"]
        assert heartbeat() is None


@pytest.fixture
def guarded() -> Iterator[str]:
    """The address of a server that lets in who says `me:secret`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = "Basic " + b64encode(b"me:secret").decode()
            self.send_response(200 if self.headers.get("Authorization") == right else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/api"
        running.shutdown()


def test_a_wrong_password_is_one_line_that_says_which_variable(guarded, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: guarded}):
        for password in ("", "me:wrong"):
            monkeypatch.setenv(api.CLIENTS, password)
            with pytest.raises(
                server.ServerError, match=f"refuses the password: set {api.CLIENTS}"
            ):
                server.server().__enter__()
        monkeypatch.setenv(api.CLIENTS, "me:secret")
        with server.server():
            pass


class Process:
    """A Prefect server as psutil shows it, adopted by a `systemd --user`."""

    def __init__(self, **variables: str) -> None:
        self.variables = variables

    def environ(self) -> dict[str, str]:
        return self.variables


def test_an_orphan_is_known_by_who_started_it_whoever_adopted_it(tmp_path):
    here = {"HQINET_HOME": str(tmp_path), server.EPHEMERAL: "1"}
    mine = identity(psutil.Process())
    assert not server._is_orphan(Process(**here, **{server.STARTED_BY: mine}), tmp_path)
    later = mine.partition("@")[0] + "@1.0"
    for gone in (later, "999999999@1.0", ""):
        assert server._is_orphan(Process(**here, **{server.STARTED_BY: gone}), tmp_path)
    assert not server._is_orphan(Process(**here), tmp_path / "another")
    assert not server._is_orphan(Process(HQINET_HOME=str(tmp_path)), tmp_path)
