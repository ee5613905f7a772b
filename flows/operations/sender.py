"""Sends series to their destinations, by C-STORE or STOW-RS, each by a thread of its own.

A destination that is dead, slow or full keeps only its own series waiting.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import httpx
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from flows.operations.destinations import Destination, Entity, SendError, WebService
from flows.operations.log import unfailing
from flows.operations.outbox import Job, Outbox

TIMEOUT = 30
"""Seconds that a destination may take to answer."""
EVERY = 2.0
SUCCESS, WARNINGS = 0x0000, range(0xB000, 0xC000)
CONTEXTS = 128
"""The most that an association can ask for."""


def send(folder: Path, to: Destination) -> int:
    """Send every image of a folder; returns how many there were.

    Sent twice, an image is the same to its receiver, by its UID: what fails in between is sent
    whole again. Raises SendError if one is not taken, or the folder became another one meanwhile.
    """
    before = _identity(folder)
    images = sorted(folder.glob("*.dcm"))
    if not images:
        raise SendError(f"{folder} holds no image: it was moved or removed")
    if isinstance(to, WebService):
        _stow(images, to)
    else:
        _c_store(images, to)
    if _identity(folder) != before:
        raise SendError(f"{folder} was restored again while it was sent")
    return len(images)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What a folder of the same name that takes its place does not share; None for no folder."""
    with suppress(FileNotFoundError):
        state = folder.stat()
        return state.st_ino, state.st_mtime_ns
    return None


def reach(to: Destination) -> None:
    """Ask a destination whether it is there, without sending anything. Raises SendError."""
    if isinstance(to, WebService):
        url = f"{to.url.rstrip('/')}/studies"
        try:
            with _web(to) as client:
                answer = client.get(url, params={"limit": 1})
        except httpx.HTTPError as error:
            raise SendError(f"{url} does not answer: {error}") from error
        if answer.is_error:
            raise SendError(f"{url} answers {answer.status_code}")
        return
    association = _associate([build_context(Verification)], to)
    if not association.is_established:
        raise SendError(f"{_name(to)} takes no association: is it up, and does it know us?")
    code = association.send_c_echo().get("Status")
    association.release()
    if code != SUCCESS:
        answer = "nothing" if code is None else f"{code:#06x}"
        raise SendError(f"{_name(to)} answers {answer} to C-ECHO")


def _c_store(images: list[Path], to: Entity) -> None:
    where = _name(to)
    association = _associate(_contexts(images), to)
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


def _name(to: Entity) -> str:
    return f"{to.ae_title} at {to.host}:{to.port}"


def _contexts(images: list[Path]) -> list[PresentationContext]:
    """One for each class and transfer syntax among the images."""
    contexts = {}
    for image in images:
        header = dcmread(image, stop_before_pixels=True)
        kind = (header.SOPClassUID, header.file_meta.TransferSyntaxUID)
        contexts[kind] = build_context(*kind)
    return list(contexts.values())[:CONTEXTS]


def _associate(contexts: list[PresentationContext], to: Entity) -> Association:
    entity = AE(ae_title=to.calling)
    entity.requested_contexts = contexts
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = TIMEOUT
    secured = (to.tls_context(), to.host) if to.tls else None
    return entity.associate(to.host, to.port, ae_title=to.ae_title, tls_args=secured)


def _web(to: WebService) -> httpx.Client:
    headers = {"Authorization": to.authorization} if to.authorization else {}
    return httpx.Client(headers=headers, timeout=TIMEOUT, verify=to.tls_context())


def _stow(images: list[Path], to: WebService) -> None:
    """POST image by image (PS3.18 10.5): a series in one body would fill the memory."""
    mark = uuid4().hex
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={mark}',
        "Accept": "application/dicom+json",
    }
    begin = f"--{mark}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    end = f"\r\n--{mark}--\r\n".encode()
    url = f"{to.url.rstrip('/')}/studies"
    try:
        with _web(to) as client:
            for image in images:
                body = begin + image.read_bytes() + end
                answer = client.post(url, content=body, headers=headers)
                # Anything but 200 says that it was not stored as it was sent.
                if answer.status_code != httpx.codes.OK:
                    said = " ".join(answer.text.split())[:200]
                    raise SendError(f"{url} answers {answer.status_code} to {image.name}: {said}")
    except httpx.HTTPError as error:
        raise SendError(f"{url} does not answer: {error}") from error


def attempt(outbox: Outbox, job: Job, to: Destination) -> str:
    """Try one job, and say what came of it."""
    try:
        count = send(job.folder, to)
    except Exception as error:  # noqa: BLE001 - a damaged image must not end its destination's thread
        said = str(error) if isinstance(error, SendError) else f"{type(error).__name__}: {error}"
        later = outbox.failed(job, said)
        if later.alarms:
            # It imports Prefect, which a sender of which all is taken need not wait for.
            from flows.events import sending_given_up  # noqa: PLC0415

            sending_given_up(later)
        ends = ", the last" if later.given_up else ""
        return f"{job.folder.name} to {job.destination}: not sent, try {later.tries}{ends}: {said}"
    outbox.sent(job)
    return f"{job.folder.name} to {job.destination}: {count} images sent"


def work(
    outbox: Outbox, destinations: dict[str, Destination], say: Callable[[str], None], stop: Event
) -> None:
    """Send what is due until told to stop: a thread for each destination."""
    tell = unfailing(say)

    def serve(name: str, to: Destination) -> None:
        while not stop.wait(EVERY):
            try:
                for job in outbox.due(name):
                    if stop.is_set():
                        return
                    tell(attempt(outbox, job, to))
            except Exception as error:  # noqa: BLE001 - a full disk must not end it for ever
                tell(f"{name}: {type(error).__name__}: {error}")

    threads = [Thread(target=serve, args=row, daemon=True) for row in destinations.items()]
    for thread in threads:
        thread.start()
    stop.wait()
