"""The server of a command: heartbeats only for one that outlives the run."""

from flows.operations import server


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
