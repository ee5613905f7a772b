"""A backup of a home that is being written to: whole, and of one moment where that counts."""

import sqlite3
import tarfile
import threading
from contextlib import closing

import pytest

from flows.operations import backup
from flows.operations.backup import BackupError, back_up


@pytest.fixture
def home(tmp_path):
    """A home with a database, a dataset's log and volume, and what is not worth a backup."""
    place = tmp_path / "home"
    for name in (
        "dataset/catalog/_delta_log/00.json",
        "dataset/promotions/_delta_log/00.json",
        "dataset/volumes/A/c/0",
        "outbox/pacs/job.json",
        "denoised/1.2.draft/0001.dcm",
        "logs/watch.log",
        "scratch/x",
        "prefect/prefect.db-wal",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    with closing(sqlite3.connect(place / "prefect" / "runs.db")) as database:
        database.execute("CREATE TABLE pairs (one INTEGER, other INTEGER)")
    return place


def unpacked(file, folder):
    with tarfile.open(file) as tar:
        tar.extractall(folder, filter="data")
        return tar.getnames()


def test_what_refers_is_copied_before_what_it_refers_to(home, tmp_path):
    assert back_up(home, tmp_path / "x.tar") == 5
    assert unpacked(tmp_path / "x.tar", tmp_path / "to") == [
        "dataset/promotions/_delta_log/00.json",
        "prefect/runs.db",
        "dataset/catalog/_delta_log/00.json",
        "dataset/volumes/A/c/0",
        "outbox/pacs/job.json",
    ]
    assert (tmp_path / "to/outbox/pacs/job.json").read_text() == "outbox/pacs/job.json"


def test_a_database_is_of_one_moment_though_it_is_written_to(home, tmp_path):
    done, file = threading.Event(), home / "prefect" / "runs.db"

    def write() -> None:
        with closing(sqlite3.connect(file, timeout=60)) as database:
            number = 0
            while not done.is_set():
                number += 1
                with database:
                    database.execute("INSERT INTO pairs VALUES (?, 0)", (number,))
                    database.execute("UPDATE pairs SET other = one")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            back_up(home, tmp_path / f"{number}.tar")
    finally:
        done.set()
        writer.join()
    for number in range(5):
        unpacked(tmp_path / f"{number}.tar", tmp_path / str(number))
        with closing(sqlite3.connect(tmp_path / str(number) / "prefect" / "runs.db")) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert copy.execute("SELECT count(*) FROM pairs WHERE one != other").fetchone() == (0,)


def test_what_is_moved_meanwhile_is_there_once(home, tmp_path, monkeypatch):
    add = backup._add

    def move_and_add(tar, file, place):
        # From a folder that is yet to come into one that was walked through before.
        if file.name == "job.json" and "outbox" in file.parts:
            file.rename(home / "dataset" / "volumes" / "A" / "job.json")
        return add(tar, file, place)

    monkeypatch.setattr(backup, "_add", move_and_add)
    back_up(home, tmp_path / "x.tar")
    names = unpacked(tmp_path / "x.tar", tmp_path / "to")
    assert [name for name in names if name.endswith("job.json")] == ["dataset/volumes/A/job.json"]


def test_a_place_that_is_taken_or_lies_in_the_home_is_refused_and_nothing_is_left(home, tmp_path):
    (tmp_path / "x.tar").write_text("of before")
    with pytest.raises(BackupError, match="is there already"):
        back_up(home, tmp_path / "x.tar")
    with pytest.raises(BackupError, match="lies in the home"):
        back_up(home, home / "x.tar")
    with pytest.raises(FileNotFoundError):
        back_up(home, tmp_path / "nowhere" / "x.tar")
    assert (tmp_path / "x.tar").read_text() == "of before"
    assert {path.name for path in tmp_path.iterdir()} == {"home", "x.tar"}
