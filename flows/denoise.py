"""The denoise flow: low-dose series in, derived series out, beside a record of how each was made.

A series is restored whole or not at all. What cannot be read is refused, what lies outside of what
the model knows is said (refused with `strict`), and what a model did that is not the removal of
noise is kept from use.
"""

import hashlib
import json
import re
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel

from flows import lineage, stores
from flows.compute.progress import announce
from flows.errors import FlowError
from flows.settings import DenoiseSettings, Settings
from hqinet.devices import pick_device
from hqinet.errors import HqinetError
from hqinet.quality.removal import RemovalLimits, judge_removal
from hqinet.restoration.envelope import Envelope, SeriesFacts, measured_noise
from hqinet.restoration.export import USUAL_DOSE, load_exported
from hqinet.restoration.restore import HUModel, restore_to_file
from hqinet.restoration.starter import starter_envelope, starter_file
from storage.dicom.archive import Destination, SeriesRecord, now, source_digest
from storage.dicom.derived import (
    Derivation,
    changed_values,
    derived_instance,
    read_source,
    referenced_series,
)
from storage.dicom.finding import FoundSeries, find_series, opened
from storage.dicom.geometry import Limits
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import Series, order
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role, read_cohort_file
from storage.models.registry import CHAMPION
from storage.provenance import code_version
from storage.refusals import Refusal
from storage.vocabulary import kernel_of, vendor_of

DEFAULTS = Settings().denoise
STARTER = "starter"
ENVELOPE = "envelope.json"
"""Artifact of a model's run: what it was trained on."""
LEAST_SLICES = Limits(min_slices=1)
"""A restoration needs no neighbours: a single slice is a series, too."""


class DenoiseError(FlowError):
    """A restoration that cannot begin; one line that says what to do."""


@dataclass(frozen=True)
class UsedModel:
    """The model of a series, as it was resolved.

    Attributes:
        name: version number, or `starter`.
        identity: digest of its file.
        lineage: the way back to the training data.
    """

    name: str
    file: Path
    identity: str
    envelope: Envelope | None
    lineage: dict[str, str]


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


class DenoiseResult(BaseModel):
    """What `hqinet denoise --json` prints."""

    destination: str
    series: list[SeriesOutcome]

    def count(self, outcome: str) -> int:
        """How many series ended so."""
        return Counter(row.outcome for row in self.series)[outcome]


@flow(name="denoise")
def denoise(source: str, destination: str, settings: DenoiseSettings = DEFAULTS) -> DenoiseResult:
    """Restore every low-dose or plain CT series of a source.

    Args:
        source: A folder, a zip or a file of DICOM, in any layout; it is never written to.
        destination: Folder in which each derived series gets a folder.
        settings: Which series, which model, how much.
    """
    target = Path(destination).absolute()
    target.mkdir(parents=True, exist_ok=True)
    models = Models(settings.model, settings.dose)
    outcomes = []
    with opened(Path(source), stores.scratch()) as place, ThreadPoolExecutor(1) as writer:
        found, unreadable = find_series(place)
        outcomes += [
            SeriesOutcome(
                outcome="refused",
                source=header.path,
                description="",
                code=str(header.code),
                reasons=[header.reason or ""],
            )
            for header in unreadable
        ]
        for number, series in enumerate(found, 1):
            begun = monotonic()
            outcome = restore_series(series, target, models, settings, writer)
            outcome = outcome.model_copy(update={"seconds": round(monotonic() - begun, 2)})
            announce(f"{number}/{len(found)} {_line(outcome)}")
            outcomes.append(outcome)
    result = DenoiseResult(destination=str(target), series=outcomes)
    publish(result)
    return result


class Models:
    """Resolves the model that was asked for, once a series, and keeps what it has loaded."""

    def __init__(self, asked: str, dose: float | None) -> None:
        self._asked, self._dose = asked, dose
        self._used: dict[str, UsedModel] = {}
        self._loaded: dict[str, HUModel] = {}
        self._folder = tempfile.TemporaryDirectory(dir=stores.scratch())

    def resolve(self) -> UsedModel:
        """The model now: an alias may move between two series.

        Raises:
            DenoiseError: there is none of that name.
        """
        if self._asked == STARTER:
            return self._starter()
        registry = stores.registry()
        versions = registry.versions()
        if self._asked == CHAMPION and not any(CHAMPION in row.aliases for row in versions):
            return self._starter()
        version = registry.version(self._asked)
        name = str(version.version)
        if name not in self._used:
            folder = Path(self._folder.name) / name
            file = registry.model_file(version, folder)
            path = registry.fetch(version.run, ENVELOPE, folder)
            envelope = None if path is None else Envelope.model_validate_json(path.read_text())
            stated = lineage.lineage_fields(version)
            self._used[name] = UsedModel(name, file, _digest(file), envelope, stated)
        return self._used[name]

    def load(self, used: UsedModel, device: str) -> HUModel:
        """The model as a function from HU to HU."""
        if used.identity not in self._loaded:
            self._loaded[used.identity] = load_exported(
                used.file, pick_device(device), dose=self._dose
            )
        return self._loaded[used.identity]

    def _starter(self) -> UsedModel:
        file = starter_file()
        if file is None:
            raise DenoiseError(
                "there is no champion, and this package ships no starter model: train one with "
                "`hqinet train`, or name a version with --model"
            )
        if STARTER not in self._used:
            stated = {"model": STARTER, "code_version": code_version()}
            self._used[STARTER] = UsedModel(
                STARTER, file, _digest(file), starter_envelope(), stated
            )
        return self._used[STARTER]


def restore_series(
    found: FoundSeries,
    target: Path,
    models: Models,
    settings: DenoiseSettings,
    writer: ThreadPoolExecutor,
) -> SeriesOutcome:
    """Restore one series, or say why not."""
    shown = Path(found.headers[0].path).parent.as_posix()
    about: dict[str, Any] = {"source": shown, "description": found.description}
    aside = left_aside(found, settings)
    if aside:
        return SeriesOutcome(outcome="left aside", reasons=[aside], **about)
    used = models.resolve()
    try:
        series = order(found.headers, LEAST_SLICES)
        return _restored(found, series, target, used, models, settings, writer, about)
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
    found: FoundSeries,
    series: Series,
    target: Path,
    used: UsedModel,
    models: Models,
    settings: DenoiseSettings,
    writer: ThreadPoolExecutor,
    about: dict[str, Any],
) -> SeriesOutcome:
    derivation = _derivation(used, settings)
    uid = derivation.series_uid(series.uid)
    place = Destination(target, uid)
    about |= {"slices": len(series.slices), "model": used.name, "series": str(uid)}
    digest = source_digest(found.headers)
    if place.is_done(digest):
        return SeriesOutcome(outcome="done before", folder=str(place.final), **about)
    with tempfile.TemporaryDirectory(dir=stores.scratch()) as folder:
        low = decoded(found.root, series, Path(folder) / "low.npy")
        warnings = envelope_warnings(found, series, low, used)
        if warnings and settings.strict:
            return SeriesOutcome(
                outcome="refused", code="outside_envelope", reasons=warnings, **about
            )
        record = place.begin(
            SeriesRecord(
                source=digest,
                source_series=series.uid,
                source_folder=str(found.root),
                model=used.name,
                identity=used.identity,
                options=derivation.options,
                begun=derivation.time,
                warnings=warnings,
                lineage=used.lineage,
            )
        )
        restored = restore_to_file(
            models.load(used, settings.device),
            low,
            Path(folder) / "restored.npy",
            device=pick_device(settings.device),
            batch=settings.batch,
            strength=settings.strength,
        )
        objections = (
            []
            if settings.strength == 0
            else judge_removal(low, restored).objections(RemovalLimits())
        )
        if objections:
            place.quarantine(record.model_copy(update={"quarantined": objections}))
            return SeriesOutcome(
                outcome="quarantined",
                code="not_noise",
                reasons=objections,
                warnings=warnings,
                **about,
            )
        derivation = _derivation(used, settings, record, warnings)
        write_series(found, series, low, restored, derivation, place, writer)
        place.finish(record)
    return SeriesOutcome(outcome="restored", folder=str(place.final), warnings=warnings, **about)


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
    found: FoundSeries,
    series: Series,
    low: NDArray[np.int16],
    restored: NDArray[np.int16],
    derivation: Derivation,
    place: Destination,
    writer: ThreadPoolExecutor,
) -> None:
    """Write an instance a slice into the draft: one is written while the next is made."""
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
        written = writer.submit(place.put, index + 1, image, values)
    if written is not None:
        written.result()


def _derivation(
    used: UsedModel,
    settings: DenoiseSettings,
    record: SeriesRecord | None = None,
    warnings: list[str] | None = None,
) -> Derivation:
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
        time=now() if record is None else record.begun,
        compression=settings.compress,
        keep_manufacturer=settings.keep_manufacturer,
        keep_private=settings.keep_private,
    )


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _line(outcome: SeriesOutcome) -> str:
    name = outcome.description or outcome.source
    line = f"{name}: {outcome.outcome}"
    if outcome.slices:
        line += f", {outcome.slices} slices in {outcome.seconds:.1f} s"
    return line + "".join(f"; {reason}" for reason in [*outcome.reasons, *outcome.warnings])


def publish(result: DenoiseResult) -> None:
    """Leave what became of each series on Prefect's page."""
    get_run_logger().info("%s series restored", result.count("restored"))
    if result.series:
        create_table_artifact(
            [
                row.model_dump(include={"description", "outcome", "reasons"})
                for row in result.series
            ],
            key="denoise",
            description=f"series restored to {result.destination}",
        )
