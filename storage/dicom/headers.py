"""One file's header -> a record of technical attributes, or the reason why there is none."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

import pydicom
from pydicom.dataset import Dataset as Header
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
    RawDataStorage,
)

from storage.dicom.attributes import TAGS, Attributes, Group
from storage.dicom.frames import (
    Frame,
    Stored,
    begun,
    frames,
    holders,
    numbers,
    rescale_groups,
    stored,
)
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role
from storage.ingest.pseudonyms import Pseudonyms
from storage.refusals import Code, Refused

# Values out of their VR's bounds are judged below; pydicom's warnings would quote them in logs,
# and paths, which may name a patient.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")

_IMAGES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_JPEG_2000 = "1.2.840.10008.1.2.4.91"
_LOSSY_SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}
_PREAMBLE = 128
_EXTENSIONS = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True, slots=True)
class Record:
    """What ingestion knows of a file; free of names, UIDs and descriptions.

    Attributes:
        path: below the delivery.
        kind: `image`; `unreadable`; `projections`, `ignored` (by the cohort file) and `other`
            (no DICOM) are counted and left.
        patient: key of the dataset; None where the file names nobody.
        study, series, instance, frame_of_reference: digests of UIDs; empty where there is none.
        kernel, kernel_digest: ConvolutionKernel as a known word, and a digest that tells those
            apart that are not known; of all of them where the frames of an image differ.
        thickness: SliceThickness in mm; None, too, where the frames of an image differ.
        tilt: GantryDetectorTilt in degrees.
        code, reason: why the file alone is reason enough for a refusal.
        frames: one, or one a frame of an Enhanced image.
        stored: None for what is no image.
    """

    path: str
    size: int
    mtime_ns: int
    kind: Literal["image", "unreadable", "projections", "ignored", "other"]
    patient: str | None = None
    role: Role = Role.UNKNOWN
    study: str = ""
    series: str = ""
    instance: str = ""
    frame_of_reference: str = ""
    anatomy: str = "unknown"
    dose_fraction: float | None = None
    vendor: str = cohort.OTHER
    kernel: str = cohort.OTHER
    kernel_digest: str = ""
    thickness: float | None = None
    rows: int = 0
    columns: int = 0
    tilt: float | None = None
    code: Code | None = None
    reason: str | None = None
    frames: tuple[Frame, ...] = ()
    stored: Stored | None = None


def read_record(root: Path, path: str, rules: CohortRules, names: Pseudonyms) -> Record:
    """Look at one file, its header only.

    Args:
        root: of the delivery.
        path: below it.
    """
    file = root / path
    try:
        status = file.stat()
    except OSError as error:
        return _unreadable(path, -1, -1, f"the file is not there: {error.strerror}")
    size, mtime = status.st_size, status.st_mtime_ns
    if file.name.upper() == "DICOMDIR":
        return Record(path, size, mtime, "other")
    try:
        with file.open("rb") as stream:
            header = _read_header(stream, file)
            if header is None:
                return Record(path, size, mtime, "other")
            pixels = _look_at_pixels(stream, header)
        return _Reader(header, pixels, path, rules, names).record(size, mtime)
    except (OSError, MemoryError) as error:
        # Of this machine, not of the file. Size -1: it is looked at again next time.
        of_disk = isinstance(error, OSError)
        reason = f"the disk gives an error: {error.strerror}" if of_disk else "memory ran out"
        return _unreadable(path, -1, mtime, reason)
    except Exception:  # noqa: BLE001 - a broken file provokes any error in the parser
        reason = f"{size} bytes that cannot be read as DICOM: damaged, or something else by name"
        return _unreadable(path, size, mtime, "the file is empty" if not size else reason)


def _unreadable(path: str, size: int, mtime: int, reason: str) -> Record:
    return Record(path, size, mtime, "unreadable", code=Code.UNREADABLE, reason=reason)


def _read_header(stream: BinaryIO, file: Path) -> Header | None:
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


@dataclass(frozen=True, slots=True)
class _Pixels:
    """What a file tells of its pixels before they are decoded.

    Attributes:
        offset, length: where uncompressed little-endian ones begin and how long they say they are,
            in bytes; None if they are compressed or big endian, or there are none.
        begun: how many frames begin in compressed ones; None if those are damaged.
    """

    offset: int | None = None
    length: int | None = None
    begun: int | None = 0


def _look_at_pixels(stream: BinaryIO, header: Header) -> _Pixels:
    """What can be told; the stream stands at their tag, where reading of the header stopped."""
    implicit, little = header.original_encoding
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not little or (syntax is not None and syntax.is_deflated):
        return _Pixels()
    start = stream.tell()
    element = stream.read(8 if implicit else 12)
    if element[:4] != b"\xe0\x7f\x10\x00":
        return _Pixels()
    if syntax is not None and syntax.is_compressed:
        return _Pixels(begun=begun(stream))
    return _Pixels(start + len(element), int.from_bytes(element[-4:], "little"))


class _Reader:
    """Reads the attributes of one open header into a record."""

    def __init__(
        self,
        header: Header,
        pixels: _Pixels,
        path: str,
        rules: CohortRules,
        names: Pseudonyms,
    ) -> None:
        self.syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
        self.header = Attributes(header)
        self.pixels = pixels
        self.path = path
        self.rules = rules
        self.names = names

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """Where the images lie."""
        return frames(self.header)

    @cached_property
    def stored(self) -> Stored:
        """How the pixels are stored."""
        return stored(self.header, self.pixels.offset)

    def record(self, size: int, mtime: int) -> Record:
        """The record of the file."""
        sop_class = self.text("SOPClassUID")
        if sop_class == MediaStorageDirectoryStorage:
            return Record(self.path, size, mtime, "other")
        needed = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"]
        needed += ["Rows", "Columns"] if sop_class in _IMAGES else []
        lacking = [keyword for keyword in needed if not self.text(keyword)]
        if lacking:
            reason = f"the header lacks {', '.join(lacking)}: cut off, or no DICOM image"
            return _unreadable(self.path, size, mtime, reason)
        if sop_class == RawDataStorage:
            return Record(self.path, size, mtime, "projections")
        role = cohort.role(self.rules, self.path, self.text("SeriesDescription"))
        if role is None:
            return Record(self.path, size, mtime, "ignored")
        key = cohort.patient_key(self.rules, self.path, self.text("PatientID"))
        part = cohort.anatomy(self.rules, key or "", self.text("BodyPartExamined"))
        code, reason = self.verdict(sop_class, size)
        kernel = self.kernel()
        return Record(
            path=self.path,
            size=size,
            mtime_ns=mtime,
            kind="image",
            patient=self.names.patient(key) if key else None,
            role=role,
            study=self.digest("StudyInstanceUID"),
            series=self.digest("SeriesInstanceUID"),
            instance=self.digest("SOPInstanceUID"),
            frame_of_reference=self.digest("FrameOfReferenceUID"),
            anatomy=part,
            dose_fraction=cohort.dose_fraction(self.rules, key or "", part),
            vendor=cohort.vendor(self.text("Manufacturer")),
            kernel=cohort.kernel(kernel),
            kernel_digest=self.names.digest(kernel) if kernel else "",
            thickness=self.thickness(),
            rows=self.count("Rows"),
            columns=self.count("Columns"),
            tilt=(numbers(self.header, "GantryDetectorTilt", 1) or (None,))[0],
            code=code,
            reason=reason,
            frames=self.frames,
            stored=self.stored,
        )

    def kernel(self) -> str:
        """ConvolutionKernel; all of them, which is no known word, where frames differ."""
        macros = "CTReconstructionSequence", "UnassignedSharedConvertedAttributesSequence"
        groups = holders(self.header, "ConvolutionKernel", *macros)
        return "\\".join(sorted({_text(group, "ConvolutionKernel") for group in groups}))

    def thickness(self) -> float | None:
        """SliceThickness in mm; None when absent or where frames differ."""
        groups = holders(self.header, "SliceThickness", "PixelMeasuresSequence")
        said = {numbers(group, "SliceThickness", 1) for group in groups}
        return (said.pop() or (None,))[0] if len(said) == 1 else None

    def digest(self, keyword: str) -> str:
        """A digest of an attribute; empty when absent."""
        text = self.text(keyword)
        return self.names.digest(text) if text else ""

    def text(self, keyword: str) -> str:
        """An attribute of the header as text."""
        return _text(self.header, keyword)

    def count(self, keyword: str) -> int:
        """An attribute as a whole number; 0 when absent."""
        return int(self.header.get(keyword) or 0)

    def verdict(self, sop_class: str, size: int) -> tuple[Code | None, str | None]:
        """Why this file alone is refused, if it is."""
        try:
            self.check_kind(sop_class)
            self.check_compression()
            self.check_pixels(size)
            self.check_rescale()
        except Refused as refused:
            return refused.code, refused.reason
        return None, None

    def check_kind(self, sop_class: str) -> None:
        """CT images of the body only."""
        said = self.header.get("ImageType") or ()
        image_type = [str(v).upper() for v in ([said] if isinstance(said, str) else said)]
        if sop_class.startswith(_SECONDARY_CAPTURE) or "SCREEN SAVE" in image_type:
            raise Refused(Code.SECONDARY_CAPTURE, "the series is a secondary capture, no CT image")
        if "LOCALIZER" in image_type:
            raise Refused(Code.LOCALIZER, "ImageType says LOCALIZER: a scout, no axial series")
        if sop_class not in _IMAGES or self.text("Modality") != "CT":
            raise Refused(
                Code.NOT_CT,
                f"SOP class {_uid(sop_class)} with modality {_modality(self.text('Modality'))}; "
                "expected CT Image Storage or Enhanced CT Image Storage with modality CT",
            )

    def check_compression(self) -> None:
        """Pixels must be what the scanner computed."""
        said = self.text("LossyImageCompression")
        if said == "01":
            raise Refused(Code.LOSSY_COMPRESSION, "LossyImageCompression is 01; expected 00")
        if self.syntax in _LOSSY_SYNTAXES or (self.syntax == _JPEG_2000 and said != "00"):
            name = _LOSSY_SYNTAXES.get(self.syntax, "JPEG 2000, which may be lossy")
            raise Refused(
                Code.LOSSY_COMPRESSION,
                f"transfer syntax {self.syntax} ({name}); expected a lossless one",
            )

    def check_pixels(self, size: int) -> None:
        """One grey value a pixel, and as many bytes as the header promises."""
        samples, bits = self.count("SamplesPerPixel"), self.count("BitsAllocated")
        photometric = self.text("PhotometricInterpretation")
        if samples != 1 or photometric != "MONOCHROME2" or bits not in (8, 16, 32):
            raise Refused(
                Code.UNSUPPORTED_PIXELS,
                f"SamplesPerPixel {samples}, "
                f"{'MONOCHROME1' if photometric == 'MONOCHROME1' else 'photometric other'}, "
                f"BitsAllocated {bits}; expected 1, MONOCHROME2 and 8, 16 or 32"
                if photometric != "MONOCHROME2"
                else f"SamplesPerPixel {samples}, BitsAllocated {bits}; expected 1 and 8, 16 or 32",
            )
        kept = self.stored
        if kept.bits != bits and not kept.bits - 1 <= kept.high < bits:
            raise Refused(
                Code.UNSUPPORTED_PIXELS,
                f"BitsStored {kept.bits} up to HighBit {kept.high} do not fit BitsAllocated {bits}",
            )
        self.check_length(size, bits // 8)

    def check_length(self, size: int, width: int) -> None:
        """As many frames and bytes as the header promises, no fewer and no more."""
        count, described = max(self.count("NumberOfFrames"), 1), len(self.frames)
        if count != described:
            raise Refused(
                Code.UNSUPPORTED_PIXELS,
                f"NumberOfFrames {count}, and geometry of {described} frames; expected the same",
            )
        if self.pixels.begun is None:
            reason = "PixelData is damaged: its fragments do not follow one another"
            raise Refused(Code.UNREADABLE, reason)
        if self.pixels.begun > count:
            reason = f"PixelData of {self.pixels.begun} compressed frames; expected {count}"
            raise Refused(Code.UNREADABLE, reason)
        start, length = self.pixels.offset, self.pixels.length
        if start is None or length is None:
            return
        row = self.count("Columns") * width
        expected = self.count("Rows") * row * count
        if size < start + expected:
            reason = f"the file is cut off: {size} bytes, expected {start + expected}"
            raise Refused(Code.UNREADABLE, reason)
        # Less than a row beyond the end is padding.
        if not expected <= length < expected + max(row, 2):
            reason = f"PixelData of {length} bytes; expected {expected} by matrix and frames"
            raise Refused(Code.UNREADABLE, reason)

    def check_rescale(self) -> None:
        """The stored values must lead to HU."""
        for group, frame in zip(rescale_groups(self.header), self.frames, strict=True):
            kind = str((group.get("RescaleType") if group is not None else None) or "")
            if kind not in ("", "HU", "US"):
                reason = "RescaleType is not HU: the values are no Hounsfield units"
                raise Refused(Code.NOT_HU, reason)
            if frame.rescale is None or not frame.rescale[0]:
                found = "RescaleSlope or RescaleIntercept is absent or no number"
                raise Refused(
                    Code.NOT_HU,
                    f"{'RescaleSlope is 0' if frame.rescale else found}: no way to HU",
                )


def _text(source: Group | None, keyword: str) -> str:
    """An attribute as text; the first of several values, empty when absent."""
    value = source.get(keyword) if source is not None else None
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return "" if value is None else str(value).strip(" \0")


def _uid(value: str) -> str:
    return value if value and set(value) <= set("0123456789.") else "(absent or invalid)"


def _modality(value: str) -> str:
    return value if value.isalpha() and value.isupper() and len(value) <= 10 else "(absent)"
