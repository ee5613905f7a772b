"""One file's header -> a record of technical attributes and identifiers, or why there is none.

What the file means in a delivery (whose it is, which dose, of which part of the body) is not
decided here: a single series is as good as one of a pair.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pydicom
from pydicom.dataset import Dataset as Header
from pydicom.uid import UID, MediaStorageDirectoryStorage, RawDataStorage

from storage.dicom.attributes import TAGS, Attributes, text
from storage.dicom.frames import (
    Frame,
    Stored,
    count_frames,
    frames,
    holders,
    numbers,
    stored,
)
from storage.dicom.judgement import IMAGES, Judgement, Pixels
from storage.refusals import Code, Refusal

# Values out of their VR's bounds are judged later; pydicom's warnings would quote them in logs,
# and paths, which may name a patient.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")

_PREAMBLE = 128
_EXTENSIONS = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What one file says of itself. Its identifiers and texts may name a person.

    Attributes:
        path: below the delivery.
        size, mtime_ns: bytes and modification time when it was looked at; -1 where it must be
            looked at again.
        kind: `image`; `unreadable`; `projections` and `other` (no DICOM image).
        patient_id: PatientID; empty when absent, as are the others.
        sop_class, study, series, instance, frame_of_reference: UIDs.
        description, body_part, manufacturer: SeriesDescription, BodyPartExamined, Manufacturer.
        kernel: ConvolutionKernel; all of them where the frames of an image differ.
        thickness: SliceThickness in mm; None, too, where the frames of an image differ.
        tilt: GantryDetectorTilt in degrees.
        kvp: tube voltage in kV; None, too, where the frames of an image differ.
        code, reason: why the file alone is reason enough for a refusal.
        frames: one, or one a frame of an Enhanced image.
        stored: None for what is no image.
    """

    path: str
    size: int
    mtime_ns: int
    kind: Literal["image", "unreadable", "projections", "other"]
    patient_id: str = ""
    sop_class: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    frame_of_reference: str = ""
    description: str = ""
    body_part: str = ""
    manufacturer: str = ""
    kernel: str = ""
    thickness: float | None = None
    rows: int = 0
    columns: int = 0
    tilt: float | None = None
    kvp: float | None = None
    code: Code | None = None
    reason: str | None = None
    frames: tuple[Frame, ...] = ()
    stored: Stored | None = None


def read_header(root: Path, path: str) -> FileHeader:
    """Look at one file, its header only.

    Args:
        root: of the delivery.
        path: below it.
    """
    file = root / path
    try:
        status = file.stat()
    except OSError as error:
        return unreadable(path, -1, -1, f"the file is not there: {error.strerror}")
    size, mtime = status.st_size, status.st_mtime_ns
    if file.name.upper() == "DICOMDIR":
        return FileHeader(path, size, mtime, "other")
    try:
        with file.open("rb") as stream:
            header = _parse(stream, file)
            if header is None:
                return FileHeader(path, size, mtime, "other")
            pixels = _look_at_pixels(stream, header)
        return _Reader(header, path, size, mtime).read(pixels)
    except (OSError, MemoryError) as error:
        # Of this machine, not of the file. Size -1: it is looked at again next time.
        of_disk = isinstance(error, OSError)
        reason = f"the disk gives an error: {error.strerror}" if of_disk else "memory ran out"
        return unreadable(path, -1, mtime, reason)
    except Exception:  # noqa: BLE001 - a broken file provokes any error in the parser
        reason = f"{size} bytes that cannot be read as DICOM: damaged, or something else by name"
        return unreadable(path, size, mtime, "the file is empty" if not size else reason)


def unreadable(path: str, size: int, mtime_ns: int, reason: str) -> FileHeader:
    """What is known of a file that cannot be read."""
    return FileHeader(path, size, mtime_ns, "unreadable", code=Code.UNREADABLE, reason=reason)


def _parse(stream: BinaryIO, file: Path) -> Header | None:
    """The header; None for what is no DICOM and does not claim to be.

    Raises:
        InvalidDicomError: no DICOM, though the name says so.
    """
    start = stream.read(_PREAMBLE + 4)
    stream.seek(0)
    claims = file.suffix.lower() in _EXTENSIONS and not file.name.startswith("._")
    # Without preamble, as some old exports are: a first element of group 2 or 8, little endian.
    bare = start[:2] in (b"\x08\x00", b"\x02\x00")
    if start[_PREAMBLE:] != b"DICM" and not bare and not claims:
        return None
    header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS, force=bare)
    if "SOPClassUID" not in header and bare and not claims:
        return None
    return header


def _look_at_pixels(stream: BinaryIO, header: Header) -> Pixels:
    """What the file says of its pixels; the stream is at their tag, where the header ended."""
    implicit, little = header.original_encoding
    syntax = UID(header.file_meta.get("TransferSyntaxUID", ""))
    if not little or (syntax and syntax.is_deflated):
        return Pixels(syntax)
    start = stream.tell()
    element = stream.read(8 if implicit else 12)
    if element[:4] != b"\xe0\x7f\x10\x00":
        return Pixels(syntax)
    if syntax and syntax.is_compressed:
        return Pixels(syntax, compressed_frames=count_frames(stream))
    return Pixels(syntax, start + len(element), int.from_bytes(element[-4:], "little"))


class _Reader:
    """Reads the attributes of one open header into a record."""

    def __init__(self, header: Header, path: str, size: int, mtime_ns: int) -> None:
        self.header = Attributes(header)
        self.path = path
        self.size = size
        self.mtime_ns = mtime_ns

    def read(self, pixels: Pixels) -> FileHeader:
        """The record of the file."""
        sop_class = self.text("SOPClassUID")
        if sop_class == MediaStorageDirectoryStorage:
            return FileHeader(self.path, self.size, self.mtime_ns, "other")
        needed = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"]
        needed += ["Rows", "Columns"] if sop_class in IMAGES else []
        lacking = [keyword for keyword in needed if not self.text(keyword)]
        if lacking:
            reason = f"the header lacks {', '.join(lacking)}: cut off, or no DICOM image"
            return unreadable(self.path, self.size, self.mtime_ns, reason)
        if sop_class == RawDataStorage:
            return FileHeader(self.path, self.size, self.mtime_ns, "projections")
        return self.image(pixels)

    def image(self, pixels: Pixels) -> FileHeader:
        """The record of an image, whatever it is of."""
        of_frames, how = frames(self.header), stored(self.header, pixels.offset)
        verdict = self.judge(Judgement(self.header, pixels, of_frames, how))
        return FileHeader(
            path=self.path,
            size=self.size,
            mtime_ns=self.mtime_ns,
            kind="image",
            patient_id=self.text("PatientID"),
            sop_class=self.text("SOPClassUID"),
            study=self.text("StudyInstanceUID"),
            series=self.text("SeriesInstanceUID"),
            instance=self.text("SOPInstanceUID"),
            frame_of_reference=self.text("FrameOfReferenceUID"),
            description=self.text("SeriesDescription"),
            body_part=self.text("BodyPartExamined"),
            manufacturer=self.text("Manufacturer"),
            kernel=self.kernel(),
            thickness=self.one_number("SliceThickness", "PixelMeasuresSequence"),
            rows=int(self.header.get("Rows") or 0),
            columns=int(self.header.get("Columns") or 0),
            tilt=(numbers(self.header, "GantryDetectorTilt", 1) or (None,))[0],
            kvp=self.one_number("KVP", "CTXRayDetailsSequence"),
            code=verdict.code if verdict else None,
            reason=verdict.reason if verdict else None,
            frames=of_frames,
            stored=how,
        )

    def judge(self, judgement: Judgement) -> Refusal | None:
        """Why this file alone is refused, if it is."""
        try:
            judgement.check(self.size)
        except Refusal as refusal:
            return refusal
        return None

    def kernel(self) -> str:
        """ConvolutionKernel; all of them, which is no known word, where frames differ."""
        macros = "CTReconstructionSequence", "UnassignedSharedConvertedAttributesSequence"
        groups = holders(self.header, "ConvolutionKernel", *macros)
        return "\\".join(sorted({text(group, "ConvolutionKernel") for group in groups}))

    def one_number(self, keyword: str, macro: str) -> float | None:
        """An attribute that functional groups may hold; None when absent or where they differ."""
        groups = holders(self.header, keyword, macro)
        said = {numbers(group, keyword, 1) for group in groups}
        return (said.pop() or (None,))[0] if len(said) == 1 else None

    def text(self, keyword: str) -> str:
        """An attribute of the header as text."""
        return text(self.header, keyword)
