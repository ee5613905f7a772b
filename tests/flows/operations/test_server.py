"""The server of a command: heartbeats only for one that outlives the run; orphans are known."""

import psutil

from flows.operations import server
from flows.operations.processes import identity


def heartbeat() -> int | None:
    from prefect.settings import get_current_settings

    return get_current_settings().flows.heartbeat_frequency


def test_only_a_server_that_stays_is_sent_heartbeats(prefect_server, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with server.server():
        assert heartbeat() is not None
    started = []
    monkeypatch.setattr(server, "_start", lambda: started.append("its own"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}), server.server():
        assert started == ["its own"]
        assert heartbeat() is None


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
