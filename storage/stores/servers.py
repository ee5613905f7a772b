"""Whether a server is there, before anything waits for it for minutes."""

from http import HTTPStatus
from urllib.error import HTTPError
from urllib.request import urlopen

PATIENCE = 10
"""Seconds that an answer may take."""
NOBODY_BEHIND = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
"""What a proxy says of a server that is down."""


def answers(url: str) -> bool:
    """Whether a server answers at an HTTP address, with whatever status of its own."""
    try:
        urlopen(url, timeout=PATIENCE).close()  # noqa: S310 - an address from the settings
    except HTTPError as error:
        return error.code not in NOBODY_BEHIND
    except (OSError, ValueError):
        return False
    return True
