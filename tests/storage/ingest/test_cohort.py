"""Roles, keys and anatomy from drifting texts; never a free text in what comes out."""

import pytest

from storage.errors import CohortFileError
from storage.ingest.cohort import (
    CohortRules,
    PatientRule,
    Role,
    anatomy,
    dose_fraction,
    patient_key,
    read_cohort_file,
    role,
)

RULES = CohortRules()


@pytest.mark.parametrize(
    ("description", "path", "expected"),
    [
        ("Full dose images", "x/1.dcm", Role.FULL),
        ("Full Dose Images", "x/1.dcm", Role.FULL),
        ("FULL", "x/1.dcm", Role.FULL),
        ("LOW", "x/1.dcm", Role.LOW),
        ("Low Dose Lung Full FOV", "x/1.dcm", Role.LOW),
        ("Full dose, low kV", "x/1.dcm", Role.FULL),
        ("Thorax 25% dose", "x/1.dcm", Role.LOW),
        ("Routine_Dose B40", "x/1.dcm", Role.FULL),
        ("Low dose and full dose", "x/1.dcm", Role.AMBIGUOUS),
        ("Thorax", "LDCT-and-Projection-data/C001/scout/1.dcm", Role.UNKNOWN),
        ("Low contrast", "x/1.dcm", Role.UNKNOWN),
        ("Full body", "x/1.dcm", Role.UNKNOWN),
        ("fullness", "flow/blow.dcm", Role.UNKNOWN),
        ("", "L067/quarter_3mm/a.IMA", Role.LOW),
        ("", "L067/full_3mm/a.IMA", Role.FULL),
        ("", "heap/L067_QD_3_1.CT.0001.IMA", Role.LOW),
        ("", "heap/L067_FD_3_1.CT.0001.IMA", Role.FULL),
        ("Low Dose Images", "full_3mm/1.dcm", Role.LOW),
    ],
)
def test_roles_from_drifting_texts(description, path, expected):
    assert role(RULES, path, description) is expected


@pytest.mark.parametrize(
    ("named", "path", "key"),
    [
        ("L067", "x/1.dcm", "L067"),
        (" L067 \0", "x/1.dcm", "L067"),
        ("Anonymous", "a/L067/full_3mm/L067_FD_3.IMA", "L067"),
        ("PatientID", "a/b/1.dcm", None),
        ("", "AL067B/1.dcm", None),
        ("a/../b", "x", "a/../b"),
    ],
)
def test_patient_keys(named, path, key):
    assert patient_key(RULES, path, named) == key


def test_all_patterns_of_a_cohort_file_are_searched_without_regard_to_case():
    rules = CohortRules(
        low=["DOSIS A"],
        ignore=["Kontrast"],
        patient=PatientRule(source="path", pattern=r"fall-(?P<key>\d+)"),
        anatomy={"^t": "chest", "^A": "abdomen"},
    )
    assert role(rules, "x/1.dcm", "Serie dosis a") is Role.LOW
    assert role(rules, "x/1.dcm", "kontrast") is None
    assert patient_key(rules, "Fall-12/1.dcm", "") == "12"
    assert patient_key(RULES, "l067/1.dcm", "") is None, "the collection's own naming has a case"
    assert [anatomy(rules, key, "") for key in ("T1", "a2", "x")] == ["chest", "abdomen", "unknown"]


@pytest.mark.parametrize(
    ("key", "part", "word", "dose"),
    [
        ("N005", "CHEST", "head", 0.25),
        ("C005", "", "chest", 0.1),
        ("L005", "", "abdomen", 0.25),
        ("X901", "EXTREMITY", "limb", None),
        ("12", "CHESTABDPELVIS", "trunk", None),
        ("12", "Thorax", "chest", None),
        ("L0055", "SECRET", "unknown", None),
    ],
)
def test_anatomy_and_dose(key, part, word, dose):
    assert anatomy(RULES, key, part) == word
    assert dose_fraction(RULES, key, word) == dose


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lo = ['x']", "`lo`"),
        ("low = ['(']", "no regular expression"),
        ("low = ", "not TOML"),
        ("dose_fraction = 2.5", "dose_fraction"),
        ("anatomy = 'knee'", "anatomy"),
        ("[patient]\nsource = 'name'", "patient.source"),
    ],
)
def test_a_wrong_cohort_file_says_where(tmp_path, text, said):
    file = tmp_path / "cohort.toml"
    file.write_text(text)
    with pytest.raises(CohortFileError) as error:
        read_cohort_file(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cohort_file_that_is_not_there(tmp_path):
    with pytest.raises(CohortFileError, match="No such file"):
        read_cohort_file(tmp_path / "none.toml")
