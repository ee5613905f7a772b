"""Every series of a source restored, here or on a cluster, or a reason why it is not.

While a series is restored the next one is read and its slices are written. No Prefect: a command
by hand need not wait for its server.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from flows import stores
from flows.compute.models import Models
from flows.compute.preparation import (
    Prepared,
    Request,
    SeriesOutcome,
    about,
    left_aside,
    prepare,
)
from flows.compute.restoration import restore_alone, restore_series
from flows.compute.slice_display import SliceDisplay
from flows.compute.workers import LOCAL, on_devices
from flows.settings import ClusterSettings, DenoiseSettings
from hqinet.quality.policy import load_policy
from storage.dicom.finding import FoundSeries, find_series, opened
from storage.dicom.headers import FileHeader
from storage.errors import UnusableSourceError


class DenoiseResult(BaseModel):
    """What `hqinet denoise --json` prints."""

    destination: str
    series: list[SeriesOutcome]

    def count(self, outcome: str) -> int:
        """How many series ended so."""
        return Counter(row.outcome for row in self.series)[outcome]


def restore_source(
    source: Path,
    destination: Path,
    settings: DenoiseSettings,
    cluster: ClusterSettings,
    policy: str,
) -> DenoiseResult:
    """Restore every low-dose or plain CT series of a source; see the flow `denoise`.

    Raises:
        PolicyError: the policy cannot be read.
        SourceError: it cannot be read; UnusableSourceError: nor tomorrow.
        StorageError: there is no such model, or the registry does not answer.
    """
    limits = load_policy(policy).removal
    target = destination.absolute()
    with opened(source, stores.scratch()) as place:
        found, unreadable = find_series(place)
        if not found and not unreadable:
            raise UnusableSourceError(
                f"source {source} holds no CT image: give a folder, zip or file"
            )
        aside = {one.uid: left_aside(one, settings) for one in found}
        chosen = [one for one in found if aside[one.uid] is None]
        target.mkdir(parents=True, exist_ok=True)
        outcomes = [_unreadable(header) for header in unreadable]
        outcomes += [
            SeriesOutcome(outcome="left aside", reasons=[reason], **about(one))
            for one in found
            if (reason := aside[one.uid])
        ]
        request = Request(
            source=source,
            target=target,
            scratch=stores.scratch(),
            index=stores.restored(),
            refused=stores.refused(),
            settings=settings,
            limits=limits,
        )
        with SliceDisplay(sum(map(_slices, chosen))) as display:
            ended = restored(request, chosen, cluster, display)
            for number, outcome in enumerate(ended, 1):
                outcomes.append(outcome)
                name = described(outcome) if display.is_seen else identified(outcome)
                display.announce(f"{number}/{len(chosen)} {line_of(outcome, name)}")
    return DenoiseResult(destination=str(target), series=outcomes)


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
        for number, found in enumerate(chosen, 1):
            read = coming.pop().result()
            coming = [reader.submit(prepared, one) for one in chosen[number : number + 1]]
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


def described(outcome: SeriesOutcome) -> str:
    """What a person at the terminal knows a series by."""
    return outcome.description or outcome.source


def identified(outcome: SeriesOutcome) -> str:
    """What a log may know it by: descriptions are free text, folders are called after people."""
    return outcome.source_series or Path(outcome.source).name


def line_of(outcome: SeriesOutcome, name: str) -> str:
    """What became of a series, in a line."""
    line = f"{name}: {outcome.outcome}"
    if outcome.seconds:
        line += f", {outcome.slices} slices in {outcome.seconds:.1f} s"
    return line + "".join(f"; {reason}" for reason in [*outcome.reasons, *outcome.warnings])
