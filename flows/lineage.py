"""What a model version says of its making: the tags that leakage and the gate are judged by."""

import json
from collections.abc import Iterable

from storage.dataset import PatientRow, Snapshot
from storage.provenance import code_version
from storage.registry import ModelVersion

PATIENTS = "training_patients"
PATIENTS_A_TAG = 1000
"""MLflow takes 100,000 characters a tag, DICOM 64 an ID: a longer list goes on in `..._2`."""


def tags(snapshot: Snapshot, recipe: str) -> dict[str, str]:
    """The tags of a version trained on the training patients of a commit."""
    return {
        "commit": str(snapshot.commit),
        "digest": snapshot.digest,
        "recipe": recipe,
        "code_version": code_version(),
    } | patient_tags([row.patient for row in snapshot.patients("train")])


def patient_tags(patients: list[str]) -> dict[str, str]:
    """The patients as JSON lists, over as many tags as it takes."""
    parts = range(0, max(1, len(patients)), PATIENTS_A_TAG)
    return {
        PATIENTS if number == 1 else f"{PATIENTS}_{number}": json.dumps(
            patients[start : start + PATIENTS_A_TAG], ensure_ascii=False
        )
        for number, start in enumerate(parts, start=1)
    }


def training_patients(version: ModelVersion) -> set[str] | None:
    """Whom a version was trained on; None where it does not say."""
    if PATIENTS not in version.tags:
        return None
    parts = (text for name, text in version.tags.items() if name.startswith(PATIENTS))
    return {patient for part in parts for patient in json.loads(part)}


def leaked(version: ModelVersion, patients: Iterable[PatientRow]) -> list[str]:
    """Which of these patients a version was trained on."""
    trained = training_patients(version) or set()
    return sorted(trained.intersection(row.patient for row in patients))


def stated(version: ModelVersion) -> dict[str, str]:
    """What a version must say to be promoted; empty where it does not."""
    names = ("commit", "digest", "recipe", PATIENTS, "code_version")
    return {"run": version.run} | {name: version.tags.get(name, "") for name in names}
