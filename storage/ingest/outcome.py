"""What became of a delivery: merged into the dataset by one commit, or none, and reported."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, field_serializer

from storage.dataset import volumes
from storage.dataset.rows import Accepted, Refused, Row
from storage.dataset.versions import Snapshot
from storage.errors import DatasetError
from storage.ingest.delivery import Delivery
from storage.ingest.inventory import Inventory
from storage.ingest.merge import Merged, merge_delivery
from storage.ingest.planning import Plan


class Outcome(BaseModel):
    """What `hqinet ingest --json` prints; refusals known from before are repeated.

    Attributes:
        notes: what was done to the data of an accepted patient, as that a pair was cropped.
        skipped: how many files were left aside, by kind: `links`, `projections`, `ignored`,
            `other`; `skipped_files` names the first of each.
    """

    commit: int
    accepted: list[Accepted]
    refused: list[Refused]
    unchanged: int
    changed: list[str]
    notes: dict[str, str]
    skipped: dict[str, int]
    skipped_files: dict[str, list[str]]

    @field_serializer("accepted")
    def _accepted(self, rows: list[Accepted]) -> list[dict[str, Any]]:
        return [{"patient": r.patient, "slices": r.slices, "split": r.split} for r in rows]

    @field_serializer("refused")
    def _refused(self, rows: list[Refused]) -> list[dict[str, Any]]:
        return [row.shown() for row in rows]


def merge(
    delivery: Delivery, inventory: Inventory, plan: Plan, rows: Sequence[Accepted | Refused]
) -> Outcome:
    """Decide on the latest commit what changes, and commit it; again if another came first.

    Raises:
        DatasetError: a volume is gone or not whole that was to be named.
        StorageError: the store cannot be written.
    """
    incoming = [*rows, *plan.refusals]
    merged = Merged()

    def decide(current: Snapshot) -> list[Row] | None:
        nonlocal merged
        merged = merge_delivery(current.rows, incoming, plan.seen, delivery)
        _require_volumes(delivery, merged.accepted)
        return merged.rows

    def details() -> dict[str, object]:
        return {
            "settings": {
                "limits": delivery.limits.model_dump(mode="json"),
                "split_targets": dict(delivery.split_targets),
            },
            "rules": _rules(delivery),
            "new": len(merged.accepted) - len(merged.changed),
            "changed": merged.changed,
            "unchanged": len(merged.unchanged),
        }

    snapshot = delivery.dataset.commit(
        decide, action="ingest", cohort=delivery.cohort, details=details
    )
    return _outcome(snapshot.commit, merged, inventory)


def _require_volumes(delivery: Delivery, rows: Sequence[Accepted]) -> None:
    """Raise DatasetError if a volume is gone that a commit is about to name."""
    location = delivery.dataset.location
    lost = [row.patient for row in rows if not volumes.is_whole(location, row)]
    if lost:
        raise DatasetError(
            f"{len(lost)} volumes that were to be committed are gone, the first of {lost[0]}: "
            "`dataset gc` ran meanwhile; ingest again, and they are written again"
        )


def _rules(delivery: Delivery) -> dict[str, Any]:
    """The rules as the log shows them: they may name persons, a pattern for one, a folder."""
    rules = delivery.rules.model_dump(mode="json", exclude_defaults=True)
    if delivery.names.on:
        return {"pseudonymise": True, "digest": delivery.names.digest(json.dumps(rules))}
    return rules


def _outcome(commit: int, merged: Merged, inventory: Inventory) -> Outcome:
    left = inventory.left
    return Outcome(
        commit=commit,
        accepted=merged.accepted,
        refused=merged.refused,
        unchanged=len(merged.unchanged),
        changed=merged.changed,
        notes={row.patient: row.note for row in merged.accepted if row.note},
        skipped={kind: one.count for kind, one in left.items()},
        skipped_files={kind: list(one.files) for kind, one in left.items()},
    )
