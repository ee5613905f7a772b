"""The road back from a derived series: what made it, and every series that a model has made."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows import lineage, stores
from flows.compute.models import STARTER
from flows.compute.replay import Replayed, derived_series, replay_instances, replay_series
from flows.evaluations import SPLIT, stored_summary
from flows.operations import journal
from flows.settings import Settings
from hqinet.restoration.starter import starter_card, starter_lineage
from storage.dicom.archive import Destination, SeriesRecord
from storage.dicom.derived import derived_uid
from storage.dicom.statement import Statement, read_statement
from storage.errors import SourceError
from storage.models.versions import ModelVersion

FIGURES = ("psnr", "psnr_window", "ssim_window", "rmse_body")
"""Of an evaluation, the mean of each over the test patients is told."""


class Explanation(BaseModel):
    """What `hqinet explain --json` prints; None where nobody here knows."""

    file: str
    series: str
    source_series: str
    source_instance: str
    source_path: str | None
    model: str
    software: str
    made: str
    description: str
    warnings: list[str] | None
    registered: bool
    identity_agrees: bool | None
    """Whether the instance's DeviceUID is that of the model in the record."""
    lineage: dict[str, str]
    training_patients: list[str] | None
    verdict: dict[str, str] | None
    evaluation: dict[str, dict[str, float]] | None
    """Figures of the test patients by image: low dose and restored."""
    card: str | None
    """Of the starter: what it was trained on, in words."""


class Recalled(BaseModel):
    """A series that a model has made, as `hqinet recall --json` prints it."""

    series: str
    source_series: str
    model: str
    identity: str
    begun: str
    folder: str
    present: bool
    """Whether it still lies there."""
    sent: list[str]
    """Destinations that took it."""


def explain(file: Path) -> Explanation:
    """Follow a derived instance back to its model, and that to its training data.

    The instance says the most; the record beside it or in this home, and the registry, the rest.

    Raises:
        SourceError: no derived instance.
    """
    said = read_statement(file)
    record = record_of(said, file.parent)
    version = _version(said)
    stated = dict(record.lineage) if record else said.lineage
    return Explanation(
        file=str(file),
        series=said.series,
        source_series=said.source_series,
        source_instance=said.source_instance,
        source_path=record.source_path if record else None,
        model=said.model,
        software=said.software,
        made=said.made,
        description=said.description,
        warnings=record.warnings if record else None,
        registered=version is not None,
        identity_agrees=derived_uid("device", record.identity) == said.device if record else None,
        lineage={name: value for name, value in stated.items() if not name.endswith("patients")},
        training_patients=_patients(said, version),
        verdict=_verdict(version),
        evaluation=_figures(version),
        card=starter_card() if said.model == STARTER else None,
    )


def record_of(said: Statement, folder: Path) -> SeriesRecord | None:
    """The record of a derived series: beside its folder, else in this home's index."""
    beside = Destination(folder.absolute().parent, said.series).record()
    if beside is not None:
        return beside
    known = (entry.record for entry in stores.restored().entries())
    return next((record for record in known if record.series == said.series), None)


def replay(place: Path, device: str) -> list[Replayed]:
    """Make every derived series at a place again from its source, and compare pixels.

    Args:
        place: a file, or a folder that holds series at any depth.

    Raises:
        SourceError: there is none.
    """
    if place.is_file():
        said = read_statement(place)
        return [replay_instances([said], record_of(said, place.parent), device)]
    found = []
    for said in derived_series(place):
        folder = said[0].file.parent
        found.append(replay_series(said, record_of(said[0], folder), device))
    if not found:
        raise SourceError(f"{place} holds no derived series: give a file or folder of them")
    return found


def recall(model: str) -> list[Recalled]:
    """Every series that a version has made from this home, and where it was written and sent.

    Args:
        model: a version, an alias, or starter.

    Raises:
        RegistryError: nothing here was made by it, and the registry does not know it.
    """
    entries = list(stores.restored().entries())
    if model != STARTER and all(entry.record.model != model for entry in entries):
        model = str(stores.registry().version(model).version)
    sent = journal.destinations(Settings().home.absolute())
    return [
        Recalled(
            series=entry.record.series,
            source_series=entry.record.source_series,
            model=entry.record.model,
            identity=entry.record.identity,
            begun=entry.record.begun.isoformat(timespec="seconds"),
            folder=entry.folder,
            present=Path(entry.folder).is_dir(),
            sent=sorted(sent.get(entry.record.series, ())),
        )
        for entry in entries
        if entry.record.model == model
    ]


def _version(said: Statement) -> ModelVersion | None:
    """The registered version, if this registry has it: by number and run, for numbers recur."""
    if said.model == STARTER:
        return None
    return next(
        (
            row
            for row in stores.versions()
            if str(row.version) == said.model and row.run == said.lineage.get("run")
        ),
        None,
    )


def _patients(said: Statement, version: ModelVersion | None) -> list[str] | None:
    if said.model == STARTER:
        return starter_lineage().training_patients
    known = lineage.patients(version, lineage.PATIENTS) if version else None
    return None if known is None else sorted(known)


def _verdict(version: ModelVersion | None) -> dict[str, str] | None:
    tags = version.tags if version else {}
    return {name: value for name, value in tags.items() if name.startswith("verdict")} or None


def _figures(version: ModelVersion | None) -> dict[str, dict[str, float]] | None:
    if version is None or not version.tags.get("commit", "").isdigit():
        return None
    summary = stored_summary(version.run, int(version.tags["commit"]), SPLIT)
    if summary is None:
        return None
    table: Any = summary.table()
    means = table.groupby("image")[[name for name in FIGURES if name in table]].mean()
    return {str(image): row.round(4).to_dict() for image, row in means.iterrows()}
