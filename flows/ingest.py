"""The ingest flow: a delivery of DICOM becomes one commit of the dataset, or none.

Inventory, plan, convert, merge, publish: headers are read, series paired, pairs converted on Dask,
and all that was decided is committed at once. Whatever is wrong refuses that series or pair alone.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import opaque

from flows import stores
from flows.commit_news import CommitNews
from flows.compute.workers import Workers
from flows.retries import TRIED_AGAIN
from flows.settings import ClusterSettings, IngestSettings, Settings
from flows.states import REFUSED, ended
from storage.dataset.rows import Accepted, Refused
from storage.errors import SourceError
from storage.ingest import conversion, delivery, outcome, planning, pseudonyms
from storage.ingest.cohort import CohortRules, read_cohort_file
from storage.ingest.delivery import Delivery, Simulator
from storage.ingest.inventory import Inventory, take_inventory
from storage.ingest.outcome import Outcome
from storage.ingest.planning import Plan
from storage.ingest.simulation import SimulationRules, read_detector_file

DEFAULTS = Settings()
Item = TypeVar("Item")
Result = TypeVar("Result")

_hidden: dict[str, Path] = {}
"""Folders of this process's deliveries by the names that stand for them on Prefect's page."""


@flow(name="ingest")
def ingest(
    source: str,
    cohort: str | None = None,
    settings: IngestSettings = DEFAULTS.ingest,
    cluster: ClusterSettings = DEFAULTS.cluster,
) -> Outcome:
    """Read a folder of DICOM into the dataset.

    Args:
        source: Folder of the delivery, in any layout; it is never written to.
        cohort: Name of the delivery; default: the cohort file's, or the folder's.
        settings: How the cohort is read, checked and split.
        cluster: Where Dask runs.
    """
    opened = opaque(open_delivery(_hidden.get(source, Path(source)), cohort, settings))
    before = stores.dataset().snapshot().commit
    news = CommitNews(stores.announced(), stores.dataset())
    news.begin()
    with Workers(cluster, stores.scratch()) as workers:
        # Opaque: Prefect would look for futures in every slice of every patient.
        found = opaque(inventory(opened, workers))
        planned = opaque(plan(opened, found))
        rows = opaque(convert(opened, planned, workers, settings.retries))
    merged = merge(opened, found, planned, rows)
    news.tell()
    publish(merged)
    if merged.commit == before:
        return merged
    return ended(merged, REFUSED if merged.refused else None, refusals_in_a_line(merged))


def shown_source(source: Path, settings: IngestSettings) -> str:
    """What stands for a delivery's folder in Prefect's database: its path, or a digest of it.

    A digest is known to this process alone, where `ingest` and `pipeline` take it for the path.
    """
    rules = _rules(settings)
    if not rules.pseudonymise:
        return str(source)
    shown = _pseudonyms(rules).path(str(source))
    _hidden[shown] = source
    return shown


def open_delivery(source: Path, cohort: str | None, settings: IngestSettings) -> Delivery:
    """Read the cohort file and the pseudonyms' secret, and make the dataset if there is none."""
    rules = _rules(settings)
    names = _pseudonyms(rules)
    dataset = stores.dataset()
    dataset.create()
    name = delivery.cohort_name(source, cohort, rules, names)
    delivery.refuse_phantoms(dataset, name)
    return Delivery(
        source=source,
        cohort=name,
        dataset=dataset,
        memory=stores.memory(),
        scratch=stores.scratch(),
        rules=rules,
        names=names,
        limits=settings.limits,
        split_targets=settings.split_targets,
        simulate=_simulator(rules),
        made_here=stores.restored().uids(),
    )


def _rules(settings: IngestSettings) -> CohortRules:
    rules = read_cohort_file(settings.cohort_file) if settings.cohort_file else CohortRules()
    simulate = _simulation(settings, rules.simulate)
    if simulate is None:
        return rules
    from flows.compute.dose_simulation import with_version  # noqa: PLC0415 - as `_simulator`

    return rules.model_copy(update={"simulate": with_version(simulate)})


def _simulation(settings: IngestSettings, rules: SimulationRules | None) -> SimulationRules | None:
    """The cohort file's rules, with what the settings say instead."""
    if settings.simulate_dose is not None:
        rules = SimulationRules(dose=settings.simulate_dose)
    update: dict[str, object] = {}
    if settings.realisations is not None:
        update["realisations"] = settings.realisations
    if settings.detector is not None:
        update["detector"] = read_detector_file(settings.detector)
    if rules is None and update:
        raise SourceError(
            f"{' and '.join(update)}: no dose is to be simulated: give --simulate-dose, or a "
            "cohort file with [simulate]"
        )
    return rules and rules.model_copy(update=update)


def _simulator(rules: CohortRules) -> Simulator | None:
    """What makes low dose from full dose, where the delivery asks for it."""
    if rules.simulate is None:
        return None
    # torch takes seconds to import, and few deliveries need it.
    from flows.compute.dose_simulation import simulate_partner  # noqa: PLC0415

    return simulate_partner


def _pseudonyms(rules: CohortRules) -> pseudonyms.Pseudonyms:
    secret = os.environ.get(pseudonyms.VARIABLE)
    return pseudonyms.pseudonyms(pseudonymise=rules.pseudonymise, secret=secret)


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def inventory(opened: Delivery, workers: Workers) -> Inventory:
    """Look at the headers that are new; many of them on the workers."""

    def run(
        function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | Exception]]:
        # What has new headers has new pixels: the workers come up while this process reads.
        waiting = deque(items)
        if waiting:
            workers.start()
        while waiting and not workers.are_up:
            item = waiting.popleft()
            yield item, function(item)
        yield from workers.run(function, waiting, retries=1)

    found = take_inventory(opened, run)
    kinds = ", ".join(f"{left.count} {kind}" for kind, left in found.left.items())
    get_run_logger().info("%s files; left aside: %s", len(found.records), kinds or "none")
    return found


@task(cache_policy=NO_CACHE)
def plan(opened: Delivery, found: Inventory) -> Plan:
    """Find each patient's pair, and a reason for every series that is in none."""
    planned = planning.plan(opened, found)
    get_run_logger().info(
        "%s pairs, %s refusals by their headers", len(planned.pairs), len(planned.refusals)
    )
    return planned


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def convert(
    opened: Delivery, planned: Plan, workers: Workers, retries: int
) -> list[Accepted | Refused]:
    """Convert the pairs that are new or changed: one future a pair, rows as they complete."""

    def run(
        function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | Exception]]:
        return workers.run(function, items, retries)

    logger, rows = get_run_logger(), []
    for row in conversion.convert(opened, planned, run):
        became = row.code if isinstance(row, Refused) else f"{row.slices} slices"
        logger.info("%s: %s", row.patient, became)
        rows.append(row)
    return rows


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def merge(
    opened: Delivery, found: Inventory, planned: Plan, rows: list[Accepted | Refused]
) -> Outcome:
    """Decide on the latest commit what changes, and commit it; again if another came first."""
    return outcome.merge(opened, found, planned, rows)


def refusals_in_a_line(merged: Outcome) -> str:
    """How many were refused, and the first with its reason."""
    if not merged.refused:
        return ""
    first = merged.refused[0].shown()
    return (
        f"{len(merged.refused)} refused, the first: {first['patient'] or first['source']}: "
        f"{first['reason']}; all stand in the run's artifact"
    )


def publish(merged: Outcome) -> None:
    """Log the outcome and leave the refusals as a table on Prefect's page."""
    codes = Counter(refused.code for refused in merged.refused)
    get_run_logger().info(
        "commit %s: %s accepted, %s changed, %s unchanged, refused: %s",
        merged.commit,
        len(merged.accepted),
        len(merged.changed),
        merged.unchanged,
        dict(codes) or "none",
    )
    if merged.refused:
        counts = ", ".join(f"{number} {code}" for code, number in codes.most_common())
        create_table_artifact(
            [refused.shown() for refused in merged.refused],
            key="ingest-refusals",
            description=f"{len(merged.refused)} refusals of the delivery of commit "
            f"{merged.commit}: {counts}",
        )
