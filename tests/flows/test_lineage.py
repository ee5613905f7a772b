from hypothesis import given
from hypothesis import strategies as st

from flows import lineage
from storage.registry import ModelVersion

MOST = 100_000
"""Characters that MLflow takes in a tag of a model version."""


def version(tags: dict[str, str]) -> ModelVersion:
    return ModelVersion(1, "run", "", {"recipe": "fast"} | tags, ())


@given(st.integers(0, 2600))
def test_any_number_of_training_patients_is_read_back(count):
    patients = [f"{number:ü>64}" for number in range(count)]
    tags = lineage.patient_tags(patients)
    assert all(len(text) <= MOST for text in tags.values())
    assert lineage.training_patients(version(tags)) == set(patients)


def test_a_version_that_does_not_say_is_told_from_one_trained_on_nobody():
    assert lineage.training_patients(version({})) is None
    assert lineage.training_patients(version(lineage.patient_tags([]))) == set()
