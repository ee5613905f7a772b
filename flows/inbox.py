"""The flows of the two inboxes: a delivery that lies quiet is taken, once.

What was taken is remembered by digest, so that a night without news does nothing, and a delivery
with refusals is reported when it comes, not every night again.
"""

import logging
from pathlib import Path

from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel
from pydicom.uid import UID

from flows import stores
from flows.compute.models import Models
from flows.compute.preparation import SeriesOutcome
from flows.compute.sources import DenoiseResult
from flows.denoise import denoise, tell
from flows.errors import FlowError
from flows.events import AUTOMATIC, sending_given_up
from flows.ingest import ingest, refusals_in_a_line, shown_source
from flows.operations.arrivals import (
    Arrival,
    PutOff,
    Taken,
    as_prefix,
    look_at,
    require_inbox,
)
from flows.operations.destinations import SendError, require_destinations
from flows.operations.outbox import Outbox
from flows.settings import ClusterSettings, DenoiseSettings, IngestSettings, Settings
from flows.states import QUARANTINED, REFUSED, ended
from storage.errors import UnusableSourceError

DEFAULTS = Settings()
logger = logging.getLogger("hqinet.inbox")
QUIET = 60
"""Seconds without a change after which a delivery is taken for complete."""


class StudiesFailedError(FlowError):
    """Studies of an inbox that could not be restored; one line. They are tried again, later."""


class InboxResult(BaseModel):
    """What became of an inbox: what was taken, and what still arrives or waits after a failure."""

    taken: list[str]
    arriving: list[str]


@flow(name="ingest inbox")
def ingest_inbox(
    inbox: str = "inbox",
    quiet: float = QUIET,
    settings: IngestSettings = DEFAULTS.ingest,
    cluster: ClusterSettings = DEFAULTS.cluster,
) -> InboxResult:
    """Ingest the inbox as one delivery, when it lies quiet and is not what was taken last.

    Args:
        inbox: Folder, of which a relative one lies in the home, or the prefix of an object store.
            The cohort is called after it.
        quiet: Seconds without a change after which it is taken.
        settings: How the cohort is read, checked and split.
        cluster: Where Dask runs.
    """
    prefix, taken = as_prefix(inbox, Settings().home.absolute()), _taken("ingest")
    arrival = look_at(require_inbox(inbox)) if prefix is None else prefix.look()
    if not taken.lacks(arrival, quiet):
        return _result([], [arrival], taken)
    if prefix is not None:
        prefix.fetch()
    dataset = stores.dataset()
    dataset.create()
    before = dataset.snapshot().commit
    with tags(AUTOMATIC):
        outcome = ingest(shown_source(arrival.path, settings), None, settings, cluster)
    taken.add(arrival)
    # What stood refused before is no news.
    name = REFUSED if outcome.refused and outcome.commit > before else None
    return ended(_result([arrival], [], taken), name, refusals_in_a_line(outcome))


@flow(name="denoise inbox")
def denoise_inbox(
    inbox: str = "denoise-inbox",
    destination: str = "denoised",
    quiet: float = QUIET,
    settings: DenoiseSettings = DEFAULTS.denoise,
    strict: bool = False,
    policy: str = DEFAULTS.policy,
) -> InboxResult:
    """Restore every study of the inbox, one folder, zip or file each, that lies quiet and is new.

    Args:
        inbox: Folder of studies; a relative one lies in the home.
        destination: Folder for the derived series, one folder each; relative as above.
        quiet: Seconds without a change after which a study is taken.
        settings: Which series, which model, how much.
        strict: Refuse what lies outside of the model's training data, whatever settings say.
        policy: Name of a policy or a TOML file, whose table `removal` bounds what may be removed.
    """
    # One parameter of a deployment that is given by itself: others are as the environment has them.
    settings = settings.model_copy(update={"strict": strict or settings.strict})
    folder, taken, put_off = require_inbox(inbox), _taken("denoise"), PutOff(_memory("put-off"))
    arrivals = [look_at(path) for path in sorted(folder.iterdir())]
    due = [x for x in arrivals if taken.lacks(x, quiet) and x not in put_off]
    if due:
        # Without a model, no study can be restored.
        Models(settings.model).resolve()
    results: list[DenoiseResult] = []
    failures: dict[str, Exception] = {}
    for arrival in due:
        try:
            result = _restored(arrival, destination, settings, policy)
            queue_for_sending(result)
            taken.add(arrival)
        except Exception as error:  # noqa: BLE001 - it keeps no other study from being restored
            failures[_shown(arrival)] = error
            put_off.add(arrival)
        else:
            results.append(result)
    said = _summary(results)
    if failures:
        rows = [{"study": name, "why": str(error)} for name, error in failures.items()]
        create_table_artifact(key="failed-studies", table=rows, description="tried again later")
        first = rows[0]
        raise StudiesFailedError(
            f"{len(failures)} of {len(due)} studies could not be restored, the first: "
            f"{first['study']}: {first['why']}; of the others {said}"
        )
    waiting = [arrival for arrival in arrivals if arrival not in due]
    name = QUARANTINED if _count(results, "quarantined") else None
    name = name or (REFUSED if _count(results, "refused") else None)
    return ended(_result(due, waiting, taken), name, said)


def _restored(
    arrival: Arrival, destination: str, settings: DenoiseSettings, policy: str
) -> DenoiseResult:
    """Restore a study; one of which nothing can be made is refused, and not asked for again."""
    try:
        with tags(AUTOMATIC):
            return denoise(str(arrival.path), destination, settings, policy=policy)
    except UnusableSourceError as error:
        refused = SeriesOutcome(
            outcome="refused",
            source=arrival.path.name,
            description="",
            code="unusable_source",
            reasons=[str(error)],
        )
        result = DenoiseResult(destination=destination, series=[refused])
        tell(result)
        return result


def _shown(arrival: Arrival) -> str:
    """What a study is called to the operator: its UID, or a digest; a name may be a person's."""
    name = arrival.path.name
    return name if UID(name).is_valid else f"study of digest {arrival.digest[:12]}"


def _summary(results: list[DenoiseResult]) -> str:
    """What became of all series; by codes and UIDs, for names of folders may be of persons."""
    counts = ", ".join(
        f"{_count(results, outcome)} {outcome}"
        for outcome in ("restored", "refused", "quarantined")
    )
    rows = [row for one in results for row in one.series if row.code]
    first = f"; the first: {rows[0].code} {rows[0].source_series}".rstrip() if rows else ""
    return f"series: {counts}{first}; why stands with the runs below"


def queue_for_sending(result: DenoiseResult) -> None:
    """Put what was restored into the outbox, from where the sender takes it.

    What was restored before is put there, too: the run that did it may have died before this.
    """
    settings = Settings()
    try:
        require_destinations(settings.send)
    except SendError as error:
        # It waits until the destination is named: a series that is restored is not lost by that.
        logger.warning("%s", error)
    outbox = Outbox(settings.home.absolute())
    for row in result.series:
        if row.outcome in {"restored", "done before"}:
            for name in settings.send.restored:
                job = outbox.put(Path(row.folder), name, row.source_series)
                if job.alarms:
                    sending_given_up(job)


def _taken(flow_name: str) -> Taken:
    return Taken(_memory(flow_name))


def _memory(name: str) -> Path:
    return Settings().home.absolute() / "taken" / f"{name}.json"


def _result(due: list[Arrival], rest: list[Arrival], taken: Taken) -> InboxResult:
    arriving = [a.path.name for a in rest if not a.is_empty and a not in taken]
    get_run_logger().info("%d taken, %d still arriving", len(due), len(arriving))
    return InboxResult(taken=[arrival.path.name for arrival in due], arriving=arriving)


def _count(results: list[DenoiseResult], outcome: str) -> int:
    return sum(result.count(outcome) for result in results)
