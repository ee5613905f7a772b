from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import lineage
from storage.models.versions import ModelVersion

MOST = 100_000
"""Characters that MLflow takes in a tag of a model version."""


def version(tags: dict[str, str]) -> ModelVersion:
    return ModelVersion(1, "run", "", {"recipe": "fast"} | tags, ())


@given(st.integers(0, 2600))
def test_any_number_of_training_patients_is_read_back(count):
    patients = [f"{number:ü>64}" for number in range(count)]
    tags = lineage.patient_tags(lineage.PATIENTS, patients)
    assert all(len(text) <= MOST for text in tags.values())
    assert lineage.patients(version(tags), lineage.PATIENTS) == set(patients)


def test_a_version_that_does_not_say_is_told_from_one_trained_on_nobody():
    assert lineage.patients(version({}), lineage.PATIENTS) is None
    nobody = lineage.patient_tags(lineage.PATIENTS, [])
    assert lineage.patients(version(nobody), lineage.PATIENTS) == set()


@pytest.mark.parametrize(("split", "seen"), [("test", ["A", "V"]), ("validation", ["A"])])
def test_whom_the_epoch_was_chosen_on_is_seen_too_but_in_the_validation_split(split, seen):
    tags = lineage.patient_tags(lineage.PATIENTS, ["A"])
    tags |= lineage.patient_tags(lineage.CHOSEN_ON, ["V"])
    rows = [SimpleNamespace(patient=patient, split=split) for patient in "AVT"]
    assert lineage.leaked(version(tags), rows) == seen
