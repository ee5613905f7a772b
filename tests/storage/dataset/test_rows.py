"""Rows stand in a table of a stated schema; older tables are read for ever, digests and all.

`dataset-28dd680` was written by the code of that commit: two ingests, a split that was reserved by
hand, and rollbacks to commits 1 and 2. L002 is tilted and cropped, L009 has no low dose.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.dataset import keys, rows, upkeep
from storage.dataset.rows import Accepted, Refused, Reserved
from storage.dataset.versions import Dataset
from storage.dicom.geometry import Geometry
from storage.errors import DatasetError
from storage.stores import delta
from storage.stores.delta import Table

OLD = Path(__file__).parent / "dataset-28dd680"
IDENTITY = "540a9f0c-5d6f-4aa7-8826-3d82a454c7f0"
FIRST = "e7a1fa234441d7898bb6b58fd4d3f7d31e2a179e9f23948d55791f93ad52def7"
SECOND = "5bde51376963fb8dde2354b06214800fb1c99c9cdedad96eb43f4c41546fda21"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
DIGESTS = [EMPTY, FIRST, SECOND, SECOND, FIRST, SECOND]


@pytest.fixture
def old(tmp_path) -> Dataset:
    """A copy of the old dataset."""
    shutil.copytree(OLD, tmp_path / "old")
    return Dataset(tmp_path / "old")


def test_every_commit_of_an_old_dataset_has_the_digest_that_it_had(old):
    assert [old.snapshot(commit).digest for commit in range(6)] == DIGESTS
    assert [commit.action for commit in old.log()] == [
        *("rollback", "rollback", "splits", "ingest", "ingest", "create")
    ]
    assert {old.snapshot(commit).identity for commit in range(6)} == {IDENTITY}


def test_rows_of_an_old_dataset_are_what_they_were(old):
    snapshot = old.snapshot(3)
    assert snapshot.splits == {
        "C003": "validation",
        "L001": "train",
        "L002": "test",
        "L777": "test",
    }
    (refused,) = snapshot.refused
    assert (refused.key, refused.code, refused.source) == (
        "refused:L009",
        "no_low_dose",
        "L009/full",
    )
    chest, abdomen, cropped = snapshot.patients()
    assert (chest.slices, chest.matrix, chest.dose_fraction) == (45, (16, 20), 0.1)
    assert "cropped to 8 common slices" in cropped.note
    assert len(abdomen.slice_fingerprints) == 12
    assert len(abdomen.identity_evidence) == 4
    assert abdomen.size is None


def test_volumes_of_an_old_dataset_are_whole_and_read(old, pair, series):
    snapshot = old.snapshot()
    assert not upkeep.verify(snapshot, deep=True).problems
    for patient, seed, slices in (("L001", 1, 6), ("C003", 3, 45)):
        volume = snapshot.volume(patient)
        np.testing.assert_array_equal(volume.full[:], series(seed=seed, slices=slices).values())
    shard = next(Path(old.location.url).glob("volumes/L001/*/full/c/0/0/0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [problem.patient for problem in upkeep.verify(snapshot).problems] == ["L001"]


def test_the_same_delivery_changes_nothing_in_an_old_dataset(old, tmp_path, pair, deliver):
    pair(tmp_path / "source", "L001", seed=1, slices=6)
    done = deliver(old, tmp_path / "source", "first")
    assert (done.outcome.unchanged, done.outcome.changed, done.snapshot.commit) == (1, [], 5)


def test_a_tilted_pair_of_an_old_dataset_gets_its_place_when_it_is_read_again(
    old, tmp_path, series, deliver
):
    def tilted(first):
        def change(i, image):
            image.ImagePositionPatient = [-100, -120 + (first + i) * 0.64, (first + i) * 3]
            return image

        return change

    for name, first, low in (("full", 0, False), ("low", 2, True)):
        one = series("L002", f"{name} dose", seed=2, low=low, change=tilted(first))
        one.write(tmp_path / "source" / name)
    before = Geometry.from_attributes(old.snapshot().volume("L002").attributes)
    done = deliver(old, tmp_path / "source", "first")
    assert done.outcome.changed == ["L002"]
    after = Geometry.from_attributes(done.snapshot.volume("L002").attributes)
    assert before.shift == (0, 0)
    np.testing.assert_allclose(after.place(0), (-100, -120 + 2 * 0.64, 6), atol=1e-3)
    assert not upkeep.verify(old.snapshot(5)).problems, "the old commit keeps the old volume"


def test_the_next_commit_is_written_in_the_new_schema_and_both_are_read(
    old, tmp_path, pair, deliver
):
    pair(tmp_path / "source", "L004", seed=4)
    done = deliver(old, tmp_path / "source", "third")
    assert (done.accepted, done.snapshot.commit) == (["L004"], 6)
    assert old.identity == IDENTITY
    fresh = Dataset(old.location.url)
    assert [fresh.snapshot(commit).digest for commit in range(6)] == DIGESTS
    assert fresh.snapshot().digest == done.snapshot.digest
    table = Table(old.location.child("catalog"))
    assert [table.read(commit).schema for commit in (5, 6)] == [1, rows.SCHEMA_NUMBER]
    assert upkeep.diff(fresh.snapshot(5), fresh.snapshot(6)).added == ["L004"]
    assert upkeep.rollback(fresh, 2).digest == SECOND, "old rows in the new schema"
    assert not upkeep.verify(fresh.snapshot(), deep=True).problems


ACCEPTED = Accepted(
    patient="A",
    cohort="c",
    split="train",
    source="x",
    path="volumes/A/1",
    digest="d",
    slices=3,
    matrix=(4, 5),
    spacing=(3.0, 0.7, 0.8),
    anatomy="chest",
    dose_fraction=0.1,
    vendor="GE",
    kernel="B30f",
    note="cropped",
    fingerprint="f",
    pixels="p",
    slice_fingerprints=("a", "b"),
    identity_evidence=("u",),
    frame_of_reference="r",
    size=7,
    kvp=120.0,
    thickness=5.0,
)
REFUSED = Refused(
    key=keys.series("1.2", "unknown", "B"),
    cohort="c",
    patient="B",
    code="unknown_role",
    reason="so",
    source="y",
    files=("y/1", "y/2"),
    fingerprint="g",
    delivery="e",
)
RESERVED = Reserved(patient="C", cohort="", split="test")


def test_rows_come_back_from_a_table_as_they_were():
    given = [ACCEPTED, RESERVED, REFUSED, replace(REFUSED, key="file:1", patient=None)]
    written = rows.to_table(given)
    assert rows.from_table(written, rows.SCHEMA_NUMBER) == sorted(given, key=rows.order)


def test_a_digest_is_of_the_data_and_not_of_the_delivery():
    digest = rows.rows_digest([ACCEPTED, REFUSED])
    moved = replace(ACCEPTED, fingerprint="x", identity_evidence=(), frame_of_reference="", size=1)
    moved = replace(moved, kvp=None, thickness=None)
    again = replace(REFUSED, fingerprint=None, delivery="")
    assert rows.rows_digest([again, moved, RESERVED]) == digest
    for change in ({"split": "test"}, {"note": None}, {"slice_fingerprints": ("a",)}):
        assert rows.rows_digest([replace(ACCEPTED, **change), REFUSED]) != digest


def test_a_dataset_of_a_later_schema_says_what_to_do(tmp_path):
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()
    later = delta.schema({"key": pa.string(), "novel": pa.string()}, 6)
    content = pa.Table.from_pylist([{"key": "patient:A", "novel": "x"}], schema=later)
    Table(dataset.location.child("catalog")).write(content, "overwrite", after=0, note={})
    with pytest.raises(DatasetError, match=r"schema 6, .* knows 1 to 5: install a later one"):
        dataset.snapshot()
    assert dataset.snapshot(0).rows == ()


def test_keys_say_what_a_refusal_ends_with():
    assert keys.subject(keys.refused_patient("A:B")) == "refused:A:B"
    assert keys.subject(keys.series("1", "low", "A:B")) == keys.series_subject("1")
    assert keys.subject(keys.series("1", "low", None)) == keys.series_subject("1")
