r"""A DICOM storage SCP that only writes and answers; what a series is good for is decided later.

Images lie in HOME/received/STUDY/SERIES until their study was quiet for a while, since DICOM has no
end of a study, or are as many as the sender says; then each series goes where the rules send it.
Late images open a study again.
"""

import errno
import re
import shutil
import ssl
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from threading import Event as Flag
from threading import Lock

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from flows.errors import FlowError
from flows.operations.arrivals import look_at
from flows.operations.journal import note
from flows.operations.log import unfailing
from flows.operations.routing import Rules, Target
from flows.settings import ReceiveSettings
from storage.dicom.judgement import OWN
from storage.stores import files

FOLDERS: dict[Target, str] = {"ingest": "inbox", "denoise": "denoise-inbox", "hold": "held"}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SUCCESS, NO_SPACE, CANNOT_UNDERSTAND, OUR_OWN = 0x0000, 0xA700, 0xC000, 0xC001
"""Answers to C-STORE (PS3.4 B.2.3). After NO_SPACE a sender may try again; after the others not."""
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
LONGEST_UID = 64
EVERY = 2.0


class ReceiverError(FlowError):
    """A receiver that cannot start; one line."""


class Receiver:
    """Takes images in, and passes complete studies on."""

    def __init__(self, home: Path, rules: Rules, quiet: float, say: Callable[[str], None]) -> None:
        """Take images for a home.

        quiet: seconds without an image after which a study is complete. say: is given a line for
        each study, and for each image that is not taken.
        """
        self._home, self._rules, self._quiet = home, rules, quiet
        # A refusal that cannot be said is one all the same: on a full disk no log takes a line.
        self._say = unfailing(say)
        self._received = home / "received"
        # No folder is taken away under an image that is being written.
        self._moving = Lock()
        self._expected: dict[Path, int] = {}
        self._callers: dict[Path, str] = {}
        self._failing: dict[Path, str] = {}
        self._received.mkdir(parents=True, exist_ok=True)

    def store(self, event: Event) -> int:
        """Answer a C-STORE: with success only when the image is on the disk."""
        try:
            content = event.encoded_dataset()
            header = dcmread(BytesIO(content), stop_before_pixels=True)
            place = self._place(header)
        except (InvalidDicomError, ValueError, EOFError) as error:
            return self._refused(event, CANNOT_UNDERSTAND, str(error))
        if is_ours(header):
            return self._refused(event, OUR_OWN, "restored by HQINet: it must not come in again")
        try:
            with self._moving:
                files.write(place, content)
                self._expect(header, place)
                self._callers[place.parent] = event.assoc.requestor.ae_title
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                return self._refused(event, CANNOT_UNDERSTAND, str(error))
            return self._refused(event, NO_SPACE, f"{self._home}: {error.strerror}")
        return SUCCESS

    def _place(self, header: Dataset) -> Path:
        """Where an image belongs. Raises ValueError for a UID that is none: it would be a path."""
        names = []
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            uid = str(header.get(keyword, ""))
            if len(uid) > LONGEST_UID or not UID.fullmatch(uid):
                raise ValueError(f"{keyword} {uid!r} is no UID")
            names.append(uid)
        return self._received / names[0] / names[1] / f"{names[2]}.dcm"

    def _expect(self, header: Dataset, place: Path) -> None:
        """Note how many images belong to study and series, where the sender says so."""
        for keyword, folder in (
            ("NumberOfStudyRelatedInstances", place.parents[1]),
            ("NumberOfSeriesRelatedInstances", place.parent),
        ):
            with suppress(ValueError, TypeError):
                if (number := int(header.get(keyword))) > 0:
                    self._expected[folder] = number

    def _has_all(self, folder: Path) -> bool:
        expected = self._expected.get(folder)
        return expected is not None and sum(1 for _ in folder.rglob("*.dcm")) >= expected

    def _refused(self, event: Event, status: int, why: str) -> int:
        self._say(f"image of {event.assoc.requestor.ae_title} refused with {status:#06x}: {why}")
        return status

    def pass_on(self) -> list[Path]:
        """Send what is complete where the rules say; returns where it lies now.

        Complete is a study that was quiet, and a study or series that has as many images as its
        sender says. One that cannot be passed on is said once, and tried again the next time.
        """
        placed: list[Path] = []
        for study in sorted(self._received.iterdir()):
            try:
                with self._moving:
                    placed += self._pass_on(study)
                self._failing.pop(study, None)
            except Exception as error:  # noqa: BLE001 - one study must not end the receiver
                said = f"study {study.name}: {type(error).__name__}: {error}"
                if self._failing.get(study) != said:
                    self._say(said)
                self._failing[study] = said
        return placed

    def _pass_on(self, study: Path) -> list[Path]:
        series = sorted(study.iterdir())
        # One without a file holds what a receiver that was killed left: it is cleared away.
        if look_at(study).age < self._quiet and not self._has_all(study):
            series = [one for one in series if self._has_all(one)]
        placed = [self._route(one) for one in series]
        if not any(study.iterdir()):
            study.rmdir()
            self._expected.pop(study, None)
        return [path for path in placed if path is not None]

    def _route(self, series: Path) -> Path | None:
        # What a receiver that was killed left half written was never acknowledged.
        files.remove_drafts(series)
        images = sorted(series.glob("*.dcm"))
        self._expected.pop(series, None)
        if not images:
            series.rmdir()
            return None
        target, rule = self._rules.route(dcmread(images[0], stop_before_pixels=True))
        by = "no rule" if rule is None else f"rule {rule}"
        self._say(f"series {series.name}: {len(images)} images, {target} by {by}")
        facts = {"study": series.parent.name, "caller": self._callers.pop(series, None)}
        facts |= {"images": len(images), "to": target}
        if target == "ignore":
            shutil.rmtree(series)
            note(self._home, series.name, "received", **facts)
            return None
        place = self._home / FOLDERS[target] / series.parent.name / series.name
        place.mkdir(parents=True, exist_ok=True)
        for image in images:
            # An inbox may lie on another disk.
            shutil.move(image, place / image.name)
        series.rmdir()
        note(self._home, series.name, "received", **facts)
        return place


def is_ours(header: Dataset) -> bool:
    """Whether HQINet restored it: a PACS that sends it back would have it restored for ever."""
    said = header.get("ImageType") or ()
    words = [said] if isinstance(said, str) else said
    items = header.get("ContributingEquipmentSequence", ())
    makers = [str(item.get("Manufacturer", "")) for item in items]
    return OWN in {word.upper() for word in (*words, *makers)}


def listen(receiver: Receiver, settings: ReceiveSettings) -> ThreadedAssociationServer:
    """Take associations from the callers that are named; `server_address` says the port.

    Raises ReceiverError where anybody could send, or the port is taken.
    """
    if not settings.callers and settings.host not in LOOPBACK:
        raise ReceiverError(
            f"the receiver would take images from anybody at {settings.host}: name its callers' AE "
            "titles with HQINET_RECEIVE__CALLERS, as '[\"SCANNER1\"]'"
        )
    entity = AE(ae_title=settings.ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = settings.callers
    entity.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, AllTransferSyntaxes)
    address = (settings.host, settings.port)
    secured = tls_context(settings)
    try:
        return entity.start_server(
            address,
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, receiver.store)],
            ssl_context=secured,
        )
    except OSError as error:
        raise ReceiverError(
            f"the receiver cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error


def tls_context(settings: ReceiveSettings) -> ssl.SSLContext | None:
    """How associations are secured; None: not at all. Raises ReceiverError for a bad file."""
    if settings.certificate is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=settings.authority)
        context.load_cert_chain(settings.certificate, settings.key)
    except OSError as error:
        files_named = (settings.certificate, settings.key, settings.authority)
        named = ", ".join(str(file) for file in files_named if file)
        raise ReceiverError(f"the receiver's certificates {named}: {error}") from error
    if settings.authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def run(receiver: Receiver, settings: ReceiveSettings, stop: Flag) -> None:
    """Receive, and pass on what is complete, until told to stop."""
    server = listen(receiver, settings)
    try:
        while not stop.wait(EVERY):
            receiver.pass_on()
    finally:
        server.shutdown()
