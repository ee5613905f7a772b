"""Whether a server is there, before anything waits for it for minutes."""

from urllib.error import HTTPError
from urllib.request import urlopen

PATIENCE = 10
"""Seconds that an answer may take."""


def answers(url: str) -> bool:
    """Whether anything answers at an HTTP address, with whatever status."""
    try:
        urlopen(url, timeout=PATIENCE).close()  # noqa: S310 - an address from the settings
    except HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
