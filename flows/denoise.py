"""The denoise flow: low-dose series in, derived series out, beside a record of how each was made.

A series is restored whole or not at all. What cannot be read is refused, what lies outside of what
the model knows is said (refused with `strict`), and what a model did that is not the removal of
noise is kept from use. While a series is restored the next one is read and its slices are written.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel

from flows import events, stores
from flows.compute.models import DenoiseError, Models
from flows.compute.progress import SliceDisplay
from flows.compute.restoration import (
    Prepared,
    Request,
    SeriesOutcome,
    about,
    left_aside,
    prepare,
    restore_alone,
    restore_series,
)
from flows.compute.workers import LOCAL, on_devices
from flows.settings import ClusterSettings, DenoiseSettings, Settings
from flows.states import QUARANTINED, REFUSED, ended
from storage.dicom.finding import FoundSeries, find_series, opened
from storage.dicom.headers import FileHeader

DEFAULTS = Settings()


class DenoiseResult(BaseModel):
    """What `hqinet denoise --json` prints."""

    destination: str
    series: list[SeriesOutcome]

    def count(self, outcome: str) -> int:
        """How many series ended so."""
        return Counter(row.outcome for row in self.series)[outcome]


@flow(name="denoise")
def denoise(
    source: str,
    destination: str,
    settings: DenoiseSettings = DEFAULTS.denoise,
    cluster: ClusterSettings = DEFAULTS.cluster,
) -> DenoiseResult:
    """Restore every low-dose or plain CT series of a source.

    Args:
        source: A folder, a zip or a file of DICOM, in any layout; it is never written to.
        destination: Folder in which each derived series gets a folder.
        settings: Which series, which model, how much.
        cluster: Where Dask runs; without one, series are restored in this process.
    """
    named, target = Path(source), Path(destination).absolute()
    with opened(named, stores.scratch()) as place:
        found, unreadable = find_series(place)
        if not found and not unreadable:
            raise DenoiseError(f"source {source} holds no CT image: give a folder, zip or file")
        aside = {one.uid: left_aside(one, settings) for one in found}
        chosen = [one for one in found if aside[one.uid] is None]
        target.mkdir(parents=True, exist_ok=True)
        outcomes = [_unreadable(header) for header in unreadable]
        outcomes += [
            SeriesOutcome(outcome="left aside", reasons=[reason], **about(one))
            for one in found
            if (reason := aside[one.uid])
        ]
        request = Request(named, target, stores.scratch(), stores.restored(), settings)
        with SliceDisplay(sum(map(_slices, chosen))) as display:
            ended_series = restored(request, chosen, cluster, display)
            for number, outcome in enumerate(ended_series, 1):
                outcomes.append(outcome)
                display.announce(f"{number}/{len(chosen)} {_line(outcome)}")
    result = DenoiseResult(destination=str(target), series=outcomes)
    publish(result)
    events.series_ended(outcomes)
    return ended(result, *_ending(result))


def _ending(result: DenoiseResult) -> tuple[str | None, str]:
    """The state that the run ends in, None for the usual one, and why."""
    for name, outcome in ((QUARANTINED, "quarantined"), (REFUSED, "refused")):
        rows = [row for row in result.series if row.outcome == outcome]
        if rows:
            return name, f"{len(rows)} series {outcome}, the first: {_line(rows[0])}"
    return None, ""


def restored(
    request: Request,
    chosen: Sequence[FoundSeries],
    cluster: ClusterSettings,
    display: SliceDisplay,
) -> Iterator[SeriesOutcome]:
    """Restore series here, or on the workers of a cluster that was asked for.

    The model is resolved once a series, in this process, which is the one that knows the registry.
    """
    models = Models(request.settings.model)
    if cluster.where == LOCAL:
        yield from _here(request, chosen, models, display)
        return
    asked = ((found, models.resolve()) for found in chosen)
    outcomes = on_devices(
        partial(restore_alone, request),
        asked,
        cluster,
        request.scratch,
        request.settings.device,
        lambda item: item[0].description or item[0].uid,
    )
    for (found, _), outcome in outcomes:
        (display.advance if outcome.seconds else display.leave_out)(_slices(found))
        yield outcome


def _here(
    request: Request, chosen: Sequence[FoundSeries], models: Models, display: SliceDisplay
) -> Iterator[SeriesOutcome]:
    """Restore series one after another, the next one being read meanwhile."""

    def prepared(found: FoundSeries) -> Prepared | SeriesOutcome:
        return prepare(request, found, models.resolve())

    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(prepared, one) for one in chosen[:1]]
        for found, following in zip(chosen, [*chosen[1:], None], strict=True):
            read = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(prepared, following))
            if isinstance(read, Prepared):
                yield restore_series(request, read, display.advance)
            else:
                display.leave_out(_slices(found))
                yield read


def _slices(found: FoundSeries) -> int:
    return sum(len(header.frames) for header in found.headers)


def _unreadable(header: FileHeader) -> SeriesOutcome:
    return SeriesOutcome(
        outcome="refused",
        source=header.path,
        description="",
        code=str(header.code),
        reasons=[header.reason or ""],
    )


def _line(outcome: SeriesOutcome) -> str:
    name = outcome.description or outcome.source
    line = f"{name}: {outcome.outcome}"
    if outcome.seconds:
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
