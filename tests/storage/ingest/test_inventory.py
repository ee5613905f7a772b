"""A delivery is looked at as it lies; what changes under way is noticed when pixels are read."""

import os

import pytest

from storage.ingest.conversion import convert
from storage.ingest.inventory import take_inventory
from storage.ingest.outcome import merge
from storage.ingest.planning import plan


@pytest.mark.parametrize("syntax", ["plain", "compressed"])
@pytest.mark.parametrize("what", ["size", "time"])
def test_a_file_that_is_replaced_before_its_pixels_are_read_is_refused_until_next_time(
    tmp_path, series, dataset, delivery, deliver, here, what, syntax
):
    def compress(_, image):
        if syntax == "compressed":
            image.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
        return image

    for dose in ("full", "low"):
        one = series("L001", f"{dose} dose", low=dose == "low", change=compress)
        one.write(tmp_path / "source" / dose)
    opened = delivery(tmp_path / "source")
    found = take_inventory(opened, here)
    planned = plan(opened, found)
    file = tmp_path / "source" / "low" / "1-004.dcm"
    if what == "size":
        status = file.stat()
        file.write_bytes(file.read_bytes() + b"\0")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(file, (1, 1))
    outcome = merge(opened, found, planned, list(convert(opened, planned, here)))
    (refused,) = outcome.refused
    assert (refused.code, refused.files) == ("file_changed", ("low/1-004.dcm",))
    assert "low-dose series" in refused.reason
    again = deliver(dataset, tmp_path / "source")
    if what == "time":
        assert (again.accepted, again.refused) == (["L001"], [])


def test_what_is_left_aside_is_named(tmp_path, pair, series, delivery, here):
    study = pair(tmp_path / "source", "L001")
    (tmp_path / "source" / "metadata.csv").write_text("stray")
    (tmp_path / "source" / "link").symlink_to(study)
    raw = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"}
    series("L001", "Projections", attributes=raw, slices=9).write(study / "projections")
    left = take_inventory(delivery(tmp_path / "source"), here).left
    assert (left["other"].count, left["other"].files) == (1, ("metadata.csv",))
    assert left["links"].files == ("link",)
    assert (left["projections"].count, len(left["projections"].files)) == (9, 5)
