"""What is called unchanged is whole: also after a power cut, and ingest heals what is not."""

import os
import shutil

import pytest

from storage.dataset import upkeep
from storage.dataset.versions import Dataset
from storage.errors import StoreError
from storage.ingest import conversion


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def empty(file):
    file.write_bytes(b"")


@pytest.fixture
def source(tmp_path, pair):
    for seed, patient in enumerate(("L001", "L002")):
        pair(tmp_path / "source", patient, seed=seed)
    return tmp_path / "source"


@pytest.mark.parametrize("log_entry", [None, os.remove, empty], ids=["kept", "lost", "empty"])
@pytest.mark.parametrize("shard", [None, os.remove, cut, empty], ids=["whole", "lost", "cut", "0"])
def test_after_a_power_cut_nothing_is_called_unchanged_that_is_not_whole(
    tmp_path, source, dataset, deliver, log_entry, shard
):
    before = deliver(dataset, source).snapshot
    if shard:
        shard(next((tmp_path / "dataset").glob("volumes/L001/*/full/c/0/0/0")))
        assert [p.patient for p in upkeep.verify(before).problems] == ["L001"]
    if log_entry:
        log_entry(tmp_path / "dataset" / "catalog" / "_delta_log" / f"{1:020}.json")
    dataset = Dataset(tmp_path / "dataset")
    done = deliver(dataset, source)
    assert [p.patient for p in done.snapshot.patients()] == ["L001", "L002"]
    assert not upkeep.verify(done.snapshot, deep=True).problems
    assert done.snapshot.digest == before.digest
    again = deliver(dataset, source)
    assert (again.outcome.unchanged, again.snapshot.commit) == (2, done.snapshot.commit)


def test_a_pair_is_read_again_only_where_its_volume_is_not_whole(
    tmp_path, source, dataset, deliver, monkeypatch
):
    deliver(dataset, source)
    shutil.rmtree(tmp_path / "memory")
    read = []
    convert = conversion.Conversion.__call__
    monkeypatch.setattr(
        conversion.Conversion,
        "__call__",
        lambda self, pair: read.append(pair.patient) or convert(self, pair),
    )
    deliver(dataset, source)
    assert read == []
    cut(next((tmp_path / "dataset").glob("volumes/L002/*/low/c/0/0/0")))
    assert deliver(dataset, source).outcome.unchanged == 2
    assert read == ["L002"]


def test_a_disk_without_room_is_noticed_before_a_pixel_is_read(
    tmp_path, source, dataset, deliver, monkeypatch
):
    monkeypatch.setattr("storage.stores.files.free_bytes", lambda _: 100)
    monkeypatch.setattr(
        conversion.Conversion, "__call__", lambda *_: pytest.fail("a pair was read")
    )
    with pytest.raises(StoreError, match="the disk is full: 0 MB are free, and 2 pairs take"):
        deliver(dataset, source)
    assert dataset.snapshot().commit == 0
