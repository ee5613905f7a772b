"""The precision of a model on a machine: measured by its first series, kept, and written down."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from flows import stores, trace
from flows.compute import precision
from flows.compute.models import Models, UsedModel
from flows.compute.precision import precision_for
from flows.denoise import denoise
from flows.settings import DenoiseSettings
from hqinet.restoration.precision import Choice
from storage.dicom.archive import SeriesRecord

ROWS = 64


@pytest.fixture
def measured(home, monkeypatch) -> Iterator[list[int]]:
    """On a machine with bf16 instructions, small slices count; a number for each measurement."""
    made = []

    def choose(exact: object, faster: object, windows: torch.Tensor, body: object) -> Choice:
        assert exact is not faster
        made.append(len(windows))
        return Choice(precision="mixed", seconds={"float32": 2, "mixed": 1}, mean=0.1, extreme=1)

    monkeypatch.setattr(precision, "choose", choose)
    monkeypatch.setattr(precision, "bf16_is_faster", lambda _: True)
    monkeypatch.setattr(precision, "LEAST_SIDE", ROWS)
    yield made
    for file in stores.precisions().iterdir():
        file.unlink()


@pytest.fixture
def used() -> UsedModel:
    return Models("starter").resolve()


def volume(slices: int = 3, rows: int = ROWS) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : rows * 1j]
    noise = np.random.default_rng(0).normal(0, 25, (slices, rows, rows))
    return (np.where(np.hypot(x, y) < 0.9, 50, -1000) + noise).astype(np.int16)


def test_the_first_series_of_a_model_decides_and_the_choice_is_kept(measured, used):
    assert precision_for(used, None, "cpu", volume(1)) == "mixed"
    assert precision_for(used, 0.1, "cpu", volume()) == "mixed"
    assert measured == [1]
    (file,) = stores.precisions().iterdir()
    assert Choice.model_validate_json(file.read_text()).seconds == {"float32": 2, "mixed": 1}
    assert precision_for(replace(used, identity="another"), None, "cpu", volume()) == "mixed"
    file.write_text("{")
    assert precision_for(used, None, "cpu", volume()) == "mixed"
    assert measured == [1, 3, 3]


def test_small_slices_and_gpus_decide_nothing(measured, used, monkeypatch):
    assert precision_for(used, None, "cpu", volume(rows=ROWS - 1)) == "float32"
    assert precision_for(replace(used, network=None), None, "cpu", volume()) == "float32"
    monkeypatch.setattr(precision, "pick_device", torch.device)
    assert precision_for(used, None, "cuda", volume()) == "float32"
    assert measured == []
    stores.precisions().mkdir(exist_ok=True)


def test_a_machine_without_bf16_stays_float32_and_measures_no_slice(measured, used, monkeypatch):
    monkeypatch.setattr(precision, "bf16_is_faster", lambda _: False)
    assert precision_for(used, None, "cpu", volume()) == "float32"
    assert measured == []
    (file,) = stores.precisions().iterdir()
    assert Choice.model_validate_json(file.read_text()) == Choice(precision="float32")


def test_a_series_says_its_precision_and_is_replayed_in_it(measured, series, tmp_path):
    source = series("L900", "Low Dose Images", hu=volume(6)).write(tmp_path / "in")
    asked = DenoiseSettings(model="starter", device="cpu")
    (row,) = denoise(str(source), str(tmp_path / "out"), asked).series
    assert row.outcome == "restored", row.reasons
    folder = Path(row.folder)
    record = SeriesRecord.model_validate_json(folder.with_name(f"{folder.name}.json").read_text())
    assert record.precision == "mixed"
    description = pydicom.dcmread(folder / "0001.dcm").DerivationDescription
    assert "Small maps were computed in bf16." in description
    (again,) = trace.replay(folder, "cpu")
    assert (again.outcome, again.instances) == ("same", 6)
    path = folder.with_name(f"{folder.name}.json")
    path.write_text(path.read_text().replace('"precision": "mixed"', '"precision": "float32"'))
    (other,) = trace.replay(folder, "cpu")
    assert other.outcome == "differs"
    assert other.largest <= 2
