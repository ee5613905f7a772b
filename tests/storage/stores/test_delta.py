"""A version of a table is on the disk before its log names it, and is written by one writer."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from storage.dataset.versions import Dataset
from storage.errors import Conflict, StoreError
from storage.stores import delta, files
from storage.stores.delta import Table
from storage.stores.location import Location

COLUMNS = delta.schema({"name": pa.string(), "size": pa.int64()}, 7)


def content(*names: str) -> pa.Table:
    return pa.Table.from_pylist([{"name": name, "size": 1} for name in names], schema=COLUMNS)


@pytest.fixture(params=["folder", "s3"])
def table(request, tmp_path) -> Table:
    if request.param == "folder":
        location = Location(tmp_path / "table")
    else:
        options = request.getfixturevalue("s3")
        location = Location(f"s3://ct-data/{tmp_path.name}-table", options)
    table = Table(location)
    table.create(COLUMNS, {"made": "here"})
    return table


def test_versions_state_their_schema_and_the_table_its_identity(table):
    table.write(content("a"), "overwrite", after=0, note={"n": 1})
    other = delta.schema({"name": pa.string(), "novel": pa.list_(pa.string())}, 8)
    rows = pa.Table.from_pylist([{"name": "b", "novel": ["x", "y"]}], schema=other)
    table.write(rows, "overwrite", after=1, note={"n": 2})
    old, new = table.read(1), table.read()
    assert (old.schema, old.content.to_pylist()) == (7, [{"name": "a", "size": 1}])
    assert (new.schema, new.content.to_pylist()) == (8, [{"name": "b", "novel": ["x", "y"]}])
    assert old.identity == new.identity == table.read(0).identity
    assert [entry.note for entry in table.log()] == [{"n": 2}, {"n": 1}, {"made": "here"}]


def test_who_wrote_after_an_older_version_must_read_again(table):
    table.write(content("a"), "append", after=0, note={})
    for mode in ("append", "overwrite"):
        with pytest.raises(Conflict):
            table.write(content("b"), mode, after=0, note={})
    table.write(content("b"), "append", after=1, note={})
    assert sorted(table.read().content.column("name").to_pylist()) == ["a", "b"]


def test_what_is_not_there_is_told_from_what_fails(table):
    with pytest.raises(LookupError):
        table.read(5)
    nowhere = Table(table.location.child("nowhere"))
    with pytest.raises(FileNotFoundError):
        nowhere.read()
    assert not nowhere.exists()


def test_data_is_synced_before_the_log_names_it_and_then_the_log(tmp_path, monkeypatch):
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()
    log = tmp_path / "dataset" / "catalog" / "_delta_log"
    seen, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((path.suffix, (log / f"{1:020}.json").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    dataset.commit(lambda _: [], action="ingest")
    (data, entry) = [found for found in seen if found[0]]
    assert data == (".draft", False), "data first"
    assert entry == (".json", True)
    assert seen.index(data) < seen.index(entry)


def test_a_disk_that_takes_no_data_leaves_the_last_version(tmp_path, monkeypatch):
    dataset = Dataset(tmp_path / "dataset")
    dataset.create()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", fails)
    with pytest.raises(StoreError, match="disk is full"):
        dataset.commit(lambda _: [], action="ingest")
    assert dataset.snapshot().commit == 0
