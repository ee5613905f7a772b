"""One series looked over: what is read of it, and whether it is to be restored."""

import errno
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel

from flows.compute.derivation import new_record
from flows.compute.envelopes import facts_of
from flows.compute.models import UsedModel
from flows.compute.removal import judged_by, seen_of
from flows.settings import DenoiseSettings
from hqinet.errors import HqinetError
from hqinet.quality.removal import RemovalLimits
from hqinet.restoration.envelope import SeriesFacts
from hqinet.restoration.export import USUAL_DOSE
from storage.dicom.archive import Destination, SeriesRecord, source_digest
from storage.dicom.finding import FoundSeries
from storage.dicom.index import SeriesIndex
from storage.dicom.limits import Limits
from storage.dicom.series import Series, order
from storage.dicom.stored_words import StoredWords, decoded
from storage.errors import StorageError
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role, read_cohort_file
from storage.refusals import Code, Refusal

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
        limits: of the policy, on what may be removed.
    """

    source: Path
    target: Path
    scratch: Path
    index: SeriesIndex
    refused: SeriesIndex
    settings: DenoiseSettings
    limits: RemovalLimits


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


def prepare(request: Request, found: FoundSeries, used: UsedModel) -> Prepared | SeriesOutcome:
    """Read a series and look it over; what became of it where it is not to be restored."""
    said = about(found) | {"model": used.name}
    try:
        _require_foreign(request.index, found)
        series = order(found.headers, LEAST_SLICES)
        said["slices"] = len(series.slices)
        return _prepared(request, found, series, used, said)
    except Exception as error:  # noqa: BLE001 - one series ends no other
        return refused(error, said)


def _require_foreign(index: SeriesIndex, found: FoundSeries) -> None:
    """Raise Refusal for a series of ours whose header does not say so any more."""
    if index.lists(found.uid):
        raise Refusal(Code.OWN_DERIVED, "a series of this UID was restored here")


def refused(error: Exception, said: dict[str, Any]) -> SeriesOutcome:
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
    record = new_record(used, settings, found, digest, source_path(request.source, found))
    place = Destination(request.target, record.series)
    said["series"] = record.series
    if place.is_done(digest, settings.compress):
        return _done_before(place, settings, said)
    before = place.quarantined(digest, judged_by(settings, request.limits))
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
