"""The HTTP API of Prefect, for what must not import it; with its password, if there is one."""

import os
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

SERVERS = "PREFECT_SERVER_API_AUTH_STRING"
CLIENTS = "PREFECT_API_AUTH_STRING"
TIMEOUT = 30


def client(url: str, timeout: float = TIMEOUT) -> "httpx.Client":
    """A client of the API at `url`; user and password as Prefect's own clients have them."""
    import httpx  # noqa: PLC0415 - `hqinet --help` need not wait for it

    user, _, password = os.environ.get(CLIENTS, os.environ.get(SERVERS, "")).partition(":")
    return httpx.Client(base_url=url, timeout=timeout, auth=(user, password) if password else None)


def is_let_in(url: str) -> bool:
    """Whether the server at `url` takes the password that stands in the environment, if any."""
    with client(url) as asked:
        return asked.get("/admin/version").status_code != HTTPStatus.UNAUTHORIZED
