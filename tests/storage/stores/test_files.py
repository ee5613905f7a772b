"""A file is there whole or not at all, and on the disk before anything names it."""

import os
import threading
from pathlib import Path

import pytest

from storage.stores import files


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """Paths in the order in which they were synced."""
    paths: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return paths


def test_a_file_is_written_synced_and_then_named(tmp_path, synced):
    target = tmp_path / "folder" / "file"
    files.write(target, b"old")
    draft, folder = synced
    assert draft.parent == folder == target.parent
    assert draft != target
    files.write(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_what_fails_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    target = tmp_path / "file"
    files.write(target, b"old")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        files.write(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_who_reads_meanwhile_sees_one_or_the_other(tmp_path):
    target = tmp_path / "file"
    contents = {bytes([i]) * 100_000 for i in range(8)}
    files.write(target, min(contents))
    writers = [threading.Thread(target=files.write, args=(target, c)) for c in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert target.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [target]


def test_a_tree_is_synced_with_the_folders_that_lead_to_it(tmp_path, synced):
    leaf = tmp_path / "root" / "a" / "b" / "leaf"
    leaf.parent.mkdir(parents=True)
    leaf.write_bytes(b"x")
    files.sync_tree(tmp_path / "root" / "a", tmp_path / "root")
    assert sorted(synced) == [tmp_path / "root", leaf.parent.parent, leaf.parent, leaf]


def test_the_space_of_a_folder_that_is_not_there_yet_is_that_of_its_disk(tmp_path):
    assert files.free_bytes(tmp_path / "not" / "there") > 0
