"""Names that do not name a person: keyed hashes (HMAC-SHA256) of IDs, UIDs and paths."""

import hashlib
import hmac
from dataclasses import dataclass, field

from storage.errors import PseudonymError

VARIABLE = "HQINET_PSEUDONYM_KEY"
_SHORTEST_KEY = 16


@dataclass(frozen=True)
class Pseudonyms:
    """How identifiers become keys.

    Attributes:
        secret: of the keyed hashes; empty when patients keep their IDs. Never shown.
    """

    secret: str = field(default="", repr=False)

    @property
    def on(self) -> bool:
        """Whether IDs and paths are replaced."""
        return bool(self.secret)

    def patient(self, key: str) -> str:
        """The patient's key in the dataset: the ID itself, or `P` and 16 hex digits."""
        return f"P{self.digest(key)}" if self.on else key

    def path(self, path: str) -> str:
        """A path below the delivery as it may be shown: itself, or a digest."""
        shown = path.encode(errors="backslashreplace").decode()
        return f"path-{self.digest(path)}" if self.on else shown

    def digest(self, text: str) -> str:
        """16 hex digits for a UID or path; keyed when pseudonymising."""
        # File names need not be UTF-8; the standard library stands in surrogates for the rest.
        raw = text.encode(errors="backslashreplace")
        if self.on:
            code = hmac.new(self.secret.encode(), raw, hashlib.sha256)
        else:
            code = hashlib.sha256(raw)
        return code.hexdigest()[:16]


def pseudonyms(*, pseudonymise: bool, secret: str | None) -> Pseudonyms:
    """The pseudonyms of a delivery.

    Raises:
        PseudonymError: pseudonyms are wanted and there is no secret, or one that can be guessed.
    """
    if not pseudonymise:
        return Pseudonyms()
    if secret is None or len(secret) < _SHORTEST_KEY:
        raise PseudonymError(
            f"pseudonymise is on and {VARIABLE} is "
            f"{'not set' if not secret else f'only {len(secret)} characters long'}: set it to a "
            f"secret of at least {_SHORTEST_KEY} characters, and keep it: the same patient gets "
            "the same key only under the same secret"
        )
    return Pseudonyms(secret)
