"""Series are found in a folder, a zip or a file, in any layout."""

import errno
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from storage.dicom.finding import find_series, opened
from storage.errors import SourceError, UnusableSourceError


def test_a_heap_of_files_is_told_apart_by_series(tmp_path, series):
    heap = tmp_path / "heap"
    heap.mkdir()
    for number, name in enumerate(("Low Dose Images", "Full Dose Images")):
        for file in series("L001", name, slices=3).write(tmp_path / name).iterdir():
            shutil.copy(file, heap / f"{number}-{file.name}")
    (heap / "notes.txt").write_text("no DICOM")
    (heap / "broken.dcm").write_bytes(b"nothing")
    found, unreadable = find_series(heap)
    assert sorted(one.description for one in found) == ["Full Dose Images", "Low Dose Images"]
    assert [len(one.headers) for one in found] == [3, 3]
    assert [header.path for header in unreadable] == ["broken.dcm"]


def test_a_single_file_is_a_series_of_its_own(tmp_path, series):
    file = next(iter(series(slices=3).write(tmp_path / "a").iterdir()))
    with opened(file, tmp_path) as place:
        (found,), _ = find_series(place)
    assert len(found.headers) == 1
    assert (found.root / found.headers[0].path) == file


def test_a_zip_is_unpacked_meanwhile(tmp_path, series):
    folder = series(slices=3).write(tmp_path / "a")
    shutil.make_archive(str(tmp_path / "study"), "zip", folder)
    with opened(tmp_path / "study.zip", tmp_path) as place:
        (found,), _ = find_series(place)
        assert len(found.headers) == 3
    assert not place.exists()


def test_what_is_not_there_or_damaged_is_named(tmp_path):
    with (
        pytest.raises(SourceError, match="nowhere is not there"),
        opened(tmp_path / "nowhere", tmp_path),
    ):
        pass
    file = tmp_path / "cut.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"x" * 1000)
    content = bytearray(file.read_bytes())
    content[50] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"cut\.zip: cannot be unpacked"), opened(file, tmp_path):
        pass


def test_what_is_shut_or_a_link_is_told_and_not_left_out_in_silence(tmp_path, series, monkeypatch):
    source = tmp_path / "study"
    series(slices=3).write(source / "a")
    (source / "shut").mkdir()
    (source / "elsewhere").symlink_to(tmp_path)
    scandir = os.scandir

    def shut(path: Path) -> object:
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", shut)
    (found,), unread = find_series(source)
    assert len(found.headers) == 3
    told = {header.path: header.reason for header in unread}
    assert told.keys() == {"shut", "elsewhere"}
    assert "the folder cannot be opened: Permission denied" in told["shut"]
    assert "a link, which is not followed" in told["elsewhere"]


def test_a_zip_with_any_wrong_byte_is_unpacked_or_refused(tmp_path):
    whole, random = tmp_path / "whole.zip", np.random.default_rng(0)
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", random.integers(0, 9, 3000, dtype=np.uint8).tobytes())
    content, refused = whole.read_bytes(), 0
    for at in random.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        file = tmp_path / "damaged.zip"
        file.write_bytes(damaged)
        try:
            with opened(file, tmp_path):
                pass
        except UnusableSourceError:
            refused += 1
    assert refused > 20
