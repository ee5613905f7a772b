"""The ingest flow: a delivery of DICOM becomes one commit of the dataset, or none.

Headers are scanned, series paired, pairs converted on Dask, and all that was decided is committed
at once. Whatever is wrong refuses that series or pair alone, with a reason.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import opaque
from pydantic import BaseModel

from flows import stores
from flows.compute.workers import Workers
from flows.settings import ClusterSettings, IngestSettings, Settings
from storage.dataset import volumes
from storage.dataset.catalog import Row
from storage.dataset.versions import Dataset, Snapshot
from storage.dicom.headers import Record
from storage.errors import DatasetError, SourceError, StorageError
from storage.ingest import merge, pseudonyms
from storage.ingest.cohort import SYNTHETIC, CohortRules, read_cohort_file
from storage.ingest.conversion import Conversion, Memory, refused_row
from storage.ingest.inventory import Chunk, ChunkReader, Inventory, take_inventory
from storage.ingest.merge import Merged
from storage.ingest.pairing import Pair, Plan, Refusal, plan
from storage.ingest.pseudonyms import Pseudonyms
from storage.refusals import Code
from storage.stores.location import Location

DEFAULTS = Settings()


class Accepted(BaseModel):
    """A new or changed patient."""

    patient: str
    slices: int
    split: str


class Refused(BaseModel):
    """A refused patient, series or file."""

    source: str
    patient: str | None
    code: str
    reason: str
    files: list[str]


class IngestResult(BaseModel):
    """What `hqinet ingest --json` prints; refusals known from before are repeated.

    `skipped` counts what was left by kind: `links`, `projections`, `ignored`, `other`.
    """

    commit: int
    accepted: list[Accepted]
    refused: list[Refused]
    unchanged: int
    changed: list[str]
    notes: dict[str, str]
    """What was done to the data of an accepted patient, as that a pair was cropped."""
    skipped: dict[str, int]


@dataclass(frozen=True)
class Delivery:
    """What is ingested, and how it is to be understood."""

    source: Path
    cohort: str
    rules: CohortRules
    names: Pseudonyms
    settings: IngestSettings
    dataset: Dataset
    memory: Path


@flow(name="ingest")
def ingest(
    source: str,
    cohort: str | None = None,
    settings: IngestSettings = DEFAULTS.ingest,
    cluster: ClusterSettings = DEFAULTS.cluster,
) -> IngestResult:
    """Read a folder of DICOM into the dataset.

    Args:
        source: Folder of the delivery, in any layout; it is never written to.
        cohort: Name of the delivery; default: the cohort file's, or the folder's.
        settings: How the cohort is read, checked and split.
        cluster: Where Dask runs.
    """
    delivery = open_delivery(Path(source), cohort, settings)
    with Workers(cluster, stores.scratch()) as workers:
        # Opaque: Prefect would look for futures in every slice of every patient.
        found = scan_headers(opaque(delivery), workers)
        planned = pair_series(opaque(delivery), opaque(found))
        rows = convert(opaque(delivery), opaque(planned), workers)
    result = commit(opaque(delivery), opaque(planned), opaque(rows), dict(found.skipped))
    publish(result)
    return result


def open_delivery(source: Path, cohort: str | None, settings: IngestSettings) -> Delivery:
    """Read the cohort file and the pseudonyms' secret, and make the dataset if there is none."""
    rules = read_cohort_file(settings.cohort_file) if settings.cohort_file else CohortRules()
    names = pseudonyms.pseudonyms(
        pseudonymise=rules.pseudonymise, secret=os.environ.get(pseudonyms.VARIABLE)
    )
    # A folder's name may name a person; a name that was given is meant to be shown.
    folder = source.absolute().name
    dataset = stores.dataset()
    dataset.create()
    cohort = cohort or rules.name or (names.path(folder) if names.on else folder)
    refuse_phantoms(dataset, cohort)
    return Delivery(
        source=source,
        cohort=cohort,
        rules=rules,
        names=names,
        settings=settings,
        dataset=dataset,
        memory=stores.scratch().parent / "scan",
    )


def refuse_phantoms(dataset: Dataset, cohort: str) -> None:
    """Raise SourceError if the dataset is of the demo: patients never stand among phantoms."""
    rows = dataset.snapshot().entries
    if cohort != SYNTHETIC and any(row.cohort == SYNTHETIC for row in rows):
        raise SourceError(
            f"the dataset at {dataset.location} holds the phantoms of `hqinet demo`, cohort "
            f"{SYNTHETIC}: ingest {cohort} into another one (`--home DIR`, or HQINET_DATASET)"
        )


@task(cache_policy=NO_CACHE)
def scan_headers(delivery: Delivery, workers: Workers) -> Inventory:
    """Look at the headers that are new; many of them on the workers."""

    def read_all(read: ChunkReader, chunks: list[Chunk]) -> Iterator[list[Record]]:
        # What has new headers has new pixels: the workers come up while this process reads.
        waiting = deque(chunks)
        if chunks:
            workers.start()
        while waiting and not workers.are_up:
            yield read(waiting.popleft())
        for _, result in workers.run(read, waiting, retries=1):
            if isinstance(result, Exception):
                raise result
            yield result

    found = take_inventory(
        delivery.source, delivery.rules, delivery.names, delivery.memory, read_all
    )
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(found.skipped.items()))
    get_run_logger().info("%s files; left: %s", len(found.records), kinds or "none")
    return found


@task(cache_policy=NO_CACHE)
def pair_series(delivery: Delivery, found: Inventory) -> Plan:
    """Find each patient's pair, and a reason for every series that is in none."""
    planned = plan(found, delivery.rules, delivery.settings.limits, delivery.names)
    get_run_logger().info(
        "%s pairs, %s refusals by their headers", len(planned.pairs), len(planned.refusals)
    )
    return planned


@task(cache_policy=NO_CACHE)
def convert(delivery: Delivery, planned: Plan, workers: Workers) -> list[Row]:
    """Convert the pairs that are new or changed: one future a pair, rows as they complete."""
    memory = Memory(delivery.memory / "converted")
    known, unread = recall(delivery, planned, memory)
    conversion = Conversion(
        root=delivery.source.resolve(),
        location=delivery.dataset.location,
        scratch=stores.scratch(),
        cohort=delivery.cohort,
        names=delivery.names,
    )
    logger = get_run_logger()
    logger.info("%s pairs known, %s to convert", len(known), len(unread))
    for pair, result in workers.run(conversion, unread, delivery.settings.retries):
        if isinstance(result, StorageError):
            raise result
        row = result if isinstance(result, Row) else failed(pair, result, delivery.cohort)
        if row.fingerprint:
            memory.remember(row)
        logger.info("%s: %s", pair.patient, row.code or f"{row.slices} slices")
        known.append(row)
    return known


def recall(delivery: Delivery, planned: Plan, memory: Memory) -> tuple[list[Row], list[Pair]]:
    """Rows of pairs whose files and rules are as they were, and the pairs that must be read.

    A row is the pair's only if it is of the same patient: files copied under another name have the
    same fingerprint, and are to be judged as what is delivered of that one.
    """
    current = delivery.dataset.snapshot().entries
    standing = {(row.patient, row.fingerprint): row for row in current if row.status == "accepted"}
    refused = {
        (row.patient, row.fingerprint): row
        for row in current
        if row.status == "refused" and row.cohort == delivery.cohort
    }
    named = {row.path for row in current}
    known, unread, gone = [], [], []
    for pair in planned.pairs:
        mark, location, rows = (pair.patient, pair.fingerprint), delivery.dataset.location, known
        row = standing.get(mark)
        if row is None or not volumes.is_complete(location, row.path or ""):
            row = memory.recall(pair, location, named) or refused.get(mark)
        if row is None:
            unread.append(pair)
            row, rows = memory.get(pair), gone
        if row is not None:
            rows.append(replace(row, cohort=delivery.cohort, source=pair.source))
    if gone and would_refuse(delivery, planned, current, known + gone, unread):
        return known + gone, []
    return known, unread


def would_refuse(
    delivery: Delivery,
    planned: Plan,
    current: Sequence[Row],
    rows: Sequence[Row],
    pairs: Sequence[Pair],
) -> bool:
    """Whether a commit would refuse every one of the pairs for what else the dataset holds.

    Their volumes are gone, for no commit names them; to refuse them again their rows are enough.
    All or none: a pair that is read may fail, and with it what the others were judged by.
    """
    decided = merge.merge_delivery(current, rows, planned.seen, delivery.cohort)
    return {row.patient for row in decided.refused}.issuperset(pair.patient for pair in pairs)


def failed(pair: Pair, error: Exception, cohort: str) -> Row:
    """The refusal of a pair that no worker could finish; it is tried again next time."""
    advice = (
        f"the disk of the source gave an error ({error.strerror})"
        if isinstance(error, OSError)
        else "look at the workers' memory (HQINET_CLUSTER__MEMORY)"
    )
    reason = f"every try failed with {type(error).__name__}: {advice}; ingest again"
    key = f"refused:{pair.patient}"
    refusal = Refusal(key, pair.patient, Code.CONVERSION_FAILED, reason, pair.source)
    return refused_row(refusal, cohort)


@task(cache_policy=NO_CACHE)
def commit(
    delivery: Delivery, planned: Plan, rows: list[Row], skipped: dict[str, int]
) -> IngestResult:
    """Decide on the latest commit what changes, and commit it; again if another came first."""
    incoming = [*rows, *(refused_row(r, delivery.cohort) for r in planned.refusals)]
    decided = Merged()

    def decide(current: Snapshot) -> list[Row] | None:
        nonlocal decided
        decided = merge.merge_delivery(
            current.entries,
            incoming,
            planned.seen,
            delivery.cohort,
            delivery.settings.split_targets,
        )
        require_volumes(delivery.dataset.location, decided.accepted)
        return decided.rows

    # Rules of a cohort file may name persons: a pattern for one, a folder.
    rules = delivery.rules.model_dump(mode="json", exclude_defaults=True)
    if delivery.names.on:
        rules = {"pseudonymise": True, "digest": delivery.names.digest(json.dumps(rules))}

    def details() -> dict[str, object]:
        return {
            "settings": delivery.settings.model_dump(mode="json", exclude={"cohort_file"}),
            "rules": rules,
            "new": len(decided.accepted) - len(decided.changed),
            "changed": decided.changed,
            "unchanged": len(decided.unchanged),
        }

    snapshot = delivery.dataset.commit(
        decide, action="ingest", cohort=delivery.cohort, details=details
    )
    return outcome(snapshot.commit, decided, skipped)


def outcome(commit: int, decided: Merged, skipped: dict[str, int]) -> IngestResult:
    """What was decided, in the form that is printed."""
    return IngestResult(
        commit=commit,
        accepted=[
            Accepted(
                patient=row.patient or "",
                slices=row.slices or 0,
                split=row.split or "",
            )
            for row in decided.accepted
        ],
        refused=[
            Refused(
                source=row.source or "",
                patient=row.patient,
                code=row.code or "",
                reason=row.reason or "",
                files=list(row.files),
            )
            for row in decided.refused
        ],
        unchanged=len(decided.unchanged),
        changed=decided.changed,
        notes={row.patient or "": row.note for row in decided.accepted if row.note},
        skipped=skipped,
    )


def require_volumes(location: Location, rows: list[Row]) -> None:
    """Raise DatasetError if a volume is gone that a commit is about to name."""
    lost = [row.patient for row in rows if not volumes.is_complete(location, row.path or "")]
    if lost:
        raise DatasetError(
            f"{len(lost)} volumes that were to be committed are gone, the first of {lost[0]}: "
            "`dataset gc` ran meanwhile; ingest again, and they are written anew"
        )


def publish(result: IngestResult) -> None:
    """Log the outcome and leave the refusals as a table on Prefect's page."""
    codes = Counter(refused.code for refused in result.refused)
    get_run_logger().info(
        "commit %s: %s accepted, %s changed, %s unchanged, refused: %s",
        result.commit,
        len(result.accepted),
        len(result.changed),
        result.unchanged,
        dict(codes) or "none",
    )
    if result.refused:
        create_table_artifact(
            [refused.model_dump() for refused in result.refused],
            key="ingest-refusals",
            description=f"{len(result.refused)} refusals of the delivery of commit {result.commit}",
        )
