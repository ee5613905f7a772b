"""A derived series is there whole or not at all, and its record says what it was made of."""

from datetime import UTC, datetime

import numpy as np
import pytest

from storage.dicom.archive import Destination, SeriesRecord, source_digest
from storage.dicom.finding import find_series
from storage.errors import StoreError


def record(source: str = "s", instances: int = 0) -> SeriesRecord:
    return SeriesRecord(
        series="1.9",
        source=source,
        source_series="1.2",
        source_path="in",
        model="3",
        identity="ab",
        options="{}",
        software="0.1.0",
        begun=datetime.now(UTC),
        instances=instances,
    )


def put(place: Destination, images) -> None:
    for number, image in enumerate(images, 1):
        place.put(number, image, image.pixel_array)


@pytest.fixture
def images(series):
    one = series(slices=3)
    return [one.image(i, hu, "1.2.3") for i, hu in enumerate(one.values())]


def test_a_series_has_its_name_only_when_it_is_whole(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    with place.begin(record().model_copy(update={"precision": "mixed"})) as begun:
        put(place, images[:2])
        assert not place.final.exists()
        assert not place.is_done("s", None)
    assert [p.name for p in tmp_path.iterdir()] == ["1.9.json"]
    again = Destination(tmp_path, "1.9")
    with again.begin(record(instances=3)) as anew:
        assert (anew.begun, anew.precision) == (begun.begun, "mixed")
        put(again, images)
        again.finish(anew)
    assert again.is_done("s", None)
    assert not again.is_done("another source", None)
    assert not again.is_done("s", "rle")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.9", "1.9.json"]
    (place.final / "0002.dcm").unlink()
    assert not again.is_done("s", None)


def test_what_a_killed_process_left_is_removed(tmp_path, images):
    (tmp_path / "1.9.draft").mkdir()
    (tmp_path / "1.9.draft" / "0007.dcm").write_bytes(b"half")
    (tmp_path / "1.9.former.draft").mkdir()
    (tmp_path / "1.9.json.0123.draft").write_bytes(b"half")
    place = Destination(tmp_path, "1.9")
    with place.begin(record(instances=3)) as begun:
        put(place, images)
        place.finish(begun)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.9", "1.9.json"]
    assert len(list(place.final.iterdir())) == 3


def test_two_processes_never_write_one_series(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    with place.begin(record(instances=3)) as begun:
        put(place, images)
        with (
            pytest.raises(StoreError, match="another process restores this series"),
            Destination(tmp_path, "1.9").begin(record()),
        ):
            pass
        place.finish(begun)
    assert place.is_done("s", None)


def test_a_draft_that_lacks_an_instance_gets_no_name(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    with place.begin(record(instances=3)) as begun:
        put(place, images[:2])
        with pytest.raises(StoreError, match="holds 2 instances, expected 3"):
            place.finish(begun)
    assert not place.final.exists()


def test_another_source_takes_the_place_of_the_first(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    for source, count in (("one", 3), ("two", 2)):
        with place.begin(record(source, count)) as begun:
            put(place, images[:count])
            place.finish(begun)
    assert place.is_done("two", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.9", "1.9.json"]
    assert len(list(place.final.iterdir())) == 2


def test_what_reads_back_otherwise_is_no_instance(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    with (
        place.begin(record()),
        pytest.raises(StoreError, match="reads back otherwise"),
    ):
        place.put(1, images[0], np.zeros_like(images[0].pixel_array))


def test_a_quarantined_series_leaves_its_reason_and_no_file(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    with place.begin(record("former", 3)) as begun:
        put(place, images)
        place.finish(begun)
    with place.begin(record()) as begun:
        put(place, images)
        place.quarantine(begun.model_copy(update={"quarantined": ["bone changes by 40 HU"]}))
    assert [p.name for p in tmp_path.iterdir()] == ["1.9.json"]
    assert place.record().quarantined == ["bone changes by 40 HU"]
    assert not place.is_done("s", None)


@pytest.mark.parametrize("text", ["", "{", '{"schema": 99}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "1.9.json").write_text(text)
    assert Destination(tmp_path, "1.9").record() is None


def test_a_source_is_known_by_its_content_whatever_its_names_and_times(tmp_path, series):
    folder = series(slices=4).write(tmp_path / "a")
    (found,), _ = find_series(folder)
    digest = source_digest(folder, found.headers)
    (tmp_path / "b").mkdir()
    for number, file in enumerate(sorted(folder.iterdir(), reverse=True)):
        (tmp_path / "b" / f"{number}.dcm").write_bytes(file.read_bytes())
    (copied,), _ = find_series(tmp_path / "b")
    assert source_digest(tmp_path / "b", copied.headers) == digest
    with next(iter(folder.iterdir())).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert source_digest(folder, found.headers) != digest
    assert source_digest(folder, found.headers[1:]) != digest
