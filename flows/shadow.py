"""Shadow mode: a challenger restores live series beside the champion; nothing of it is sent.

What it made lies in HOME/shadow, one folder a series with the record of how it was made. Without a
full dose there is no telling how good it is; what was removed from real patients of today can
still be set beside the verdict.
"""

from collections import Counter
from contextlib import suppress

from prefect import flow, get_run_logger
from pydantic import BaseModel

from flows import stores
from flows.compute import shadows
from flows.compute.sources import restore_source
from flows.evaluations import champion
from flows.operations.arrivals import Taken, look_at, require_inbox
from flows.settings import ClusterSettings, Settings
from storage.errors import UnusableSourceError

DEFAULTS = Settings()
DAY = 24 * 3600
QUIET = 60
"""Seconds without a change after which a study is taken."""


class ShadowResult(BaseModel):
    """What a challenger did in the shadow; without one there is no version."""

    version: int | None
    outcomes: dict[str, int]


@flow(name="shadow")
def shadow(
    inbox: str = "denoise-inbox",
    quiet: float = QUIET,
    days: float = 7,
    cluster: ClusterSettings = DEFAULTS.cluster,
) -> ShadowResult:
    """Restore the live studies with the newest version, if it is not the champion.

    Args:
        inbox: Folder of studies; a relative one lies in the home.
        quiet: Seconds without a change after which a study is taken.
        days: Studies that came before that are passed over: a version need not restore years.
        cluster: Where Dask runs.
    """
    versions, standing = stores.versions(), champion()
    newest = versions[0].version if versions else None
    if standing is None or newest in {None, standing.version}:
        get_run_logger().info("no challenger: the newest version is the champion, or there is none")
        return ShadowResult(version=None, outcomes={})
    home, outcomes = Settings().home.absolute(), Counter[str]()
    taken = Taken(home / "taken" / f"shadow-{newest}.json")
    # All else as the champion has it.
    settings = Settings().denoise.model_copy(update={"model": str(newest)})
    for path in sorted(require_inbox(inbox).iterdir()):
        arrival = look_at(path)
        if arrival.age > days * DAY or not taken.lacks(arrival, quiet):
            continue
        # Of what holds no images, the inbox itself has told.
        with suppress(UnusableSourceError):
            result = restore_source(path, shadows.folder(), settings, cluster, Settings().policy)
            outcomes.update(row.outcome for row in result.series)
        taken.add(arrival)
    get_run_logger().info("version %s in the shadow: %s", newest, dict(outcomes))
    return ShadowResult(version=newest, outcomes=outcomes)
