"""A derived series made again from its source, and compared with what lies there."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from flows import stores
from flows.compute.models import Models, load
from flows.compute.preparation import LEAST_SLICES
from flows.errors import FlowError
from hqinet.devices import pick_device
from hqinet.errors import HqinetError
from hqinet.restoration.restore import rounded
from storage.dicom.archive import SeriesRecord, source_digest
from storage.dicom.finding import FoundSeries, find_series, opened
from storage.dicom.series import order
from storage.dicom.source_images import SourceImage, changed_values, source_images
from storage.dicom.statement import Statement, read_statement, read_values
from storage.dicom.stored_words import decoded
from storage.errors import SourceError, StorageError
from storage.refusals import Refusal


class ReplayError(FlowError):
    """A model that is not the one which made a series; one line that says what to do."""


class Replayed(BaseModel):
    """How the instances of one derived series compare with what is made now."""

    series: str
    folder: str
    outcome: Literal["same", "differs", "cannot be replayed"]
    reason: str = ""
    instances: int = 0
    differing: int = 0
    """Pixels whose stored values differ."""
    largest: float = 0.0
    """HU of the largest difference."""


def derived_series(place: Path) -> Iterator[list[Statement]]:
    """The derived series in each folder at or below a place; what HQINet did not make is left out.

    Raises:
        SourceError: there is no such place.
    """
    if not place.is_dir():
        raise SourceError(f"{place} is not there: give a file or folder of derived series")
    for folder in (place, *sorted(path for path in place.rglob("*") if path.is_dir())):
        if folder.name.endswith(".draft"):
            continue
        series: dict[str, list[Statement]] = {}
        for file in sorted(folder.glob("*.dcm")):
            with suppress(SourceError):
                said = read_statement(file)
                series.setdefault(said.series, []).append(said)
        yield from series.values()


def replay_series(said: Sequence[Statement], record: SeriesRecord | None, device: str) -> Replayed:
    """As `replay_instances`, of all that a series has: what is not there is told."""
    found = replay_instances(said, record, device)
    lacking = 0 if record is None else record.instances - len(said)
    if lacking <= 0 or found.outcome == "cannot be replayed":
        return found
    reason = f"{lacking} of its instances are not here, or cannot be read"
    return found.model_copy(update={"outcome": "differs", "reason": reason})


def replay_instances(
    said: Sequence[Statement], record: SeriesRecord | None, device: str
) -> Replayed:
    """Restore the source of a derived series again, and compare some of its instances.

    Args:
        record: what the series was made of; None where that is not known.
    """
    folder = str(said[0].file.parent)
    about = {"series": said[0].series, "folder": folder, "instances": len(said)}
    if record is None:
        reason = "its record is neither beside its folder nor in this home"
        return Replayed(outcome="cannot be replayed", reason=reason, **about)
    try:
        differing, largest = _compared(said, record, device)
    except (StorageError, ReplayError, Refusal, HqinetError) as error:
        return Replayed(outcome="cannot be replayed", reason=str(error), **about)
    outcome = "differs" if differing else "same"
    return Replayed(outcome=outcome, differing=differing, largest=largest, **about)


def _compared(said: Sequence[Statement], record: SeriesRecord, device: str) -> tuple[int, float]:
    """Pixels that differ, and the largest difference in HU."""
    options = json.loads(record.options)
    models = Models(record.model)
    used = models.resolve()
    if used.identity != record.identity:
        raise ReplayError(
            f"model {record.model} is {used.identity[:12]} here, and was {record.identity[:12]} "
            "when the series was made: use the home or registry that it was made with"
        )
    if record.precision == "mixed" and used.network is None:
        raise ReplayError(
            f"it was made in mixed precision by HQINet {record.software}, whose code alone builds "
            f"model {record.model} for that: replay it with that version"
        )
    path = Path(record.source_path)
    scratch = tempfile.TemporaryDirectory(dir=stores.scratch())
    with scratch as folder, opened(path, stores.scratch()) as place:
        found = _source(place, record)
        series = order(found.headers, LEAST_SLICES)
        low, words = decoded(found.root, series, Path(folder))
        chosen = pick_device(device)
        blocks = rounded(
            load(used, options["dose"], device, record.precision),
            low,
            device=chosen,
            strength=options["strength"],
        )
        after = (hu for _, block in blocks for hu in block)
        sources = source_images(found.root, series, words)
        return _differences(said, sources, low, after)


def _source(place: Path, record: SeriesRecord) -> FoundSeries:
    found = [one for one in find_series(place)[0] if one.uid == record.source_series]
    if not found:
        raise SourceError(f"its source lies at {record.source_path} no more")
    if source_digest(found[0].root, found[0].headers) != record.source:
        raise SourceError(f"its source at {record.source_path} has changed since")
    return found[0]


def _differences(
    said: Sequence[Statement],
    sources: Iterator[SourceImage],
    low: NDArray[np.int16],
    restored: Iterator[NDArray[np.int16]],
) -> tuple[int, float]:
    of_source = {(one.source_instance, one.frame): one.file for one in said}
    differing, largest, compared = 0, 0.0, 0
    for source, before, after in zip(sources, low, restored, strict=True):
        there = of_source.get((source.instance, source.item.frame))
        if there is None:
            continue
        values = changed_values(source, before, after)
        apart = np.abs(values.astype(np.int64) - read_values(there))
        differing += int(np.count_nonzero(apart))
        largest = max(largest, float(apart.max() * abs(source.item.rescale[0])))
        compared += 1
    if compared != len(said):
        raise SourceError(f"{len(said) - compared} instances name no image of the source")
    return differing, largest
