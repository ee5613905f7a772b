"""Sends series to their destinations by C-STORE, each destination by a thread of its own.

A destination that is dead, slow or full keeps only its own series waiting.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.presentation import build_context

from flows.errors import FlowError
from flows.operations.outbox import Job, Outbox

TIMEOUT = 30
"""Seconds that a destination may take to answer."""
EVERY = 2.0
SUCCESS, WARNINGS = 0x0000, range(0xB000, 0xC000)
CONTEXTS = 128
"""The most that an association can ask for."""


class SendError(FlowError):
    """A series that cannot be sent, or destinations that cannot be read; one line."""


class Destination(BaseModel):
    """Where series go, as it stands in the destinations file under its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int = Field(gt=0, lt=65536)
    ae_title: str = Field(max_length=16)
    calling: str = Field("HQINET", max_length=16)


def read_destinations(file: Path | None) -> dict[str, Destination]:
    """Destinations by name: a TOML file with a table for each. Raises SendError."""
    if file is None:
        return {}
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, Destination]).validate_python(content)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SendError(f"destinations {file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"destinations {file}: {place}: {first['msg']}, got {first['input']!r}"
        raise SendError(message) from error


def known(destinations: dict[str, Destination], name: str) -> Destination:
    """A destination by name. Raises SendError if there is none."""
    if name not in destinations:
        raise SendError(
            f"there is no destination {name!r}, only {', '.join(destinations) or 'none'}: see the "
            "file that HQINET_SEND__DESTINATIONS names"
        )
    return destinations[name]


def send(folder: Path, to: Destination) -> int:
    """Send every image of a folder; returns how many there were.

    Sent twice, an image is the same to its receiver, by its UID: what fails in between is sent
    whole again. Raises SendError if one is not taken.
    """
    images = sorted(folder.glob("*.dcm"))
    if not images:
        raise SendError(f"{folder} holds no image: it was moved or removed")
    contexts = {}
    for image in images:
        header = dcmread(image, stop_before_pixels=True)
        kind = (header.SOPClassUID, header.file_meta.TransferSyntaxUID)
        contexts[kind] = build_context(*kind)
    entity = AE(ae_title=to.calling)
    entity.requested_contexts = list(contexts.values())[:CONTEXTS]
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = TIMEOUT
    where = f"{to.ae_title} at {to.host}:{to.port}"
    association = entity.associate(to.host, to.port, ae_title=to.ae_title)
    if not association.is_established:
        raise SendError(f"{where} takes no association: is it up, and does it know {to.calling}?")
    try:
        for image in images:
            status = association.send_c_store(image)
            code = status.get("Status")
            if code is None:
                raise SendError(f"{where} stopped answering at {image.name}")
            if code != SUCCESS and code not in WARNINGS:
                raise SendError(f"{where} answers {code:#06x} to {image.name}")
    except ValueError as error:
        raise SendError(f"{where} does not take {images[0].name}: {error}") from error
    finally:
        association.release()
    return len(images)


def attempt(outbox: Outbox, job: Job, to: Destination) -> str:
    """Try one job, and say what came of it."""
    try:
        count = send(job.folder, to)
    except SendError as error:
        later = outbox.failed(job, str(error))
        return f"{job.folder.name} to {job.destination}: not sent, try {later.tries}: {error}"
    outbox.sent(job)
    return f"{job.folder.name} to {job.destination}: {count} images sent"


def work(
    outbox: Outbox, destinations: dict[str, Destination], say: Callable[[str], None], stop: Event
) -> None:
    """Send what is due until told to stop: a thread for each destination."""

    def serve(name: str, to: Destination) -> None:
        while not stop.wait(EVERY):
            for job in outbox.due(name):
                if stop.is_set():
                    return
                say(attempt(outbox, job, to))

    threads = [Thread(target=serve, args=row, daemon=True) for row in destinations.items()]
    for thread in threads:
        thread.start()
    stop.wait()
