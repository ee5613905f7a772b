"""One series restored: read, restored, written, judged; whole or not at all, or a reason."""

import errno
import logging
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel

from flows.compute.derivation import derivation_of, new_record
from flows.compute.envelopes import facts_of
from flows.compute.models import UsedModel, load
from flows.compute.precision import precision_for
from flows.compute.removal import objections_to, removal_limits, removed_of, seen_of
from flows.settings import DenoiseSettings
from hqinet.devices import pick_device
from hqinet.errors import HqinetError
from hqinet.quality.removal import judge_removal
from hqinet.restoration.envelope import SeriesFacts
from hqinet.restoration.export import USUAL_DOSE
from hqinet.restoration.restore import rounded
from storage.dicom.archive import Destination, SeriesRecord, source_digest
from storage.dicom.derived import Derivation, derived_instance, referenced_series
from storage.dicom.finding import FoundSeries
from storage.dicom.index import SeriesIndex
from storage.dicom.limits import Limits
from storage.dicom.series import Series, order
from storage.dicom.source_images import changed_values, source_images
from storage.dicom.stored_words import StoredWords, decoded
from storage.errors import StorageError, StoreError
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role, read_cohort_file
from storage.refusals import Refusal

logger = logging.getLogger("hqinet.restoration")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
LEAST_SLICES = Limits(min_slices=1)
"""A restoration needs no neighbours: a single slice is a series, too."""


class SeriesOutcome(BaseModel):
    """What became of one series."""

    outcome: Literal["restored", "done before", "refused", "quarantined", "left aside"]
    source: str
    description: str
    source_series: str = ""
    """SeriesInstanceUID of the source; empty for files that cannot be read."""
    slices: int = 0
    series: str = ""
    """SeriesInstanceUID of the derived series."""
    folder: str = ""
    model: str = ""
    code: str = ""
    reasons: list[str] = []
    warnings: list[str] = []
    unjudged: list[str] = []
    """What is not known of the training data, or of the series."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """What all series of one call share; picklable, for a worker restores series, too.

    Attributes:
        source: as it was named: a folder, a zip or a file.
        target: folder in which each derived series gets a folder.
        scratch: folder for volumes under construction.
        index: knows where every derived series of the home lies.
        refused: keeps what was measured of series that lay outside of the envelope.
    """

    source: Path
    target: Path
    scratch: Path
    index: SeriesIndex
    refused: SeriesIndex
    settings: DenoiseSettings


@dataclass(frozen=True)
class Prepared:
    """A series that is read and may be restored; `scratch` is removed when it is."""

    found: FoundSeries
    series: Series
    used: UsedModel
    place: Destination
    record: SeriesRecord
    low: NDArray[np.int16]
    words: StoredWords
    scratch: tempfile.TemporaryDirectory[str]
    about: dict[str, Any]


def left_aside(found: FoundSeries, settings: DenoiseSettings) -> str | None:
    """Why a series is not asked for; None if it is."""
    if settings.series is not None:
        if re.search(settings.series, found.description, re.IGNORECASE):
            return None
        return f"its description does not match {settings.series!r}"
    role = cohort.role(_rules(settings), found.headers[0].path, found.description)
    if role is Role.FULL:
        return "full dose by its description; --series chooses it all the same"
    return "ignored by the cohort file" if role is None else None


def _rules(settings: DenoiseSettings) -> CohortRules:
    return read_cohort_file(settings.cohort_file) if settings.cohort_file else CohortRules()


def about(found: FoundSeries) -> dict[str, Any]:
    """What every outcome says of its series."""
    folder = Path(found.headers[0].path).parent.as_posix()
    return {"source": folder, "source_series": found.uid, "description": found.description}


def restore_alone(request: Request, asked: tuple[FoundSeries, UsedModel]) -> SeriesOutcome:
    """Read, restore, write and judge one series; what a worker does."""
    prepared = prepare(request, *asked)
    if isinstance(prepared, SeriesOutcome):
        return prepared
    return restore_series(request, prepared, lambda _: None)


def prepare(request: Request, found: FoundSeries, used: UsedModel) -> Prepared | SeriesOutcome:
    """Read a series and look it over; what became of it where it is not to be restored."""
    said = about(found) | {"model": used.name}
    try:
        series = order(found.headers, LEAST_SLICES)
        said["slices"] = len(series.slices)
        return _prepared(request, found, series, used, said)
    except Exception as error:  # noqa: BLE001 - one series ends no other
        return _refused(error, said)


def _refused(error: Exception, said: dict[str, Any]) -> SeriesOutcome:
    """The outcome of a series that cannot be read or written; raises what is of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, OSError) and error.errno in _OF_THE_DISK
    ):
        raise error
    if isinstance(error, Refusal):
        code, reason = str(error.code), error.reason
    elif isinstance(error, StorageError | HqinetError):
        code, reason = "not_restored", str(error)
    else:
        code, reason = "not_restored", f"{type(error).__name__}: {' '.join(str(error).split())}"
        logger.error("series %s", said["source_series"], exc_info=error)
    return SeriesOutcome(outcome="refused", **said | {"code": code, "reasons": [reason]})


def _prepared(
    request: Request, found: FoundSeries, series: Series, used: UsedModel, said: dict[str, Any]
) -> Prepared | SeriesOutcome:
    settings = request.settings
    digest = source_digest(found.root, found.headers)
    record = new_record(used, settings, series.uid, digest, source_path(request.source, found))
    place = Destination(request.target, record.series)
    said["series"] = record.series
    if place.is_done(digest, settings.compress):
        return _done_before(place, settings, said)
    known = place.record()
    if known is not None and known.instances > len(series.slices):
        raise StoreError(
            f"{place.final} holds {known.instances} slices of this series, and these are "
            f"{len(series.slices)}: choose another destination for a part of it"
        )
    before = place.quarantined(digest, removal_limits(settings).model_dump_json())
    if before is not None and not (before.warnings and settings.strict):
        said |= {"reasons": before.quarantined, "code": before.code}
        said |= before.model_dump(include={"warnings", "unjudged"})
        return SeriesOutcome(outcome="quarantined", **said)
    request.scratch.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(dir=request.scratch)
    try:
        low, words = decoded(found.root, series, Path(scratch.name))
        facts = _facts(found, series, low, settings)
        warnings, unjudged = _beside_training(facts, used)
        said |= {"warnings": warnings, "unjudged": unjudged}
        record = record.model_copy(
            update={"warnings": warnings, "unjudged": unjudged, "measured": seen_of(facts)}
        )
        if warnings and settings.strict:
            scratch.cleanup()
            request.refused.note(record, place.final)
            return SeriesOutcome(outcome="refused", code="outside_envelope", **said)
    except BaseException:
        scratch.cleanup()
        raise
    return Prepared(found, series, used, place, record, low, words, scratch, said)


def _done_before(
    place: Destination, settings: DenoiseSettings, said: dict[str, Any]
) -> SeriesOutcome:
    """A series that is there already, with what was said of it then."""
    done = place.record()
    said |= {} if done is None else done.model_dump(include={"warnings", "unjudged"})
    if settings.strict and said.get("warnings"):
        return SeriesOutcome(outcome="refused", code="outside_envelope", **said)
    return SeriesOutcome(outcome="done before", folder=str(place.final), **said)


def source_path(source: Path, found: FoundSeries) -> str:
    """Where a series can be found again: a zip or file, or the folder that holds its files."""
    if not source.is_dir():
        return str(source.absolute())
    paths = [found.root / header.path for header in found.headers]
    return os.path.commonpath([path.parent for path in paths])


def restore_series(
    request: Request, prepared: Prepared, advance: Callable[[int], None]
) -> SeriesOutcome:
    """Restore a series that was prepared, write it, and give it its name if it may be used.

    advance: told how many slices were restored, each time.
    """
    with prepared.scratch:
        try:
            return _restored_or_not(request, prepared, advance)
        except Exception as error:  # noqa: BLE001 - one series ends no other
            return _refused(error, prepared.about)


def _restored_or_not(
    request: Request, prepared: Prepared, advance: Callable[[int], None]
) -> SeriesOutcome:
    begun, place, settings = monotonic(), prepared.place, request.settings
    said = prepared.about | {"folder": str(place.final)}
    precision = precision_for(prepared.used, settings.dose, settings.device, prepared.low)
    record = prepared.record.model_copy(update={"precision": precision})
    with place.begin(record) as record:
        if prepared.used.network is None:
            # An attempt before, by the code that made the model, may have begun in another one.
            record = record.model_copy(update={"precision": "float32"})
        try:
            restored = _restored(request, prepared, record, advance)
            removal = judge_removal(prepared.low, restored)
            code, objections = "not_noise", objections_to(removal, settings)
            record = record.model_copy(update={"measured": record.measured | removed_of(removal)})
        except HqinetError as error:
            code, objections = "not_restored", [str(error)]
        seconds = round(monotonic() - begun, 2)
        done = record.model_copy(update={"seconds": seconds})
        if objections:
            limits = removal_limits(settings).model_dump_json()
            judged = {"quarantined": objections, "code": code, "limits": limits}
            place.quarantine(done.model_copy(update=judged))
            said |= {"folder": "", "code": code, "reasons": objections, "seconds": seconds}
            return SeriesOutcome(outcome="quarantined", **said)
        done = done.model_copy(update={"instances": len(prepared.series.slices)})
        request.index.note(done, place.final)
        place.finish(done)
    return SeriesOutcome(outcome="restored", seconds=seconds, **said)


def _restored(
    request: Request, prepared: Prepared, record: SeriesRecord, advance: Callable[[int], None]
) -> NDArray[np.int16]:
    """Restore all slices, each written into the draft while the next ones are restored.

    Raises:
        HqinetError: the model fails, or returns what is no image.
    """
    settings, low = request.settings, prepared.low
    file = Path(prepared.scratch.name) / "restored.npy"
    restored = np.lib.format.open_memmap(file, mode="w+", dtype=np.int16, shape=low.shape)
    blocks = rounded(
        load(prepared.used, settings.dose, settings.device, record.precision),
        low,
        device=pick_device(settings.device),
        batch=settings.batch,
        strength=settings.strength,
    )
    with _Writing(prepared, derivation_of(prepared.used, settings, record)) as writing:
        for first, block in blocks:
            restored[first : first + len(block)] = block
            writing.upto(first + len(block), restored)
            advance(len(block))
    return restored


class _Writing:
    """Writes instances into the draft in the order of space, a few slices behind the model."""

    def __init__(self, prepared: Prepared, derivation: Derivation) -> None:
        found = prepared.found
        file_of = {header.path: header for header in found.headers}
        files = [file_of[item.path] for item in prepared.series.slices]
        self._writer = ThreadPoolExecutor(1)
        self._low, self._place, self._derivation = prepared.low, prepared.place, derivation
        self._sources = source_images(found.root, prepared.series, prepared.words)
        self._references = referenced_series(
            prepared.series.uid, [(file.sop_class, file.instance) for file in files]
        )
        self._number = 0
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Return when what was asked for is written; raises what prevented it."""
        with self._writer:
            self._wait()

    def upto(self, stop: int, restored: NDArray[np.int16]) -> None:
        """Have all slices before `stop` written, once those of the last call are."""
        self._wait()
        self._pending = self._writer.submit(self._write, stop, restored)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _write(self, stop: int, restored: NDArray[np.int16]) -> None:
        for index in range(self._number, stop):
            source = next(self._sources)
            values = changed_values(source, self._low[index], restored[index])
            image = derived_instance(source, values, self._derivation, self._references)
            self._place.put(index + 1, image, values)
        self._number = stop


def _facts(
    found: FoundSeries, series: Series, low: NDArray[np.int16], settings: DenoiseSettings
) -> SeriesFacts:
    dose = settings.dose or USUAL_DOSE
    return facts_of(found.headers[0], series, low, _rules(settings), dose)


def _beside_training(facts: SeriesFacts, used: UsedModel) -> tuple[list[str], list[str]]:
    """Why the series lies outside what the model was trained on, and what of it is not judged."""
    if used.envelope is None:
        return [f"model {used.name} keeps no record of what it was trained on"], []
    return used.envelope.warnings(facts), used.envelope.unjudged(facts)
