"""What a derived series says of its making: in every instance, and in the record beside it."""

import json
from datetime import datetime

from flows.compute.models import UsedModel
from flows.settings import DenoiseSettings
from hqinet.restoration.export import USUAL_DOSE
from storage.dicom.archive import SeriesRecord
from storage.dicom.derived import Derivation, series_uid
from storage.dicom.finding import FoundSeries
from storage.provenance import code_version


def options(settings: DenoiseSettings) -> str:
    """What decides on an instance beside source and model, in one canonical text."""
    chosen = {
        "strength": settings.strength,
        "dose": settings.dose or USUAL_DOSE,
        "keep_manufacturer": settings.keep_manufacturer,
        "keep_private": settings.keep_private,
    }
    return json.dumps(chosen, sort_keys=True)


def new_record(
    used: UsedModel, settings: DenoiseSettings, source: FoundSeries, digest: str, path: str
) -> SeriesRecord:
    """The record of a series that is to be restored now.

    Args:
        source: the series as it was found.
        digest: of its files.
        path: where they lie.
    """
    images = (header.instance for header in source.headers)
    return SeriesRecord(
        series=series_uid(source.uid, images, used.identity, options(settings)),
        source=digest,
        source_series=source.uid,
        source_path=path,
        model=used.name,
        identity=used.identity,
        options=options(settings),
        compression=settings.compress,
        software=code_version(),
        # Of this machine's zone, as the scanner's times usually are.
        begun=datetime.now().astimezone(),
        lineage=_public(used),
    )


def derivation_of(used: UsedModel, settings: DenoiseSettings, record: SeriesRecord) -> Derivation:
    """What every instance says of how it was made."""
    text = (
        f"Noise reduction by HQINet, model {used.name} ({used.identity[:12]}), strength "
        f"{settings.strength:g}, input taken for {settings.dose or USUAL_DOSE:.0%} of full dose."
    )
    if record.precision == "mixed":
        text += " Small maps were computed in bf16."
    if record.warnings:
        text += " Outside the training data: " + "; ".join(record.warnings) + "."
    return Derivation(
        series=record.series,
        model=used.name,
        identity=used.identity,
        software=record.software,
        options=record.options,
        description=text,
        contribution="; ".join(f"{name} {value}" for name, value in _public(used).items()),
        time=record.begun,
        compression=record.compression,
        keep_manufacturer=settings.keep_manufacturer,
        keep_private=settings.keep_private,
    )


def _public(used: UsedModel) -> dict[str, str]:
    """The lineage without the patients trained on: a series goes where they must not be known."""
    return {name: value for name, value in used.lineage.items() if not name.endswith("patients")}
