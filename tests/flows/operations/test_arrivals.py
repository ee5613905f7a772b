"""A delivery's measure while its files are still being written, renamed and moved."""

import errno
import os
import time
from pathlib import Path

import pytest

from flows.operations import arrivals
from flows.operations.arrivals import MARK, look_at


@pytest.fixture
def study(tmp_path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"1")
    return folder


def test_a_file_that_is_renamed_meanwhile_is_a_change_of_this_moment(study, monkeypatch):
    partial = study / "2.dcm.part"
    partial.write_bytes(b"2")
    (study / MARK).touch()
    really = Path.is_file

    def renamed_after(path: Path) -> bool:
        there = really(path)
        if path == partial:
            path.unlink()
        return there

    monkeypatch.setattr(Path, "is_file", renamed_after)
    monkeypatch.setattr(arrivals, "time", lambda: time.time() + 3600)
    seen = look_at(study)
    assert seen.age < 60
    assert not seen.is_marked


def test_a_time_in_the_future_makes_no_delivery_wait_for_it(study, monkeypatch):
    os.utime(study / "1.dcm", (time.time() + 1e6,) * 2)
    monkeypatch.setattr(arrivals, "time", lambda: time.time() + 3600)
    assert look_at(study).age > 3500


def test_a_delivery_that_is_gone_is_empty(study):
    (study / "1.dcm").unlink()
    study.rmdir()
    assert look_at(study).is_empty


def test_a_folder_that_is_shut_is_something_and_not_nothing(study, monkeypatch):
    shut = study / "shut"
    shut.mkdir()
    before = look_at(study)
    really = os.scandir

    def refuse(path):
        if Path(path) == shut:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path)

    # A folder that its mode shuts is open to the user `root`, whom containers know.
    monkeypatch.setattr(os, "scandir", refuse)
    assert look_at(study).digest != before.digest
    assert not look_at(shut).is_empty


def test_a_draft_is_no_file_of_a_delivery(study):
    before = look_at(study).digest
    (study / "2.dcm.0123.draft").write_bytes(b"half")
    assert look_at(study).digest == before
