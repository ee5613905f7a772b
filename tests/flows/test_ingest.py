"""The ingest flow as its user runs it: once, again, changed, at once, and on other clusters."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster
from prefect.client.orchestration import get_client

from flows import stores
from flows.cli.dataset import shown
from flows.compute.workers import ClusterError, Workers
from flows.ingest import ingest
from flows.settings import ClusterSettings, IngestSettings
from storage.dataset import upkeep
from storage.errors import StorageError

ONE = ClusterSettings(workers=1)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HQINET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path, pair, series) -> Path:
    """Three pairs and a patient without low dose."""
    root = tmp_path / "delivery"
    for number in range(3):
        pair(root, f"L00{number}", seed=number)
    series("L009", seed=9).write(root / "L009")
    return root


def rewrite(source: Path, patient: str, pair, **changes) -> None:
    """Deliver a patient's series again under the same names and UIDs."""
    shutil.rmtree(source / "Collection" / patient)
    pair(source, patient, **changes)


def artifacts() -> list:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return [artifact for artifact in found if artifact.key == "ingest-refusals"]


def test_a_delivery_becomes_a_commit_and_its_refusals_a_table(home, source):
    before = len(artifacts())
    result = ingest(str(source), settings=IngestSettings(), cluster=ONE)
    assert result.commit == 1
    assert [row.patient for row in result.accepted] == ["L000", "L001", "L002"]
    assert [(row.patient, row.code, row.source) for row in result.refused] == [
        ("L009", "no_low_dose", "L009")
    ]
    printed = result.model_dump()
    keys = {"commit", "accepted", "refused", "unchanged", "changed", "skipped", "notes"}
    assert set(printed) == keys | {"skipped_files"}
    assert printed["accepted"][0].keys() == {"patient", "slices", "split"}
    said = {"cohort", "source", "patient", "code", "reason", "files"}
    assert printed["refused"][0].keys() == said
    tables = artifacts()
    assert len(tables) == before + 1
    assert any("no_low_dose" in str(table.data) for table in tables)
    entry = stores.dataset().log()[0]
    assert (entry.cohort, entry.counts["accepted"], entry.counts["refused"]) == ("delivery", 3, 1)
    left = [path for path in stores.scratch().rglob("*") if path.name == "zarr.json"]
    assert not left, "no volume is left under construction"


def test_the_same_source_again_makes_no_commit_and_starts_no_dask(home, source, monkeypatch):
    ingest(str(source), cluster=ONE)
    first = stores.dataset().snapshot().rows
    monkeypatch.setattr(Workers, "_open", lambda _: pytest.fail("Dask was started for nothing"))
    again = ingest(str(source), cluster=ONE)
    assert (again.commit, again.accepted, again.unchanged, again.changed) == (1, [], 3, [])
    assert [row.code for row in again.refused] == ["no_low_dose"]
    assert stores.dataset().snapshot().rows == first


def test_what_stands_in_the_catalog_is_not_read_again_though_nothing_is_remembered(
    home, source, monkeypatch
):
    first = ingest(str(source), cluster=ONE)
    shutil.rmtree(home / "scan" / "converted")
    monkeypatch.setattr(Workers, "_open", lambda _: pytest.fail("pixels were read again"))
    again = ingest(str(source), cluster=ONE)
    assert (again.commit, again.unchanged) == (first.commit, 3)


def test_a_copy_of_the_source_is_read_once_and_makes_no_commit(home, source, monkeypatch):
    ingest(str(source), cluster=ONE)
    copy = source.with_name("copy")
    shutil.copytree(source, copy, copy_function=shutil.copyfile)
    again = ingest(str(copy), "delivery", cluster=ONE)
    assert (again.commit, again.unchanged) == (1, 3)
    monkeypatch.setattr(Workers, "_open", lambda _: pytest.fail("the copy was read again"))
    assert ingest(str(copy), "delivery", cluster=ONE).unchanged == 3


def test_a_refused_pair_without_volume_is_read_again_only_to_be_accepted(
    home, tmp_path, pair, monkeypatch
):
    pair(tmp_path / "a", "L001", seed=5, slices=4)
    for patient in ("X1", "X2"):
        pair(tmp_path / "b", patient, seed=5, slices=4)
    ingest(str(tmp_path / "a"), cluster=ONE)
    first = ingest(str(tmp_path / "b"), cluster=ONE)
    assert [row.code for row in first.refused] == ["duplicate_patient"] * 2
    for patient in ("X1", "X2"):
        shutil.rmtree(home / "dataset" / "volumes" / patient)
    with monkeypatch.context() as patch:
        patch.setattr(Workers, "_open", lambda _: pytest.fail("a refused pair was read again"))
        again = ingest(str(tmp_path / "b"), cluster=ONE)
    assert again == first
    upkeep.rollback(stores.dataset(), 0)
    done = ingest(str(tmp_path / "b"), cluster=ONE)
    assert [row.patient for row in done.accepted] == ["X1"]
    assert [(row.patient, row.code) for row in done.refused] == [("X2", "duplicate_patient")]
    assert not upkeep.verify(stores.dataset().snapshot(), deep=True).problems


def test_a_copy_under_another_patients_name_is_refused_not_taken_for_the_first(
    home, tmp_path, pair
):
    pair(tmp_path / "a", "Anonymous", slices=4)
    collection = tmp_path / "a" / "Collection"
    (collection / "Anonymous").rename(collection / "L001")
    ingest(str(tmp_path / "a"), cluster=ONE)
    shutil.copytree(collection / "L001", tmp_path / "b" / "L777")
    copied = ingest(str(tmp_path / "b"), cluster=ONE)
    assert copied.unchanged == 0
    assert [(row.patient, row.code) for row in copied.refused] == [("L777", "duplicate_patient")]


def test_a_refusal_of_pixels_is_of_its_patient_and_recalled_for_each(
    home, tmp_path, series, monkeypatch
):
    for dose in ("Full Dose", "Low Dose"):
        series("Anonymous", dose, slices=8).write(tmp_path / "a" / "L001" / dose)
    refused = [("L001", "identical_doses")]
    alone = ingest(str(tmp_path / "a"), cluster=ONE)
    assert [(row.patient, row.code) for row in alone.refused] == refused
    shutil.copytree(tmp_path / "a" / "L001", tmp_path / "a" / "L777")
    refused.append(("L777", "identical_doses"))
    copied = ingest(str(tmp_path / "a"), cluster=ONE)
    assert [(row.patient, row.code) for row in copied.refused] == refused
    shutil.rmtree(home / "scan" / "converted")
    monkeypatch.setattr(Workers, "_open", lambda _: pytest.fail("a refused pair was read again"))
    assert ingest(str(tmp_path / "a"), cluster=ONE) == copied


def test_a_series_changed_in_place_is_noticed_and_named(home, source, pair):
    first = ingest(str(source), cluster=ONE)
    before = stores.dataset().snapshot()
    rewrite(source, "L001", pair, seed=77)
    result = ingest(str(source), cluster=ONE)
    assert (result.changed, result.unchanged) == (["L001"], 2)
    assert [row.patient for row in result.accepted] == ["L001"]
    splits = {row.patient: row.split for row in first.accepted}
    assert result.accepted[0].split == splits["L001"]
    found = upkeep.diff(before, stores.dataset().snapshot())
    assert (found.changed, found.added, found.removed, found.moved) == (["L001"], [], [], [])
    assert (before.volume("L001").full[:] != 0).any(), "the old volume is still there"
    assert stores.dataset().log()[0].details["changed"] == ["L001"]


def test_what_was_done_to_the_data_and_what_was_left_is_said(home, tmp_path, series):
    source = tmp_path / "delivery"
    series("L001", "FULL").write(source / "full")
    series("L001", "LOW", low=True, slices=9).write(source / "low")
    (source / "link").symlink_to(source / "full")
    (source / "readme.txt").write_text("stray")
    result = ingest(str(source), cluster=ONE)
    assert "cropped to 9 common slices" in result.notes[result.accepted[0].patient]
    assert result.skipped == {"links": 1, "other": 1}
    assert result.skipped_files == {"links": ["link"], "other": ["readme.txt"]}
    (patient,) = shown(stores.dataset().snapshot())["patients"]
    assert result.notes == {patient["patient"]: patient["note"]}


def test_two_ingests_at_once_both_land(home, tmp_path, pair):
    for name, first in (("one", 10), ("two", 20)):
        for number in range(2):
            pair(tmp_path / name, f"L0{first + number}", seed=first + number)
    results = {}

    def run(name: str) -> None:
        results[name] = ingest(str(tmp_path / name), cluster=ONE)

    threads = [threading.Thread(target=run, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.commit for result in results.values()) == [1, 2]
    snapshot = stores.dataset().snapshot()
    assert [row.patient for row in snapshot.patients()] == ["L010", "L011", "L020", "L021"]
    assert not upkeep.verify(snapshot, deep=True).problems
    assert {row.split for row in snapshot.patients()} == {"train", "validation", "test"}


def test_an_empty_inbox_is_no_error(home, tmp_path):
    (tmp_path / "inbox").mkdir()
    result = ingest(str(tmp_path / "inbox"))
    assert (result.commit, result.accepted, result.refused) == (0, [], [])


def test_a_source_that_is_not_there_is_one_line(home, tmp_path):
    with pytest.raises(StorageError, match="not there: give the folder"):
        ingest(str(tmp_path / "nowhere"))


def test_a_scheduler_at_an_address_does_the_work(home, source):
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        where = ClusterSettings(where=cluster.scheduler_address)
        assert len(ingest(str(source), cluster=where).accepted) == 3


def test_a_cluster_class_with_arguments_does_the_work(home, source):
    where = ClusterSettings(
        where="distributed.LocalCluster",
        workers=1,
        arguments={"n_workers": 0, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"},
    )
    assert len(ingest(str(source), cluster=where).accepted) == 3


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("dask_jobqueue.SLURMCluster", "pip install dask-jobqueue"),
        ("nonsense", "cannot be imported"),
        ("tcp://127.0.0.1:9", "no Dask scheduler answers"),
    ],
)
def test_a_cluster_that_cannot_be_had_says_what_to_do(home, source, where, said, monkeypatch):
    monkeypatch.setattr("flows.compute.workers.PATIENCE", "1s")
    with pytest.raises(ClusterError, match=said):
        ingest(str(source), cluster=ClusterSettings(where=where))
    assert stores.dataset().snapshot().commit == 0


@pytest.mark.real
def test_real_ct_four_accepted_one_refused_and_a_later_cohort_moves_nothing(home, real_data):
    first = ingest(str(real_data / "ldct-mini"))
    assert [row.patient for row in first.accepted] == ["C901", "C902", "L901", "L902"]
    assert [(row.patient, row.code) for row in first.refused] == [("L903", "no_low_dose")]
    before = {row.patient: row.split for row in stores.dataset().snapshot().patients()}
    second = ingest(str(real_data / "limb-mini"))
    assert (second.commit, len(second.accepted), second.refused) == (2, 8, [])
    snapshot = stores.dataset().snapshot()
    after = {row.patient: row.split for row in snapshot.patients()}
    assert {patient: after[patient] for patient in before} == before
    assert {row.vendor for row in snapshot.patients()} == {"Siemens", "Philips", "Canon", "GE"}
    assert np.ptp(snapshot.volume("C901").full[20]) > 1000


def test_what_replaces_a_patient_in_its_folder_is_the_patient_changed(home, tmp_path, series):
    def deliver(root, seed: int, study: str) -> None:
        def renew(_, image):
            image.StudyInstanceUID = image.FrameOfReferenceUID = f"1.2.{study}"
            return image

        shutil.rmtree(root, ignore_errors=True)
        for name, low in (("Full Dose Images", False), ("Low Dose Images", True)):
            series("L001", name, seed=seed, low=low, slices=4, change=renew).write(
                root / "L001" / name
            )

    here, elsewhere = tmp_path / "a" / "dicom", tmp_path / "b" / "dicom"
    deliver(here, 1, "1")
    ingest(str(here), cluster=ONE)
    deliver(elsewhere, 2, "2")
    other = ingest(str(elsewhere), cluster=ONE)
    assert [row.code for row in other.refused] == ["patient_conflict"]
    deliver(here, 3, "3")
    again = ingest(str(here), cluster=ONE)
    assert again.changed == ["L001"]
