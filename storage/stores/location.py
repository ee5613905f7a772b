"""A folder or an object store, with the same calls and one-line errors for both."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import obstore
from deltalake.exceptions import DeltaError
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, from_url

from storage.errors import StoreError

_CONNECTION = {"aws_allow_http": "allow_http", "allow_http": "allow_http", "timeout": "timeout"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_REMOTE = re.compile(r"^(s3|gs|az|abfss?|memory)://")


class Location:
    """A folder or an object-store URL with its options.

    Args:
        url: a path, or `s3://bucket/prefix`, `gs://...`, `az://...`.
        options: names as in the object_store crate (`aws_endpoint`, `aws_region`, ...); what is
            not given comes from the usual variables of the provider (`AWS_ENDPOINT_URL`, ...).

    Raises:
        StoreError: a URL of another kind.
    """

    def __init__(self, url: str | Path, options: Mapping[str, str] | None = None) -> None:
        text = str(url)
        self.remote = bool(_REMOTE.match(text))
        if "://" in text and not self.remote:
            raise StoreError(
                f"{text}: no such kind of store; give a folder, or s3://, gs:// or az://"
            )
        self.url = text.rstrip("/") if self.remote else str(Path(text).absolute())
        self.options = dict(options or {})
        if self.url.startswith("s3://"):
            # A commit is a conditional put; without it two writers could overwrite one another.
            self.options.setdefault("aws_conditional_put", "etag")
            if self._endpoint().startswith("http://"):
                self.options.setdefault("aws_allow_http", "true")

    def _endpoint(self) -> str:
        named = [os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")]
        given = [self.options.get(name) for name in ("aws_endpoint_url", "aws_endpoint")]
        return next((url for url in (*given, *named, os.environ.get("AWS_ENDPOINT")) if url), "")

    def __str__(self) -> str:
        return self.url

    def child(self, name: str) -> "Location":
        """The location `name` below this one."""
        return Location(f"{self.url}/{name}", self.options)

    def store(self, *, create: bool = False) -> obstore.store.ObjectStore:
        """An obstore store rooted here; `create` makes a missing folder."""
        with storage_errors(self.url):
            if self.remote:
                # obstore keeps options of the connection apart from those of the provider.
                config = {k: v for k, v in self.options.items() if k not in _CONNECTION}
                client = {_CONNECTION[k]: v for k, v in self.options.items() if k in _CONNECTION}
                return from_url(self.url, config=config, client_options=client)
            return LocalStore(self.url, mkdir=create)

    def require_writable(self) -> None:
        """Raise StoreError if this is a folder that cannot be written; a store says so itself."""
        if not self.remote and not os.access(self.url, os.W_OK):
            raise StoreError(
                f"{self.url}: the target is read-only or not yours: choose another or check the "
                "rights, then run again (the last commit is intact)"
            )


INTACT = "then run again (the last commit is intact)"
"""What to do after a failure that cannot have harmed the dataset."""
_HINTS = (
    ("No space left|os error 28|Disk quota|os error 122", "the disk is full: free space"),
    ("File too large|os error 27", "a file is larger than this disk or its limit allows"),
    ("Read-only file system|os error 30", "the target is read-only: choose another"),
    (
        "Permission denied|not permitted|os error 13|AccessDenied",
        "access is denied: check the rights",
    ),
    ("Not a directory|os error 20|File exists", "a file stands where a folder is needed"),
    ("NoSuchBucket", "the bucket does not exist: make it first"),
    (
        "error sending request|error trying to connect|dns error",
        "nothing answers: check network, address and endpoint",
    ),
)
_QUOTED = 200


@contextmanager
def storage_errors(what: str, then: str = INTACT) -> Iterator[None]:
    """Turn a failure of disk, network or object store into one line that says what to do.

    Args:
        what: path or URL that the line begins with.
        then: what to do once the cause is gone.

    Raises:
        StoreError: in place of OSError, an obstore error or a Delta error.
    """
    try:
        yield
    except (OSError, BaseError, DeltaError) as error:
        raise StoreError(f"{what}: {_plainly(error, then)}") from error


def _plainly(error: Exception, then: str) -> str:
    text = " ".join(_COLOUR.sub("", str(error)).partition("Debug source:")[0].split())
    said = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access is denied: check the rights, {then}; it said: {said}"
    # Delta and the file system tell the cause in words alone.
    for pattern, hint in _HINTS:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{hint}, {then}; it said: {said}"
    return said
