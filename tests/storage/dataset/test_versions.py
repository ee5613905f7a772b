"""The same dataset in a folder and on an S3 server: commits, races, history, upkeep.

In one file, for all of it runs on both stores of one fixture.
"""

import os
import pickle
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import obstore
import pytest

from storage.dataset import upkeep, volumes, writing
from storage.dataset.garbage import collect_garbage
from storage.dataset.rows import Accepted, Refused, Row
from storage.dataset.versions import Dataset
from storage.errors import Conflict, DatasetError, SplitError, StorageError


@pytest.fixture(params=["folder", "s3"])
def dataset(request, tmp_path) -> Dataset:
    """An empty dataset, in a folder and on the server."""
    if request.param == "folder":
        dataset = Dataset(tmp_path / "dataset")
    else:
        dataset = Dataset(f"s3://ct-data/{tmp_path.name}", request.getfixturevalue("s3"))
    dataset.create()
    return dataset


def put(dataset: Dataset, scratch: Path, patient: str, seed: int, split: str = "train") -> Accepted:
    """A volume in the store, and the row that names it."""
    hu = np.random.default_rng(seed).integers(-1000, 1000, (45, 8, 9)).astype(np.int16)
    about = {
        "anatomy": "chest",
        "spacing": [3.0, 0.7, 0.7],
        "positions": [3.0 * i for i in range(45)],
    }
    written = writing.write(
        dataset.location,
        scratch / f"{patient}-{seed}",
        patient,
        hu.shape,
        about,
        {"low": hu + 1, "full": hu},
    )
    return Accepted(
        cohort="c",
        patient=patient,
        split=split,
        path=written.path,
        digest=written.digest,
        slices=45,
        matrix=(8, 9),
        spacing=(3.0, 0.7, 0.7),
        anatomy="chest",
        vendor="GE",
        pixels=written.pixels,
        slice_fingerprints=written.slice_fingerprints,
        size=written.size,
    )


def refused(patient: str) -> Refused:
    return Refused(
        key=f"refused:{patient}",
        cohort="c",
        patient=patient,
        code="no_low_dose",
        reason="no",
        source="x",
    )


def commit(dataset: Dataset, *rows: Row):
    """Add or replace rows."""

    def decide(current):
        return list(({(r.cohort, r.key): r for r in (*current.rows, *rows)}).values())

    return dataset.commit(decide, action="ingest", cohort="c")


class TestCommits:
    def test_a_new_dataset_is_commit_0_and_empty(self, dataset):
        snapshot = dataset.snapshot()
        assert (snapshot.commit, snapshot.parent, snapshot.patients()) == (0, None, [])
        dataset.create()
        assert dataset.snapshot().commit == 0

    def test_old_commits_stay_as_they_were(self, dataset, tmp_path):
        first = commit(dataset, put(dataset, tmp_path, "A", 1))
        commit(dataset, put(dataset, tmp_path, "B", 2), refused("C"))
        again = dataset.snapshot(1)
        assert (again.digest, again.rows) == (first.digest, first.rows)
        latest = dataset.snapshot()
        assert [p.patient for p in latest.patients()] == ["A", "B"]
        assert [row.status for row in latest.rows] == ["accepted", "accepted", "refused"]
        assert latest.digest != first.digest
        assert latest.parent == 1

    def test_a_dozen_commits_and_a_checkpoint_keep_every_one(self, dataset, tmp_path):
        row = put(dataset, tmp_path, "A", 1)
        digests = [commit(dataset, replace(row, note=str(i))).digest for i in range(12)]
        fresh = Dataset(dataset.location.url, dataset.location.options)
        assert [fresh.snapshot(i + 1).digest for i in range(12)] == digests
        assert [entry.commit for entry in fresh.log()] == list(range(12, -1, -1))

    def test_the_log_says_what_and_how_many(self, dataset, tmp_path):
        commit(dataset, put(dataset, tmp_path, "A", 1), refused("B"))
        entry = dataset.log()[0]
        assert (entry.commit, entry.parent, entry.action, entry.cohort) == (1, 0, "ingest", "c")
        expected = {"accepted": 1, "refused": 1, "train": 1, "validation": 0, "test": 0}
        assert entry.counts == expected
        assert entry.code_version

    def test_a_stale_writer_conflicts(self, dataset, tmp_path):
        row = put(dataset, tmp_path, "A", 1)
        dataset.catalog.commit([row], parent=0, metadata={})
        with pytest.raises(Conflict):
            dataset.catalog.commit([], parent=0, metadata={})
        assert [p.patient for p in dataset.snapshot().patients()] == ["A"]

    def test_the_loser_of_a_race_decides_again(self, dataset, tmp_path):
        rows = [put(dataset, tmp_path, name, seed) for seed, name in enumerate("ABCDEFGH")]
        barrier = threading.Barrier(len(rows))

        def writer(row):
            barrier.wait()
            return commit(Dataset(dataset.location.url, dataset.location.options), row)

        with ThreadPoolExecutor(len(rows)) as pool:
            list(pool.map(writer, rows))
        assert [p.patient for p in dataset.snapshot().patients()] == list("ABCDEFGH")
        assert dataset.snapshot().commit == 8

    def test_first_writers_at_once_make_one_dataset(self, dataset):
        location = dataset.location.child("another")
        barrier = threading.Barrier(6)

        def create(_):
            barrier.wait()
            Dataset(location.url, location.options).create()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(create, range(6)))
        assert Dataset(location.url, location.options).snapshot().commit == 0

    def test_a_dataset_has_one_identity_for_ever_and_another_has_another(self, dataset, tmp_path):
        identity = dataset.identity
        assert uuid.UUID(identity)
        assert commit(dataset, put(dataset, tmp_path, "A", 1)).identity == identity
        assert dataset.snapshot().identity == dataset.snapshot(0).identity == identity
        other = Dataset(dataset.location.child("other").url, dataset.location.options)
        other.create()
        assert other.identity != identity

    def test_unknown_commit_and_dataset_say_what_to_do(self, dataset):
        for commit in (7, -1, 2**70):
            with pytest.raises(DatasetError, match=rf"no commit {commit} .* 0 to 0"):
                dataset.snapshot(commit)
        nowhere = Dataset(dataset.location.child("nowhere").url, dataset.location.options)
        with pytest.raises(DatasetError, match=r"no dataset .*hqinet ingest"):
            nowhere.snapshot()


class TestVolumes:
    def test_a_volume_reads_back_and_travels_to_other_processes(self, dataset, tmp_path):
        snapshot = commit(dataset, put(dataset, tmp_path, "A", 1))
        volume = pickle.loads(pickle.dumps(snapshot.volume("A")))
        hu = np.random.default_rng(1).integers(-1000, 1000, (45, 8, 9)).astype(np.int16)
        assert (volume.full[:] == hu).all()
        assert (volume.low[38:42] == hu[38:42] + 1).all()
        assert volume.full[:].dtype == np.int16

    def test_the_same_content_has_the_same_address_and_bytes(self, dataset, tmp_path):
        first = put(dataset, tmp_path, "A", 1)
        before = contents(dataset)
        second = put(dataset, tmp_path, "A", 1)
        assert first.path == second.path
        assert contents(dataset) == before
        assert put(dataset, tmp_path, "A", 2).path != first.path

    def test_unsafe_names_stay_below_the_dataset(self, dataset, tmp_path):
        for seed, name in enumerate(["../../etc", "a/b", "ü ö", "x" * 200, "CON:", ".."]):
            row = put(dataset, tmp_path / str(seed), f"n{seed}", seed)
            folder = writing.folder_name(name)
            assert "/" not in folder
            assert folder.isascii()
            assert len(folder) < 80
            assert row.path.startswith("volumes/")
        assert len({writing.folder_name(n) for n in ("a/b", "a_b", "a b", "a.b")}) == 4

    def test_a_patient_who_is_not_there(self, dataset):
        with pytest.raises(DatasetError, match="'A' is not in commit 0"):
            dataset.snapshot().volume("A")


def contents(dataset: Dataset) -> dict[str, bytes]:
    store = dataset.location.store()
    names = [e["path"] for batch in obstore.list(store, "volumes") for e in batch]
    return {name: bytes(obstore.get(store, name).bytes()) for name in names}


class TestUpkeep:
    def test_diff_names_patients(self, dataset, tmp_path):
        commit(
            dataset, put(dataset, tmp_path, "A", 1), put(dataset, tmp_path, "B", 2), refused("D")
        )
        changed = put(dataset, tmp_path, "A", 9)
        dataset.commit(
            lambda _: [changed, put(dataset, tmp_path, "C", 3), refused("E")],
            action="ingest",
        )
        found = upkeep.diff(dataset.snapshot(1), dataset.snapshot(2))
        assert (found.added, found.removed, found.changed) == (["C"], ["B"], ["A"])
        assert (len(found.refused), len(found.resolved)) == (1, 1)

    def test_verify_finds_a_lost_and_a_damaged_shard(self, dataset, tmp_path):
        row = put(dataset, tmp_path, "A", 1)
        snapshot = commit(dataset, row, put(dataset, tmp_path, "B", 2))
        assert not upkeep.verify(snapshot, deep=True).problems
        store = dataset.location.store()
        shard = f"{row.path}/full/c/1/0/0"
        good = bytes(obstore.get(store, shard).bytes())
        damaged = bytearray(good)
        damaged[len(good) // 2] ^= 0xFF
        obstore.put(store, shard, bytes(damaged))
        assert not upkeep.verify(snapshot).problems
        assert [p.patient for p in upkeep.verify(snapshot, deep=True).problems] == ["A"]
        obstore.put(store, shard, good[:-50])
        (problem,) = upkeep.verify(snapshot).problems
        assert "bytes," in problem.problem
        obstore.delete(store, shard)
        (problem,) = upkeep.verify(snapshot).problems
        assert problem.patient == "A"
        assert f"remove the folder {row.path} " in problem.problem
        for batch in list(obstore.list(store, row.path)):
            obstore.delete(store, [entry["path"] for entry in batch])
        (problem,) = upkeep.verify(snapshot).problems
        assert "the volume is not there: ingest the cohort again" in problem.problem

    def test_rollback_is_a_new_commit_with_old_rows_and_splits_are_remembered(
        self, dataset, tmp_path
    ):
        first = commit(dataset, put(dataset, tmp_path, "A", 1))
        second = commit(dataset, put(dataset, tmp_path, "B", 2, split="test"))
        back = upkeep.rollback(dataset, 1)
        assert (back.commit, back.digest) == (3, first.digest)
        assert [p.patient for p in back.patients()] == ["A"]
        assert upkeep.export_splits(back) == "patient,split\nA,train\nB,test\n"
        assert upkeep.rollback(dataset, 2).digest == second.digest
        assert upkeep.rollback(dataset, 2).commit == 4, "nothing to do, no commit"
        assert dataset.log()[0].action == "rollback"

    def test_a_rollback_leaves_a_split_where_a_hand_put_it(self, dataset, tmp_path):
        commit(dataset, put(dataset, tmp_path, "A", 1))
        upkeep.import_splits(dataset, "patient,split\nA,test\n")
        commit(dataset, put(dataset, tmp_path, "B", 2))
        assert [(p.patient, p.split) for p in upkeep.rollback(dataset, 1).patients()] == [
            ("A", "test")
        ]

    def test_splits_are_fixed_by_hand_and_reserved(self, dataset, tmp_path):
        commit(dataset, put(dataset, tmp_path, "A", 1))
        wanted = "patient,split\nA,test\nZ,validation\n"
        with pytest.raises(SplitError, match=r"1 of 2 patients .* first is 'Z': .* --reserve"):
            upkeep.import_splits(dataset, wanted)
        assert dataset.snapshot().commit == 1
        snapshot, moves = upkeep.import_splits(dataset, wanted, reserve=True)
        assert [(m.patient, m.before, m.after) for m in moves] == [
            ("A", "train", "test"),
            ("Z", None, "validation"),
        ]
        assert [p.split for p in snapshot.patients()] == ["test"]
        assert upkeep.import_splits(dataset, upkeep.export_splits(snapshot))[1] == []
        assert dataset.snapshot().commit == 2

    def test_a_reserved_split_is_released_and_no_other(self, dataset, tmp_path):
        commit(dataset, put(dataset, tmp_path, "A", 1))
        upkeep.import_splits(dataset, "patient,split\nZ,validation\n", reserve=True)
        for patient, said in (("A", "has data"), ("B", "has no split")):
            with pytest.raises(SplitError, match=f"'{patient}' {said}"):
                upkeep.release_splits(dataset, ["Z", patient])
        snapshot, moves = upkeep.release_splits(dataset, ["Z"])
        assert [(m.patient, m.before, m.after) for m in moves] == [("Z", "validation", None)]
        assert snapshot.splits == {"A": "train"}

    @pytest.mark.parametrize(
        "text",
        ["a,b\n1,2\n", "patient,split\nA,dev\n", "patient,split\nA,test\nA,test\n"],
    )
    def test_a_wrong_split_file_moves_nothing(self, dataset, text):
        with pytest.raises(StorageError):
            upkeep.import_splits(dataset, text)
        assert dataset.snapshot().commit == 0

    def test_garbage_is_what_no_commit_ever_named(self, dataset, tmp_path):
        kept = put(dataset, tmp_path, "A", 1)
        commit(dataset, kept)
        upkeep.rollback(dataset, 0)
        lost = put(dataset, tmp_path, "A", 2)
        assert collect_garbage(dataset, dry_run=False).volumes == [], "it is too young"
        nothing = timedelta(seconds=-60)
        found = collect_garbage(dataset, dry_run=True, grace=nothing)
        assert found.volumes == [lost.path]
        assert found.bytes > 0
        assert volumes.is_whole(dataset.location, lost), "a dry run removes nothing"
        collect_garbage(dataset, dry_run=False, grace=nothing)
        assert not volumes.is_whole(dataset.location, lost)
        assert dataset.snapshot(1).volume("A").full.shape == (45, 8, 9)
        assert collect_garbage(dataset, dry_run=True, grace=nothing).volumes == []


def test_a_folder_that_cannot_be_written_takes_no_commit(tmp_path, monkeypatch):
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()
    before = dataset.snapshot()
    # What the system says of a read-only disk, to root too.
    monkeypatch.setattr("os.access", lambda _, mode: mode != os.W_OK)
    with pytest.raises(StorageError, match="read-only"):
        commit(dataset, refused("A"))
    assert dataset.snapshot() == before


def test_garbage_of_killed_writers_in_a_folder(tmp_path):
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()
    half = tmp_path / "dataset" / "volumes" / "A" / "x" / "low" / "c" / "0" / "0" / "0#7"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    orphan = tmp_path / "dataset" / "catalog" / "part-00000-lost.snappy.parquet"
    orphan.write_bytes(b"orphan")
    scratch, memory = tmp_path / "scratch", tmp_path / "scan"
    (scratch / "123-abc" / "full").mkdir(parents=True)
    (memory / "converted").mkdir(parents=True)
    for name, days in (("old.json", 31), ("converted/old.json", 31), ("new.json", 29)):
        (memory / name).write_text("{}")
        when = time.time() - days * 86400
        os.utime(memory / name, (when, when))
    half_an_hour = timedelta(minutes=30)
    assert collect_garbage(dataset, dry_run=True, grace=half_an_hour).files == []
    nothing = timedelta(seconds=-60)
    found = collect_garbage(dataset, scratch, memory, dry_run=False, grace=nothing)
    assert sorted(found.files) == [
        "catalog/part-00000-lost.snappy.parquet",
        "volumes/A/x/low/c/0/0/0#7",
    ]
    assert found.scratch == ["123-abc"]
    assert found.memory == ["old.json", "old.json"]
    assert [file.name for file in memory.rglob("*.json")] == ["new.json"]
    assert not half.exists()
    assert not orphan.exists()
    assert not (scratch / "123-abc").exists()
    assert dataset.snapshot().commit == 0


@pytest.mark.parametrize("url", ["s3a://bucket/x", "gcs://bucket/x", "file:///data/x"])
def test_a_url_of_no_known_kind_makes_no_folder(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="give a folder, or s3://"):
        Dataset(url)
    assert not list(tmp_path.iterdir())
