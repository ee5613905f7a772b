"""One series: headers -> slices in the order of space, checked to be one volume."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from storage.dicom.frames import Stored, Vector
from storage.dicom.geometry import Geometry, Image, images_of, measure
from storage.dicom.headers import FileHeader
from storage.dicom.limits import Limits
from storage.refusals import SHOWN_FILES, Code, Refusal


@dataclass(frozen=True, slots=True)
class Slice:
    """One image of a series.

    Attributes:
        path: below the delivery; `frame` within the file.
        size, mtime_ns: of the file when its header was read: another one is not to be decoded by
            what that header says.
        rescale: slope and intercept from stored values to HU.
        stored: how the file holds its pixels.
    """

    path: str
    frame: int
    size: int
    mtime_ns: int
    rescale: Vector
    stored: Stored


@dataclass(frozen=True)
class Series:
    """An ordered, checked series; nothing of its pixels has been read yet.

    Attributes:
        uid, study: identifiers as the headers have them: UIDs, or digests of them.
        kernels: ConvolutionKernel, and others where files that have one differ; sorted.
        thickness: SliceThickness in mm; None where files that have one differ.
        mixed: which of the two differ between files, in words.
        kvp: tube voltage in kV; None where files that state one differ.
        rows, columns: of every slice.
        slices: by ascending position; `geometry` says where each lies.
    """

    uid: str
    study: str
    kernels: tuple[str, ...]
    thickness: float | None
    mixed: tuple[str, ...]
    kvp: float | None
    rows: int
    columns: int
    geometry: Geometry
    slices: tuple[Slice, ...]

    def crop(self, start: int, stop: int) -> Self:
        """The series of the slices from `start` up to `stop`."""
        return replace(
            self, slices=self.slices[start:stop], geometry=self.geometry.crop(start, stop)
        )


def order(headers: Sequence[FileHeader], limits: Limits) -> Series:
    """Put the images of one series in order and check that they are one volume.

    Raises:
        Refusal: with the first thing found wrong.
    """
    _check_files(headers)
    _check_matrix(headers)
    _check_tilt(headers, limits)
    images, geometry = measure(images_of(headers), limits)
    kernels = {header.kernel for header in headers if header.kernel}
    thicknesses = {header.thickness for header in headers if header.thickness is not None}
    voltages = {header.kvp for header in headers if header.kvp is not None}
    counts = {"kernel": len(kernels), "slice thickness": len(thicknesses)}
    first = headers[0]
    return Series(
        uid=first.series,
        study=first.study,
        kernels=tuple(sorted(kernels)),
        thickness=next(iter(thicknesses)) if len(thicknesses) == 1 else None,
        mixed=tuple(name for name, count in counts.items() if count > 1),
        kvp=next(iter(voltages)) if len(voltages) == 1 else None,
        rows=first.rows,
        columns=first.columns,
        geometry=geometry,
        slices=tuple(map(_slice, images)),
    )


def _slice(image: Image) -> Slice:
    header, index, frame = image
    if header.stored is None or frame.rescale is None:
        raise Refusal(Code.NOT_HU, "no way from stored values to HU", (header.path,))
    return Slice(header.path, index, header.size, header.mtime_ns, frame.rescale, header.stored)


def _check_files(headers: Sequence[FileHeader]) -> None:
    """No file is refused for itself."""
    for header in headers:
        if header.code:
            alike = [h.path for h in headers if h.code == header.code]
            reason = f"{header.reason} ({len(alike)} of {len(headers)} files)"
            raise Refusal(header.code, reason, tuple(alike[:SHOWN_FILES]))


def _check_matrix(headers: Sequence[FileHeader]) -> None:
    matrices = Counter((header.rows, header.columns) for header in headers).most_common()
    if len(matrices) > 1:
        found = ", ".join(f"{rows} x {columns} ({n} files)" for (rows, columns), n in matrices)
        odd = [h.path for h in headers if (h.rows, h.columns) != matrices[0][0]]
        raise Refusal(
            Code.MIXED_MATRIX,
            f"matrices {found} in one series; expected one",
            tuple(odd[:SHOWN_FILES]),
        )


def _check_tilt(headers: Sequence[FileHeader], limits: Limits) -> None:
    tilts = sorted((header.tilt, header.path) for header in headers if header.tilt is not None)
    if tilts and tilts[-1][0] - tilts[0][0] > limits.tilt_degrees:
        raise Refusal(
            Code.CHANGING_TILT,
            f"GantryDetectorTilt goes from {tilts[0][0]:g} to {tilts[-1][0]:g} degrees within the "
            f"series; expected a change of {limits.tilt_degrees:g} at most",
            (tilts[0][1], tilts[-1][1]),
        )
