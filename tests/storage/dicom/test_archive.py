"""A derived series is there whole or not at all, and its record says what it was made of."""

import numpy as np
import pytest

from storage.dicom.archive import Destination, SeriesRecord, now, source_digest
from storage.dicom.finding import find_series
from storage.errors import StoreError


def record(source: str = "s") -> SeriesRecord:
    return SeriesRecord(
        source=source,
        source_series="1.2",
        source_folder="in",
        model="3",
        identity="ab",
        options="{}",
        begun=now(),
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
    begun = place.begin(record())
    put(place, images[:2])
    assert not place.final.exists()
    assert not place.is_done("s")
    # Killed here; the next attempt begins anew and keeps the time.
    again = Destination(tmp_path, "1.9")
    assert again.begin(record()).begun == begun.begun
    put(again, images)
    again.finish(begun)
    assert again.is_done("s")
    assert not again.is_done("another source")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.9", "1.9.json"]
    (place.final / "0002.dcm").unlink()
    assert not again.is_done("s")


def test_another_source_takes_the_place_of_the_first(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    put_all = place.begin(record("one"))
    put(place, images)
    place.finish(put_all)
    other = place.begin(record("two"))
    put(place, images[:2])
    place.finish(other)
    assert place.is_done("two")
    assert len(list(place.final.iterdir())) == 2


def test_what_reads_back_otherwise_is_no_instance(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    place.begin(record())
    with pytest.raises(StoreError, match="reads back otherwise"):
        place.put(1, images[0], np.zeros_like(images[0].pixel_array))


def test_a_quarantined_series_leaves_its_reason_and_no_file(tmp_path, images):
    place = Destination(tmp_path, "1.9")
    begun = place.begin(record())
    put(place, images)
    place.quarantine(begun.model_copy(update={"quarantined": ["bone changes by 40 HU"]}))
    assert [p.name for p in tmp_path.iterdir()] == ["1.9.json"]
    assert place.record().quarantined == ["bone changes by 40 HU"]
    assert not place.is_done("s")


@pytest.mark.parametrize("text", ["", "{", '{"schema": 99}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "1.9.json").write_text(text)
    assert Destination(tmp_path, "1.9").record() is None


def test_a_source_is_known_by_its_files_whatever_their_order(tmp_path, series):
    folder = series(slices=4).write(tmp_path)
    (found,), _ = find_series(folder)
    digest = source_digest(found.headers)
    assert source_digest(reversed(found.headers)) == digest
    next(iter(folder.iterdir())).unlink()
    (fewer,), _ = find_series(folder)
    assert source_digest(fewer.headers) != digest
