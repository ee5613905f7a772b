"""What a model version says of its making: the tags that leakage and the gate are judged by."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hqinet.restoration.starter import Lineage
from storage.dataset.rows import Accepted
from storage.dataset.versions import Snapshot
from storage.provenance import code_version

if TYPE_CHECKING:
    # MLflow takes seconds to import.
    from storage.models.versions import ModelVersion

PATIENTS = "training_patients"
CHOSEN_ON = "validation_patients"
PATIENTS_A_TAG = 1000
"""MLflow takes 100,000 characters a tag, DICOM 64 an ID: a longer list goes on in `..._2`."""


def tags(snapshot: Snapshot, recipe: str) -> dict[str, str]:
    """The tags of a version trained on the training patients of a commit."""
    made = {
        "commit": str(snapshot.commit),
        "digest": snapshot.digest,
        "dataset": snapshot.identity,
        "recipe": recipe,
        "code_version": code_version(),
    }
    for name, split in ((PATIENTS, "train"), (CHOSEN_ON, "validation")):
        made |= patient_tags(name, [row.patient for row in snapshot.patients(split)])
    return made


def started_from(start: str, before: Lineage, snapshot: Snapshot) -> dict[str, str]:
    """The tags of whom a version has seen that went on from another model's weights."""
    seen = {
        PATIENTS: (before.training_patients, snapshot.patients("train")),
        CHOSEN_ON: (before.validation_patients, snapshot.patients("validation")),
    }
    made = {"started_from": start}
    for name, (theirs, ours) in seen.items():
        made |= patient_tags(name, sorted({*theirs, *(row.patient for row in ours)}))
    return made


def patient_tags(name: str, patients: list[str]) -> dict[str, str]:
    """The patients as JSON lists, over as many tags as it takes."""
    parts = range(0, max(1, len(patients)), PATIENTS_A_TAG)
    return {
        name if number == 1 else f"{name}_{number}": json.dumps(
            patients[start : start + PATIENTS_A_TAG], ensure_ascii=False
        )
        for number, start in enumerate(parts, start=1)
    }


def patients(version: "ModelVersion", name: str) -> set[str] | None:
    """Whom a version was trained on, or its epoch chosen on; None where it does not say."""
    if name not in version.tags:
        return None
    parts = (text for tag, text in version.tags.items() if tag.startswith(name))
    return {patient for part in parts for patient in json.loads(part)}


def leaked(version: "ModelVersion", rows: Iterable[Accepted]) -> list[str]:
    """Which of these patients a version has seen.

    It was trained on them, or its best epoch was chosen on them and they now stand elsewhere than
    in the validation split, where that is what they are for.
    """
    trained = patients(version, PATIENTS) or set()
    chosen_on = patients(version, CHOSEN_ON) or set()
    return sorted(
        row.patient
        for row in rows
        if row.patient in trained or (row.patient in chosen_on and row.split != "validation")
    )


def lineage_fields(version: "ModelVersion") -> dict[str, str]:
    """What a version must say to be promoted; empty where it does not."""
    names = ("commit", "digest", "recipe", PATIENTS, CHOSEN_ON, "code_version")
    return {"run": version.run} | {name: version.tags.get(name, "") for name in names}
