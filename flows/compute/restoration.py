"""One series restored: read, restored, judged, written; whole or not at all, or a reason."""

import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from flows import stores
from flows.compute.models import Models, UsedModel
from flows.settings import DenoiseSettings
from hqinet.devices import pick_device
from hqinet.errors import HqinetError
from hqinet.quality.removal import RemovalLimits, judge_removal
from hqinet.restoration.envelope import SeriesFacts, measured_noise
from hqinet.restoration.export import USUAL_DOSE
from hqinet.restoration.restore import restore_to_file
from storage.dicom.archive import Destination, SeriesRecord, now, source_digest
from storage.dicom.derived import (
    Derivation,
    changed_values,
    derived_instance,
    read_source,
    referenced_series,
)
from storage.dicom.finding import FoundSeries
from storage.dicom.geometry import Limits
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import Series, order
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role, read_cohort_file
from storage.provenance import code_version
from storage.refusals import Refusal
from storage.vocabulary import kernel_of, vendor_of

LEAST_SLICES = Limits(min_slices=1)
"""A restoration needs no neighbours: a single slice is a series, too."""


class SeriesOutcome(BaseModel):
    """What became of one series."""

    outcome: Literal["restored", "done before", "refused", "quarantined", "left aside"]
    source: str
    description: str
    slices: int = 0
    series: str = ""
    """SeriesInstanceUID of the derived series."""
    folder: str = ""
    model: str = ""
    code: str = ""
    reasons: list[str] = []
    warnings: list[str] = []
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """One series that is to be restored.

    Attributes:
        target: folder in which the derived series gets a folder.
        writer: a thread that writes one instance while the next is made.
    """

    found: FoundSeries
    target: Path
    models: Models
    settings: DenoiseSettings
    writer: ThreadPoolExecutor


def restore_series(request: Request) -> SeriesOutcome:
    """Restore one series, or say why not."""
    found = request.found
    shown = Path(found.headers[0].path).parent.as_posix()
    about: dict[str, Any] = {"source": shown, "description": found.description}
    aside = left_aside(found, request.settings)
    if aside:
        return SeriesOutcome(outcome="left aside", reasons=[aside], **about)
    used = request.models.resolve()
    try:
        series = order(found.headers, LEAST_SLICES)
        return _restored(request, series, used, about)
    except Refusal as refusal:
        return SeriesOutcome(
            outcome="refused", code=str(refusal.code), reasons=[refusal.reason], **about
        )
    except HqinetError as error:
        return SeriesOutcome(
            outcome="quarantined", code="not_restored", reasons=[str(error)], **about
        )


def left_aside(found: FoundSeries, settings: DenoiseSettings) -> str | None:
    """Why a series is not asked for; None if it is."""
    if settings.series is not None:
        if re.search(settings.series, found.description, re.IGNORECASE):
            return None
        return f"its description does not match {settings.series!r}"
    rules = read_cohort_file(settings.cohort_file) if settings.cohort_file else CohortRules()
    role = cohort.role(rules, found.headers[0].path, found.description)
    if role is Role.FULL:
        return "full dose by its description; --series chooses it all the same"
    return "ignored by the cohort file" if role is None else None


def _restored(
    request: Request, series: Series, used: UsedModel, about: dict[str, Any]
) -> SeriesOutcome:
    settings = request.settings
    derivation = derivation_of(used, settings, now(), [])
    place = Destination(request.target, derivation.series_uid(series.uid))
    about |= {"slices": len(series.slices), "model": used.name, "series": place.final.name}
    digest = source_digest(request.found.headers)
    if place.is_done(digest):
        return SeriesOutcome(outcome="done before", folder=str(place.final), **about)
    with tempfile.TemporaryDirectory(dir=stores.scratch()) as folder:
        low = decoded(request.found.root, series, Path(folder) / "low.npy")
        warnings = about["warnings"] = envelope_warnings(request.found, series, low, used)
        if warnings and settings.strict:
            return SeriesOutcome(outcome="refused", code="outside_envelope", **about)
        record = place.begin(
            SeriesRecord(
                source=digest,
                source_series=series.uid,
                source_folder=str(request.found.root),
                model=used.name,
                identity=used.identity,
                options=derivation.options,
                begun=derivation.time,
                warnings=warnings,
                lineage=used.lineage,
            )
        )
        restored = restore_to_file(
            request.models.load(used, settings.device),
            low,
            Path(folder) / "restored.npy",
            device=pick_device(settings.device),
            batch=settings.batch,
            strength=settings.strength,
        )
        objections = objections_to(low, restored, settings.strength)
        if objections:
            place.quarantine(record.model_copy(update={"quarantined": objections}))
            return SeriesOutcome(
                outcome="quarantined", code="not_noise", reasons=objections, **about
            )
        derivation = derivation_of(used, settings, record.begun, warnings)
        write_series(request, series, low, restored, derivation, place)
        place.finish(record)
    return SeriesOutcome(outcome="restored", folder=str(place.final), **about)


def objections_to(
    low: NDArray[np.int16], restored: NDArray[np.int16], strength: float
) -> list[str]:
    """Why what was removed is no noise; nothing was asked to be removed at strength 0."""
    return judge_removal(low, restored).objections(RemovalLimits()) if strength > 0 else []


def decoded(root: Path, series: Series, file: Path) -> NDArray[np.int16]:
    """The series in HU in a file that is mapped into memory: (slices, rows, columns)."""
    shape = (len(series.slices), series.rows, series.columns)
    volume = np.lib.format.open_memmap(file, mode="w+", dtype=np.int16, shape=shape)
    for index, hu in enumerate(HuDecoder(root, series)):
        volume[index] = hu
    return volume


def envelope_warnings(
    found: FoundSeries, series: Series, low: NDArray[np.int16], used: UsedModel
) -> list[str]:
    """Why the series lies outside what the model was trained on, one line a reason."""
    if used.envelope is None:
        return [f"model {used.name} keeps no record of what it was trained on"]
    header = found.headers[0]
    rules = CohortRules()
    return used.envelope.warnings(
        SeriesFacts(
            vendor=vendor_of(header.manufacturer),
            kernel=kernel_of("\\".join(series.kernels)),
            anatomy=cohort.anatomy(rules, header.patient_id, header.body_part),
            pixel=max(series.geometry.spacing[1:]),
            increment=series.geometry.spacing[0],
            matrix=max(series.rows, series.columns),
            noise=measured_noise(low),
        )
    )


def write_series(
    request: Request,
    series: Series,
    low: NDArray[np.int16],
    restored: NDArray[np.int16],
    derivation: Derivation,
    place: Destination,
) -> None:
    """Write an instance a slice into the draft: one is written while the next is made."""
    found = request.found
    class_of = {header.path: header for header in found.headers}
    references = referenced_series(
        series.uid, [(class_of[s.path].sop_class, class_of[s.path].instance) for s in series.slices]
    )
    written = None
    for index, item in enumerate(series.slices):
        source = read_source(found.root, item)
        values = changed_values(source, item, low[index], restored[index])
        image = derived_instance(source, item, values, derivation, references)
        if written is not None:
            written.result()
        written = request.writer.submit(place.put, index + 1, image, values)
    if written is not None:
        written.result()


def derivation_of(
    used: UsedModel, settings: DenoiseSettings, time: datetime, warnings: list[str]
) -> Derivation:
    """What every instance says of how it was made."""
    options = {"strength": settings.strength, "dose": settings.dose or USUAL_DOSE}
    text = (
        f"Noise reduction by HQINet, model {used.name} ({used.identity[:12]}), strength "
        f"{settings.strength:g}, input taken for {options['dose']:.0%} of full dose."
    )
    if warnings:
        text += " Outside the training data: " + "; ".join(warnings) + "."
    said = {name: value for name, value in used.lineage.items() if not name.endswith("patients")}
    return Derivation(
        model=used.name,
        identity=used.identity,
        software=code_version(),
        options=json.dumps(options, sort_keys=True),
        description=text,
        contribution="; ".join(f"{name} {value}" for name, value in said.items()),
        time=time,
        compression=settings.compress,
        keep_manufacturer=settings.keep_manufacturer,
        keep_private=settings.keep_private,
    )
