"""What is remembered is taken up while the file, the volume and the schema are what they were."""

import hashlib
import json
import os
import time

import pytest
from pydantic import BaseModel

from storage.dataset.rows import Accepted, Refused
from storage.dicom.headers import read_header
from storage.ingest import inventory
from storage.ingest.inventory import take_inventory
from storage.ingest.memory import (
    ConversionMemory,
    RememberedConversion,
    RememberedRecords,
)
from storage.ingest.pairing import Pair
from storage.stores.location import Location

PAIR = Pair("A", None, None, "chest", None, "folder", (), "", "f")


def accepted(**more) -> Accepted:
    about = {"path": "volumes/A/1", "digest": "d", "slices": 1, "matrix": (2, 2), "size": 6}
    about |= {"spacing": (1.0, 1.0, 1.0), "anatomy": "chest", "vendor": "GE", "fingerprint": "f"}
    return Accepted(patient="A", cohort="c", **about | more)


@pytest.mark.parametrize(("named", "recalled"), [((), False), (("volumes/A/1",), True)])
def test_an_old_volume_is_taken_up_only_if_a_commit_names_it(tmp_path, delivery, named, recalled):
    two_days_ago = time.time() - 2 * 86400
    for name in ("full/c/0/0/0", "low/c/0/0/0", "full/zarr.json", "low/zarr.json", "zarr.json"):
        file = tmp_path / "volumes" / "A" / "1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}" if name == "zarr.json" else "1")
        os.utime(file, (two_days_ago, two_days_ago))
    memory = ConversionMemory(delivery(tmp_path))
    memory.remember(accepted())
    found = memory.recall(PAIR, Location(tmp_path), named)
    assert found == (accepted() if recalled else None)


@pytest.mark.parametrize(
    "row",
    [
        accepted(note="cropped", slice_fingerprints=("a", "b"), dose_fraction=0.1, split="train"),
        Refused(
            key="refused:A",
            cohort="c",
            patient="A",
            code="identical_doses",
            reason="so",
            files=("a", "b"),
            fingerprint="f",
            delivery="d",
        ),
    ],
)
def test_a_row_is_remembered_as_it_was_and_forgotten_under_another_schema(tmp_path, delivery, row):
    memory = ConversionMemory(delivery(tmp_path))
    memory.remember(row)
    assert memory.get(PAIR) == row
    (file,) = tmp_path.rglob("converted/*.json")
    file.write_text(file.read_text().replace('"schema_number":5', '"schema_number":4'))
    assert memory.get(PAIR) is None


def test_records_are_remembered_until_their_file_or_their_schema_changes(
    tmp_path, pair, delivery, here, monkeypatch
):
    pair(tmp_path / "source", "L001")
    opened = delivery(tmp_path / "source")
    first = take_inventory(opened, here)
    asked = []
    monkeypatch.setattr(inventory, "read_header", lambda *a: asked.append(a) or read_header(*a))
    assert take_inventory(opened, here) == first
    assert not asked
    os.utime(min((tmp_path / "source").rglob("*.dcm")), (1, 1))
    take_inventory(opened, here)
    assert len(asked) == 1
    (remembered,) = opened.memory.glob("*.json")
    text = remembered.read_text()
    assert "L001/" not in text, "no path is remembered"
    remembered.write_text(text.replace('"schema_number":2', '"schema_number":0'))
    take_inventory(opened, here)
    assert len(asked) == 1 + len(first.records)


def fields(model: type[BaseModel]) -> str:
    """Digest of all fields that a model has, at any depth, whatever words they may hold."""

    def plain(schema):
        if isinstance(schema, dict):
            words = ("description", "title", "enum")
            return {k: plain(v) for k, v in schema.items() if k not in words}
        return list(map(plain, schema)) if isinstance(schema, list) else schema

    text = json.dumps(plain(model.model_json_schema()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("model", "number", "expected"),
    [(RememberedRecords, 2, "334b9c16ad96"), (RememberedConversion, 5, "745421eab380")],
)
def test_other_fields_are_another_schema_number(model, number, expected):
    """What was remembered with other fields is not to be read as if it had these."""
    assert (model.model_fields["schema_number"].default, fields(model)) == (number, expected)
