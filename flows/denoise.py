"""The denoise flow: low-dose series in, derived series out, beside a record of how each was made.

A series is restored whole or not at all. What cannot be read is refused, what lies outside of what
the model knows is said (refused with `strict`), and what a model did that is not the removal of
noise is kept from use.
"""

from pathlib import Path

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact

from flows import events
from flows.compute.sources import DenoiseResult, identified, line_of, restore_source
from flows.operations.journal import note
from flows.settings import ClusterSettings, DenoiseSettings, Settings
from flows.states import QUARANTINED, REFUSED, ended

DEFAULTS = Settings()


@flow(name="denoise")
def denoise(
    source: str,
    destination: str,
    settings: DenoiseSettings = DEFAULTS.denoise,
    cluster: ClusterSettings = DEFAULTS.cluster,
    policy: str = DEFAULTS.policy,
) -> DenoiseResult:
    """Restore every low-dose or plain CT series of a source.

    Args:
        source: A folder, a zip or a file of DICOM, in any layout; it is never written to.
        destination: Folder in which each derived series gets a folder.
        settings: Which series, which model, how much.
        cluster: Where Dask runs; without one, series are restored in this process.
        policy: Name of a policy or a TOML file, whose table `removal` bounds what may be removed.
    """
    result = restore_source(Path(source), Path(destination), settings, cluster, policy)
    tell(result)
    return ended(result, *_ending(result))


def _ending(result: DenoiseResult) -> tuple[str | None, str]:
    """The state that the run ends in, None for the usual one, and why."""
    for name, outcome in ((QUARANTINED, "quarantined"), (REFUSED, "refused")):
        rows = [row for row in result.series if row.outcome == outcome]
        if rows:
            return (
                name,
                f"{len(rows)} series {outcome}, the first: {line_of(rows[0], identified(rows[0]))}",
            )
    return None, ""


def tell(result: DenoiseResult) -> None:
    """Say what became of each series on Prefect's page, in the journal, and by events."""
    _publish(result)
    home, run = Settings().home.absolute(), str(runtime.flow_run.id)
    for row in result.series:
        facts = row.model_dump(include={"model", "code", "slices", "seconds"})
        facts |= {"derived": row.series, "run": run}
        note(home, row.source_series, row.outcome, **facts)
    events.series_ended(result.series)


def _publish(result: DenoiseResult) -> None:
    get_run_logger().info("%s series restored", result.count("restored"))
    if result.series:
        create_table_artifact(
            [
                {
                    "series": identified(row),
                    **row.model_dump(include={"outcome", "code", "model", "slices", "seconds"}),
                    "reasons": [*row.reasons, *row.warnings],
                }
                for row in result.series
            ],
            key="denoise",
            description=f"series restored to {result.destination}",
        )
