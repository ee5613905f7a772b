"""Who is who across deliveries: the same person under two IDs, two under one."""

import shutil

import pydicom
import pytest
from pydicom.uid import generate_uid

from storage.dataset import upkeep


def test_one_series_uid_under_two_patients_is_two_refusals(
    tmp_path, pair, series, dataset, deliver
):
    source, uid = tmp_path / "source", generate_uid()
    for seed, patient in enumerate(("L001", "L002")):
        study = pair(source, patient, seed=seed)
        series(patient, "MPR", attributes={"SeriesInstanceUID": uid}).write(study / "mpr")
    done = deliver(dataset, source)
    assert done.refused == [("L001", "unknown_role"), ("L002", "unknown_role")]


def test_the_same_pixels_under_another_id_are_refused(tmp_path, pair, dataset, deliver):
    pair(tmp_path / "a", "L001", seed=5)
    pair(tmp_path / "b", "L777", seed=5)
    deliver(dataset, tmp_path / "a", "a")
    done = deliver(dataset, tmp_path / "b", "b")
    assert done.refused == [("L777", "duplicate_patient")]
    assert "L777" in done.refusal.reason
    assert "L001" in done.refusal.reason


def test_a_common_frame_of_reference_shows_the_same_person(tmp_path, pair, dataset, deliver):
    pair(tmp_path / "a", "L001", seed=1)
    pair(tmp_path / "b", "L001", seed=2, attributes={"StudyInstanceUID": "1.2.3"})
    deliver(dataset, tmp_path / "a")
    assert deliver(dataset, tmp_path / "b").outcome.changed == ["L001"]


def test_uids_that_are_not_there_show_nothing(tmp_path, pair, dataset, deliver):
    for name, seed in (("a", 1), ("b", 2)):
        absent = {"StudyInstanceUID": "", "FrameOfReferenceUID": ""}
        pair(tmp_path / name, "L001", seed=seed, attributes=absent)
    deliver(dataset, tmp_path / "a")
    assert deliver(dataset, tmp_path / "b").refused == [("L001", "patient_conflict")]


def test_a_part_of_a_patient_under_another_id_is_refused(tmp_path, pair, series, dataset, deliver):
    pair(tmp_path / "a", "L001", seed=5, slices=40)
    whole = series(seed=5, slices=40).values()
    part = series(seed=5, slices=40, low=True).values()
    series("X1", "FULL", hu=whole[10:25], start=7).write(tmp_path / "b" / "full")
    series("X1", "LOW", hu=part[10:25], start=7).write(tmp_path / "b" / "low")
    deliver(dataset, tmp_path / "a", "a")
    assert deliver(dataset, tmp_path / "b", "b").refused == [("X1", "duplicate_patient")]


def test_what_came_under_a_wrong_id_is_rolled_back_and_delivered_again(
    tmp_path, pair, dataset, deliver
):
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    pair(wrong, "L001", seed=2)
    another = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4"}
    pair(right, "L001", seed=1, attributes=another)
    pair(right, "L002", seed=2)
    (before,) = deliver(dataset, wrong).outcome.accepted
    done = deliver(dataset, right)
    assert done.refused == [("L001", "patient_conflict"), ("L002", "duplicate_patient")]
    assert all("dataset rollback" in row.reason for row in done.outcome.refused)
    upkeep.rollback(dataset, 0)
    done = deliver(dataset, right)
    assert (done.accepted, done.refused) == (["L001", "L002"], [])
    assert done.snapshot.patients()[0].split == before.split


def test_a_person_who_comes_again_with_the_doses_exchanged_is_refused(
    tmp_path, series, dataset, deliver
):
    one, noisy = series("L001", "FULL", seed=1), series("L001", "LOW", seed=1, low=True)
    one.write(tmp_path / "a" / "full")
    noisy.write(tmp_path / "a" / "low")
    series("L009", "FULL", hu=noisy.values()).write(tmp_path / "b" / "full")
    series("L009", "LOW", hu=one.values()).write(tmp_path / "b" / "low")
    deliver(dataset, tmp_path / "a")
    assert deliver(dataset, tmp_path / "b").refused == [("L009", "duplicate_patient")]


@pytest.mark.parametrize("name", ["", "PatientID", "Anonymous", "000000"])
def test_an_id_that_names_nobody_is_missing(tmp_path, series, dataset, deliver, name):
    for description, low in (("FULL", False), ("LOW", True)):
        series(name, description, low=low).write(tmp_path / "source" / description)
    done = deliver(dataset, tmp_path / "source")
    assert {code for _, code in done.refused} == {"missing_patient_id"}


def test_a_series_that_gets_its_patient_or_role_is_refused_no_more(
    tmp_path, pair, series, dataset, deliver
):
    source = tmp_path / "source"
    pair(source, "L002", seed=2)
    shutil.copytree(source, tmp_path / "good")
    for file in (source / "Collection").rglob("*.dcm"):
        image = pydicom.dcmread(file)
        image.PatientID = ""
        image.save_as(file)
    (source / "Collection" / "L002").rename(source / "Collection" / "someone")
    assert deliver(dataset, source).refused == [(None, "missing_patient_id")] * 2
    shutil.rmtree(source)
    shutil.copytree(tmp_path / "good", source)
    done = deliver(dataset, source)
    assert (done.accepted, done.refused) == (["L002"], [])
    assert not done.snapshot.refused
