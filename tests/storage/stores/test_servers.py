"""Whether a server is there: a proxy that has nobody behind it is none."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from storage.stores.servers import answers


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Answers `/NUMBER` with that status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_any_status_of_its_own_is_an_answer(server, status):
    assert answers(f"{server}/{status}")


@pytest.mark.parametrize("status", [502, 504])
def test_a_proxy_with_nobody_behind_it_is_none(server, status):
    assert not answers(f"{server}/{status}")


def test_nobody_and_no_address_are_none():
    assert not answers("http://127.0.0.1:9")
    assert not answers("nonsense")
