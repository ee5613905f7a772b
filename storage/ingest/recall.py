"""Which pairs of a plan need not be read: what is known of them stands, or is remembered."""

from collections.abc import Sequence
from dataclasses import replace

from storage.dataset import volumes
from storage.dataset.rows import Accepted, Refused, Row
from storage.ingest.delivery import Delivery
from storage.ingest.memory import ConversionMemory
from storage.ingest.merge import merge_delivery
from storage.ingest.pairing import Pair
from storage.ingest.planning import Plan

Known = Accepted | Refused


def recall(
    delivery: Delivery, plan: Plan, memory: ConversionMemory
) -> tuple[list[Known], list[Pair]]:
    """Rows of pairs whose files and rules are as they were, and the pairs that must be read.

    A row is the pair's only if it is of the same patient: files copied under another name have the
    same fingerprint, and are to be judged as what is delivered of that one. Nor is a row known
    whose volume is not whole: reading the pair again writes it anew, to the same address.
    """
    rows, location = delivery.dataset.snapshot().rows, delivery.dataset.location
    standing = _standing(rows, delivery)
    named = {row.path for row in rows if isinstance(row, Accepted)}
    known: list[Known] = []
    gone: list[Known] = []
    unread: list[Pair] = []
    for pair in plan.pairs:
        row = standing.get((pair.patient, pair.fingerprint))
        if isinstance(row, Accepted) and not volumes.is_whole(location, row):
            row = None
        row = row or memory.recall(pair, location, named)
        if row is not None:
            known.append(_as_delivered(row, delivery, pair))
            continue
        unread.append(pair)
        lost = memory.get(pair)
        if lost is not None:
            gone.append(_as_delivered(lost, delivery, pair))
    if gone and _would_refuse(delivery, plan, rows, [*known, *gone], unread):
        return [*known, *gone], []
    return known, unread


def _standing(rows: Sequence[Row], delivery: Delivery) -> dict[tuple[str, str], Known]:
    """Rows by patient and fingerprint; an accepted one before a refusal of this cohort."""
    refused = (r for r in rows if isinstance(r, Refused) and r.cohort == delivery.cohort)
    accepted = (r for r in rows if isinstance(r, Accepted))
    return {
        (row.patient, row.fingerprint): row
        for row in (*refused, *accepted)
        if row.patient and row.fingerprint
    }


def _as_delivered(row: Known, delivery: Delivery, pair: Pair) -> Known:
    renamed = replace(row, cohort=delivery.cohort, source=pair.source)
    if isinstance(renamed, Refused):
        return replace(renamed, delivery=delivery.digest)
    return renamed


def _would_refuse(
    delivery: Delivery,
    plan: Plan,
    current: Sequence[Row],
    rows: Sequence[Known],
    pairs: Sequence[Pair],
) -> bool:
    """Whether a commit would refuse every one of the pairs for what else the dataset holds.

    Their volumes are gone, for no commit names them; to refuse them again their rows are enough.
    All or none: a pair that is read may fail, and with it what the others were judged by.
    """
    decided = merge_delivery(current, rows, plan.seen, delivery)
    return {row.patient for row in decided.refused}.issuperset(pair.patient for pair in pairs)
