"""What a delivery changes, decided on rows alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from storage.dataset import keys
from storage.dataset.rows import Accepted, Refused, Reserved
from storage.ingest.delivery import Delivery
from storage.ingest.merge import merge_delivery


def pair(patient: str, pixels: str, cohort: str = "a", study: str = "s", **more) -> Accepted:
    about = {
        "path": f"volumes/{patient}/{pixels}",
        "digest": f"digest of {pixels}",
        "slices": 10,
        "matrix": (8, 9),
        "spacing": (3.0, 0.7, 0.7),
        "pixels": pixels,
        "identity_evidence": (study,),
        "anatomy": "chest",
        "vendor": "GE",
    }
    return Accepted(patient=patient, cohort=cohort, **about | more)


def refusal(patient: str, cohort: str = "a", code: str = "no_low_dose", **more) -> Refused:
    key = keys.refused_patient(patient)
    return Refused(key=key, cohort=cohort, patient=patient, code=code, reason="so", **more)


def deliver(rows, *incoming, cohort="a", seen=(), source=None):
    subjects = frozenset({keys.refused_patient(row.patient) for row in incoming} | set(seen))
    delivery = Delivery(
        source=Path(source or f"/{cohort}"), cohort=cohort, dataset=None, memory=None, scratch=None
    )
    return merge_delivery(rows, incoming, subjects, delivery)


def test_the_same_again_changes_nothing():
    rows = deliver([], pair("A", "1"), refusal("B")).rows
    again = deliver(rows, pair("A", "1", fingerprint="copied"), refusal("B", fingerprint="x"))
    assert again.rows is None
    assert again.unchanged == ["A"]
    assert [row.patient for row in again.refused] == ["B"]


def test_a_changed_volume_replaces_the_old_one_and_keeps_the_split():
    rows = deliver([], pair("A", "1"), pair("B", "2"), pair("C", "3")).rows
    done = deliver(rows, pair("B", "9"))
    assert done.changed == ["B"]
    after = {row.patient: row for row in done.rows}
    assert after["B"].pixels == "9"
    assert [after[p].split for p in "ABC"] == [row.split for row in rows]


def test_one_person_in_two_cohorts_is_one_patient():
    rows = deliver([], pair("A", "1")).rows
    assert deliver(rows, pair("A", "1", cohort="b"), cohort="b").unchanged == ["A"]
    same_study = deliver(rows, pair("A", "2", cohort="b"), cohort="b")
    assert same_study.changed == ["A"]
    assert len(same_study.rows) == 1


@pytest.mark.parametrize("cohort", ["a", "b"])
def test_the_same_id_with_nothing_in_common_is_refused_with_what_to_do(cohort):
    rows = deliver([], pair("A", "1")).rows
    done = deliver(rows, pair("A", "2", cohort=cohort, study="t"), cohort=cohort)
    assert [row.code for row in done.refused] == ["patient_conflict"]
    assert "prefix" in done.refused[0].reason
    assert "split train" in done.refused[0].reason
    assert [row.pixels for row in done.rows if row.status == "accepted"] == ["1"]


@pytest.mark.parametrize(
    "marks", [{"pixels": "1"}, {"pixels": "x", "slice_fingerprints": ("s2", "s9")}]
)
def test_pixels_of_another_patient_are_refused(marks):
    rows = deliver([], pair("A", "1", slice_fingerprints=("s1", "s2"))).rows
    done = deliver(rows, replace(pair("B", "1", cohort="b"), **marks), cohort="b")
    assert [(row.patient, row.code) for row in done.refused] == [("B", "duplicate_patient")]


def test_a_refusal_for_what_else_is_there_is_decided_anew():
    rows = deliver([], pair("A", "1")).rows
    done = deliver(rows, pair("B", "1", fingerprint="as converted"))
    assert done.refused[0].fingerprint is None


@pytest.mark.parametrize("studies", [("s1", "s2"), ("s2", "s1")], ids=["stay", "move too"])
def test_swapped_patients_are_put_right(studies):
    rows = deliver([], pair("A", "1", study="s1"), pair("B", "2", study="s2")).rows
    done = deliver(rows, pair("A", "2", study=studies[0]), pair("B", "1", study=studies[1]))
    assert done.changed == ["A", "B"]
    after = {row.patient: (row.pixels, row.split) for row in done.rows}
    before = {row.patient: row.split for row in rows}
    assert after == {"A": ("2", before["A"]), "B": ("1", before["B"])}


def test_pixels_of_a_patient_whose_replacement_is_refused_are_still_theirs():
    rows = deliver([], pair("A", "1"), pair("B", "2"), pair("C", "3")).rows
    done = deliver(rows, pair("A", "2"), pair("B", "3"))
    assert [(row.patient, row.code) for row in done.refused] == [
        ("A", "duplicate_patient"),
        ("B", "duplicate_patient"),
    ]
    assert done.changed == []


def test_of_two_names_in_one_delivery_one_is_accepted():
    done = deliver([], pair("B", "1"), pair("A", "1"))
    assert [row.patient for row in done.accepted] == ["A"]
    assert [row.patient for row in done.refused] == ["B"]


def test_an_acceptance_ends_the_refusals_of_the_patient_in_every_cohort():
    rows = deliver([], refusal("A"), refusal("B")).rows
    done = deliver(rows, pair("A", "1", cohort="b"), cohort="b")
    assert [(row.patient, row.status) for row in done.rows] == [
        ("A", "accepted"),
        ("B", "refused"),
    ]


def test_refusals_that_the_delivery_no_longer_makes_are_over():
    stray = Refused(
        key=keys.series("1", "unknown", None),
        cohort="a",
        patient=None,
        code="localizer",
        reason="so",
    )
    rows = deliver([], stray, refusal("A")).rows
    elsewhere = deliver(rows, pair("C", "3", cohort="b"), cohort="b", seen=[stray.subject]).rows
    assert stray in elsewhere, "what another cohort says of the same key is another refusal"
    kept = deliver(rows, seen=[]).rows
    assert kept is None, "what a delivery does not hold stays as it is"
    assert deliver(rows, seen=[stray.subject, keys.refused_patient("A")]).rows == []


def test_a_refusal_does_not_remove_the_patient():
    rows = deliver([], pair("A", "1")).rows
    done = deliver(rows, refusal("A", code="unreadable"))
    assert sorted(row.status for row in done.rows) == ["accepted", "refused"]


def test_a_reserved_split_is_the_patients():
    reserved = Reserved(cohort="", patient="A", split="validation")
    done = deliver([reserved], pair("A", "1"), pair("B", "2"))
    assert {row.patient: row.split for row in done.accepted} == {"A": "validation", "B": "train"}


def test_another_name_for_the_same_delivery_does_not_repeat_its_refusals():
    delivery = Delivery(source=Path("/x"), cohort="a", dataset=None, memory=None, scratch=None)
    said = refusal("A", delivery=delivery.digest)
    rows = deliver([], said, source="/x").rows
    renamed = replace(said, cohort="b")
    again = deliver(rows, renamed, cohort="b", source="/x")
    assert again.rows is None
    assert again.refused == [said]
    another = replace(renamed, code="unreadable")
    assert deliver(rows, another, cohort="b", source="/x").rows == [another]
    assert deliver(rows, cohort="b", source="/x", seen=[said.subject]).rows == []
    elsewhere = replace(renamed, delivery="of another folder")
    assert len(deliver(rows, elsewhere, cohort="b", source="/y").rows) == 2


def test_a_volume_that_was_written_anew_is_as_long_as_it_now_is():
    rows = deliver([], pair("A", "1", size=100)).rows
    done = deliver(rows, pair("A", "1", size=101))
    assert done.unchanged == ["A"]
    assert [row.size for row in done.rows] == [101]
