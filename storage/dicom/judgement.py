"""Why one file is no slice of a volume in HU: its kind, compression, pixels or rescale."""

from dataclasses import dataclass

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from storage.dicom.attributes import Group, text
from storage.dicom.frames import Frame, Stored, rescale_groups
from storage.refusals import Code, Refusal

OWN = "HQINET"
"""How our derived series are known again: in ImageType, and as a manufacturer of equipment."""
IMAGES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_SECONDARY_CAPTURES = (
    SecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
# Which pydicom has no name for.
_JPEG_XL = UID("1.2.840.10008.1.2.4.112")
_LOSSY_SYNTAXES = {
    JPEGBaseline8Bit: "JPEG baseline",
    JPEGExtended12Bit: "JPEG extended",
    JPEGLSNearLossless: "JPEG-LS near-lossless",
    _JPEG_XL: "JPEG XL",
    HTJ2K: "HTJ2K",
}


@dataclass(frozen=True, slots=True)
class Pixels:
    """What a file tells of its pixels before they are decoded.

    Attributes:
        syntax: transfer syntax; empty where the file has no meta header.
        offset, length: where uncompressed little-endian ones begin and how long they say they are,
            in bytes; None if they are compressed or big endian, or there are none.
        compressed_frames: how many frames begin in compressed ones; None if those are damaged.
    """

    syntax: UID
    offset: int | None = None
    length: int | None = None
    compressed_frames: int | None = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The checks that one file must pass by itself; each raises `Refusal`."""

    header: Group
    pixels: Pixels
    frames: tuple[Frame, ...]
    stored: Stored

    def check(self, size: int) -> None:
        """All of them; the first that fails speaks.

        Args:
            size: bytes of the file.
        """
        self.check_kind()
        self.check_compression()
        self.check_pixels()
        self.check_length(size)
        self.check_rescale()

    def check_kind(self) -> None:
        """CT images of the body only."""
        sop_class, modality = text(self.header, "SOPClassUID"), text(self.header, "Modality")
        said = self.header.get("ImageType") or ()
        image_type = [str(v).upper() for v in ([said] if isinstance(said, str) else said)]
        if OWN in image_type or self._is_ours():
            raise Refusal(
                Code.OWN_DERIVED,
                "the series was restored by HQINet: no model is trained on, or fed with, itself",
            )
        if sop_class in _SECONDARY_CAPTURES or "SCREEN SAVE" in image_type:
            raise Refusal(Code.SECONDARY_CAPTURE, "the series is a secondary capture, no CT image")
        if "LOCALIZER" in image_type:
            raise Refusal(Code.LOCALIZER, "ImageType says LOCALIZER: a scout, no axial series")
        if sop_class not in IMAGES or modality != "CT":
            raise Refusal(
                Code.NOT_CT,
                f"SOP class {_uid(sop_class)} with modality {_modality(modality)}; "
                "expected CT Image Storage or Enhanced CT Image Storage with modality CT",
            )

    def _is_ours(self) -> bool:
        items = self.header.get("ContributingEquipmentSequence") or ()
        return any(text(item, "Manufacturer").upper() == OWN for item in items)

    def check_compression(self) -> None:
        """Pixels must be what the scanner computed."""
        said, syntax = text(self.header, "LossyImageCompression"), self.pixels.syntax
        if said == "01":
            raise Refusal(Code.LOSSY_COMPRESSION, "LossyImageCompression is 01; expected 00")
        if syntax in _LOSSY_SYNTAXES or (syntax == JPEG2000 and said != "00"):
            name = _LOSSY_SYNTAXES.get(syntax, "JPEG 2000, which may be lossy")
            raise Refusal(
                Code.LOSSY_COMPRESSION,
                f"transfer syntax {syntax} ({name}); expected a lossless one",
            )

    def check_pixels(self) -> None:
        """One grey value a pixel, in bits that are there."""
        samples, bits = self.count("SamplesPerPixel"), self.count("BitsAllocated")
        photometric = text(self.header, "PhotometricInterpretation")
        if samples != 1 or photometric != "MONOCHROME2" or bits not in (8, 16, 32):
            raise Refusal(
                Code.UNSUPPORTED_PIXELS,
                f"SamplesPerPixel {samples}, "
                f"{'MONOCHROME1' if photometric == 'MONOCHROME1' else 'photometric other'}, "
                f"BitsAllocated {bits}; expected 1, MONOCHROME2 and 8, 16 or 32"
                if photometric != "MONOCHROME2"
                else f"SamplesPerPixel {samples}, BitsAllocated {bits}; expected 1 and 8, 16 or 32",
            )
        used = self.stored
        if used.bits != bits and not used.bits - 1 <= used.high < bits:
            raise Refusal(
                Code.UNSUPPORTED_PIXELS,
                f"BitsStored {used.bits} up to HighBit {used.high} do not fit BitsAllocated {bits}",
            )

    def check_length(self, size: int) -> None:
        """As many frames and bytes as the header promises, no fewer and no more."""
        count, described = max(self.count("NumberOfFrames"), 1), len(self.frames)
        if count != described:
            raise Refusal(
                Code.UNSUPPORTED_PIXELS,
                f"NumberOfFrames {count}, and geometry of {described} frames; expected the same",
            )
        found = self.pixels.compressed_frames
        if found is None:
            reason = "PixelData is damaged: its fragments do not follow one another"
            raise Refusal(Code.UNREADABLE, reason)
        if found > count:
            reason = f"PixelData of {found} compressed frames; expected {count}"
            raise Refusal(Code.UNREADABLE, reason)
        start, length = self.pixels.offset, self.pixels.length
        if start is None or length is None:
            return
        row = self.count("Columns") * self.count("BitsAllocated") // 8
        expected = self.count("Rows") * row * count
        if size < start + expected:
            reason = f"the file is cut off: {size} bytes, expected {start + expected}"
            raise Refusal(Code.UNREADABLE, reason)
        # Less than a row beyond the end is padding.
        if not expected <= length < expected + max(row, 2):
            reason = f"PixelData of {length} bytes; expected {expected} by matrix and frames"
            raise Refusal(Code.UNREADABLE, reason)

    def check_rescale(self) -> None:
        """The stored values must lead to HU."""
        for group, frame in zip(rescale_groups(self.header), self.frames, strict=True):
            kind = str((group.get("RescaleType") if group is not None else None) or "")
            if kind not in ("", "HU", "US"):
                reason = "RescaleType is not HU: the values are no Hounsfield units"
                raise Refusal(Code.NOT_HU, reason)
            if frame.rescale is None or not frame.rescale[0]:
                found = "RescaleSlope or RescaleIntercept is absent or no number"
                raise Refusal(
                    Code.NOT_HU,
                    f"{'RescaleSlope is 0' if frame.rescale else found}: no way to HU",
                )

    def count(self, keyword: str) -> int:
        """An attribute as a whole number; 0 when absent."""
        return int(self.header.get(keyword) or 0)


def _uid(value: str) -> str:
    return value if value and set(value) <= set("0123456789.") else "(absent or invalid)"


def _modality(value: str) -> str:
    return value if value.isalpha() and value.isupper() and len(value) <= 10 else "(absent)"
