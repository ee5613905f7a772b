"""The denoise flow: low-dose series in, derived series out, beside a record of how each was made.

A series is restored whole or not at all. What cannot be read is refused, what lies outside of what
the model knows is said (refused with `strict`), and what a model did that is not the removal of
noise is kept from use.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel

from flows import events, stores
from flows.compute.models import Models
from flows.compute.progress import announce
from flows.compute.restoration import Request, SeriesOutcome, restore_series
from flows.settings import DenoiseSettings, Settings
from flows.states import QUARANTINED, REFUSED, ended
from storage.dicom.finding import find_series, opened

DEFAULTS = Settings().denoise


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
            outcome = restore_series(Request(series, target, models, settings, writer))
            outcome = outcome.model_copy(update={"seconds": round(monotonic() - begun, 2)})
            announce(f"{number}/{len(found)} {_line(outcome)}")
            outcomes.append(outcome)
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
