"""What is said where the queue cannot be seen."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest

from flows.operations import queue


@pytest.fixture
def closed():
    """The address of a server that asks everybody for a password."""

    class Closed(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(401)

        def do_GET(self):
            self.send_error(401)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Closed)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_password_that_is_asked_for_is_said(closed):
    with pytest.raises(httpx.HTTPStatusError) as error:
        queue.look(closed)
    assert queue.unseen(error.value).endswith("asks for a password: set PREFECT_API_AUTH_STRING")


def test_a_server_that_does_not_answer_is_said():
    with pytest.raises(httpx.HTTPError) as error:
        queue.look("http://127.0.0.1:9")
    assert "does not answer" in queue.unseen(error.value)
