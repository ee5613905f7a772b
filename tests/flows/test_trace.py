"""The road back from a derived series, and pictures of it; a program stands for the starter."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from torch import nn

from flows import stores, trace
from flows.compute import models
from flows.denoise import denoise
from flows.ingest import ingest
from flows.operations.journal import note
from flows.settings import DenoiseSettings, Settings
from flows.show import ShowError, show
from hqinet.quality.reference import window, window_of
from hqinet.report.pictures import CAPTION
from hqinet.restoration.export import save_exported
from hqinet.restoration.starter import starter_card
from storage.dicom.index import SeriesIndex
from storage.errors import RegistryError, SourceError, StoreError

ROWS = 96
ASKED = DenoiseSettings(model="starter", device="cpu")


class Smoother(nn.Module):
    """Takes noise off by the mean of the slab."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.6))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return torch.lerp(hu[:, 1:2], hu.mean(1, keepdim=True), self.share)


@pytest.fixture(scope="module", autouse=True)
def starter(tmp_path_factory) -> Iterator[None]:
    """A program that loads at once, and knows as much as the starter."""
    file = tmp_path_factory.mktemp("starter") / "starter.pt2"
    save_exported(Smoother().eval(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "required_starter", lambda: file)
        yield


def noisy(sd: float, seed: int) -> np.ndarray:
    """Four slices of a round body, HU."""
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : ROWS * 1j]
    body = np.where(np.hypot(x, y) < 0.9, 50.0, -1000.0)
    noise = np.random.default_rng(seed).normal(0, sd, (4, ROWS, ROWS))
    return (body + noise).round().astype(np.int16)


@pytest.fixture(scope="module")
def source(tmp_path_factory, series) -> Path:
    folder = tmp_path_factory.mktemp("in") / "low"
    return series("L900", "Low Dose Images", hu=noisy(25, 0)).write(folder)


@pytest.fixture(scope="module")
def made(home, source, tmp_path_factory) -> Path:
    """The folder of the derived series."""
    target = tmp_path_factory.mktemp("out")
    asked = DenoiseSettings(model="starter", device="cpu", strength=0.8)
    (row,) = denoise(str(source), str(target), asked).series
    assert row.outcome == "restored", row.reasons
    return Path(row.folder)


def test_what_the_starter_made_is_explained_by_its_card(made, source):
    told = trace.explain(made / "0002.dcm")
    assert (told.model, told.registered, told.identity_agrees) == ("starter", False, True)
    assert told.source_path == str(source)
    image = pydicom.dcmread(made / "0002.dcm")
    assert told.source_instance == image.SourceImageSequence[0].ReferencedSOPInstanceUID
    assert "strength 0.8" in told.description
    # As the instance itself says, wherever it goes.
    ours = image.ContributingEquipmentSequence[-1].ContributionDescription
    card = hashlib.sha256(starter_card().encode()).hexdigest()
    assert f"card_digest {card}" in ours
    assert f"recipe_digest {told.lineage['recipe_digest']}" in ours
    assert "trained" in told.card.lower()


def test_a_file_of_a_scanner_explains_nothing(made, source):
    with pytest.raises(SourceError, match="HQINet did not make it: its equipment is SIEMENS"):
        trace.explain(min(source.iterdir()))
    with pytest.raises(SourceError, match="cannot be read as DICOM"):
        trace.explain(made.parent / f"{made.name}.json")


def test_a_replay_gives_the_same_pixels(made):
    (whole,) = trace.replay(made.parent, "cpu")
    assert (whole.outcome, whole.instances, whole.differing) == ("same", 4, 0)
    (one,) = trace.replay(made / "0003.dcm", "cpu")
    assert (one.outcome, one.instances) == ("same", 1)


def test_a_replay_finds_a_pixel_that_was_changed(made, tmp_path):
    copied = shutil.copytree(made, tmp_path / made.name)
    shutil.copy(made.parent / f"{made.name}.json", tmp_path)
    image = pydicom.dcmread(copied / "0001.dcm")
    values = image.pixel_array.copy()
    values[40, 40] += 3
    image.PixelData = values.tobytes()
    image.save_as(copied / "0001.dcm")
    (found,) = trace.replay(tmp_path, "cpu")
    assert (found.outcome, found.differing, found.largest) == ("differs", 1, 3.0)


def test_a_replay_passes_over_what_is_not_ours_and_tells_what_lacks(made, source, tmp_path):
    copied = shutil.copytree(made, tmp_path / made.name)
    shutil.copy(made.parent / f"{made.name}.json", tmp_path)
    (copied / "0002.dcm").unlink()
    (copied / "0004.dcm").write_bytes(b"no DICOM")
    shutil.copy(min(source.iterdir()), copied / "scanner.dcm")
    (found,) = trace.replay(tmp_path, "cpu")
    assert (found.outcome, found.instances, found.differing) == ("differs", 2, 0)
    assert found.reason == "2 of its instances are not here, or cannot be read"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source_path": "gone"}, "is not there"),
        ({"source": "ab"}, "has changed since"),
        ({"identity": "cd" * 32}, "model starter is"),
        (None, "its record is neither"),
    ],
)
def test_what_cannot_be_replayed_says_why(made, tmp_path, monkeypatch, change, says):
    copied = shutil.copytree(made, tmp_path / made.name)
    record = trace.record_of(trace.read_statement(made / "0001.dcm"), made)
    monkeypatch.setattr(stores, "restored", lambda: SeriesIndex(tmp_path / "empty"))
    if change is not None:
        changed = record.model_copy(update=change)
        (tmp_path / f"{made.name}.json").write_bytes(changed.text())
    (found,) = trace.replay(copied, "cpu")
    assert found.outcome == "cannot be replayed"
    assert says in found.reason


def test_a_recall_lists_what_a_model_made_and_whether_it_lies_there(made, source, tmp_path):
    asked = DenoiseSettings(model="starter", device="cpu", strength=0.7)
    (other,) = denoise(str(source), str(tmp_path), asked).series
    listed = {row.folder: row for row in trace.recall("starter")}
    assert listed.keys() == {str(made), other.folder}
    assert listed[other.folder].present
    shutil.rmtree(other.folder)
    assert not {row.folder: row for row in trace.recall("starter")}[other.folder].present
    assert listed[str(made)].sent == []

    def sent(step: str) -> list[str]:
        note(Settings().home, "1.2.3", step, derived=made.name, destination="pacs", tries=1)
        return {row.folder: row.sent for row in trace.recall("starter")}[str(made)]

    # Of a sending that broke off, images may have arrived.
    assert sent("not sent") == ["pacs (perhaps in part)"]
    assert sent("sent") == ["pacs"]
    for unknown in ("7", "champion"):
        with pytest.raises(RegistryError, match=r"no model"):
            trace.recall(unknown)


def test_a_list_that_lacks_an_entry_is_no_list(tmp_path):
    (tmp_path / "1.2-ab.json").write_text("{")
    with pytest.raises(StoreError, match="is no entry of a derived series"):
        SeriesIndex(tmp_path).entries()


def test_a_series_is_shown_beside_its_source(made, tmp_path):
    picture = show(str(made), "starter")
    assert picture.size[0] == 3 * ROWS
    assert np.array_equal(np.asarray(show(made.name, "starter")), np.asarray(picture))
    first = show(str(made / "0001.dcm"), "starter")
    assert not np.array_equal(np.asarray(first), np.asarray(picture))
    renamed = tmp_path / made.name
    renamed.mkdir()
    shutil.copy(made.parent / f"{made.name}.json", tmp_path)
    for number, file in enumerate(sorted(made.iterdir())):
        shutil.copy(file, renamed / f"IM{9 - number}.dcm")
    assert np.array_equal(np.asarray(show(str(renamed / "IM9.dcm"), "starter")), np.asarray(first))


def test_full_dose_is_shown_where_the_delivery_or_the_dataset_has_it(home, series, tmp_path):
    delivery, full = tmp_path / "delivery", noisy(10, 1)
    series("L001", "Full Dose Images", hu=full).write(delivery / "full")
    low = series("L001", "Low Dose Images", hu=noisy(25, 2)).write(delivery / "low")
    low = shutil.copytree(low, tmp_path / "elsewhere" / "low")
    of_both, of_low = (
        next(
            Path(row.folder) / "0002.dcm"
            for row in denoise(str(place), str(tmp_path / name), ASKED).series
            if row.outcome == "restored"
        )
        for place, name in ((delivery, "both"), (low, "alone"))
    )
    picture = show(str(of_both), "starter")
    expected = window(torch.from_numpy(full[1].astype(np.float32)), window_of("abdomen")) * 255
    third = np.asarray(picture)[CAPTION:, 2 * ROWS : 3 * ROWS]
    assert np.array_equal(third, expected.numpy().astype(np.uint8))
    assert show(str(of_low), "starter").size[0] == 3 * ROWS
    ingest(str(delivery), "tiny")
    assert np.array_equal(np.asarray(show(str(of_low), "starter")), np.asarray(picture))


def test_full_dose_of_another_patient_or_another_kernel_is_not_shown(series, tmp_path):
    def write(folder: str, patient: str, name: str, hu: np.ndarray, **also: str) -> Path:
        attributes = {"StudyInstanceUID": "", "ConvolutionKernel": "B30f"} | also
        return series(patient, name, hu=hu, attributes=attributes).write(tmp_path / folder)

    def width(low: Path, name: str) -> int:
        (row,) = denoise(str(low), str(tmp_path / name), ASKED).series
        picture = show(f"{row.folder}/0002.dcm", "starter")
        return picture.size[0] // ROWS

    low = write("a/low", "P1", "Low Dose Images", noisy(25, 4))
    write("a/full", "P2", "Full Dose Images", noisy(10, 5))
    assert width(low, "of-a") == 3
    study, wanted = {"StudyInstanceUID": "1.2.3"}, noisy(10, 7)
    low = write("b/low", "P1", "Low Dose Images", noisy(25, 6), **study)
    write("b/full", "P1", "Full Dose sharp", noisy(40, 8), ConvolutionKernel="B70f", **study)
    write("b/z", "P1", "Full Dose soft", wanted, **study)
    (tmp_path / "b/z/.DS_Store").write_bytes(b"no image")
    assert width(low, "of-b") == 4
    (row,) = denoise(str(low), str(tmp_path / "of-b"), ASKED).series
    third = np.asarray(show(f"{row.folder}/0002.dcm", "starter"))[CAPTION:, 2 * ROWS : 3 * ROWS]
    shown = window(torch.from_numpy(wanted[1].astype(np.float32)), window_of("abdomen")) * 255
    assert np.array_equal(third, shown.numpy().astype(np.uint8))


def test_a_patient_is_shown_with_full_dose(made, pair, tmp_path):
    pair(tmp_path, "L002", slices=4, matrix=(48, 56), seed=7)
    ingest(str(tmp_path), "tiny")
    assert show("L002", "starter").size[0] == 4 * 56
    with pytest.raises(ShowError, match="no path, no derived series of this home, and no patient"):
        show("L777", "starter")
