"""Restoration end to end: what comes out, what is refused, what is kept from use, and kills.

In one file, for its tests share models that are trained once.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from distributed import Client, LocalCluster
from torch import nn
from torch.nn.functional import avg_pool2d
from typer.testing import CliRunner

from flows import events, inbox, stores, trace
from flows.cli.main import app
from flows.compute import models as loading
from flows.compute import restoration
from flows.compute.models import STARTER, load_ahead
from flows.compute.workers import ClusterError
from flows.daily import drifted, live_entries, report_day
from flows.denoise import denoise
from flows.ingest import ingest
from flows.operations.day import DayReport
from flows.operations.journal import FOLDER
from flows.operations.outbox import Outbox
from flows.settings import ClusterSettings, DenoiseSettings
from flows.shadow import shadow
from hqinet.restoration import drift
from hqinet.restoration.envelope import Envelope, SeriesFacts
from storage.errors import StoreError, UnusableSourceError
from storage.models.registry import DatasetInputs

ROWS, SLICES = 64, 6


class Identity(nn.Module):
    """Returns the middle slice; the base of models with one fault each."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return hu[:, 1:2] + self.zero


class Smoother(Identity):
    """Mixes with the mean over the slices of the window: takes noise, leaves edges."""

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return 0.4 * hu[:, 1:2] + 0.6 * hu.mean(1, keepdim=True) + self.zero


class BoneShifter(Smoother):
    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        restored = super().forward(hu)
        return torch.where(restored > 400, restored + 40, restored)


class LesionEraser(Smoother):
    """Takes what is somewhat brighter than soft tissue for soft tissue."""

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        restored = super().forward(hu)
        mean = avg_pool2d(restored, 5, stride=1, padding=2)
        return torch.where((mean > 80) & (mean < 160), restored - (mean - 50), restored)


class Broken(Smoother):
    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return super().forward(hu) * torch.nan


def anatomy() -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : ROWS * 1j]
    hu = np.where(np.hypot(x, y) < 0.9, 50.0, -1000.0) + np.zeros((SLICES, 1, 1))
    hu[:, np.hypot(x - 0.4, y) < 0.25] = 800
    return hu


@pytest.fixture(scope="module")
def source(tmp_path_factory, series) -> Path:
    """A study: low dose, full dose, and a localizer."""
    root = tmp_path_factory.mktemp("study")
    random = np.random.default_rng(0)
    for name, sd in (("Low Dose Images", 30), ("Full Dose Images", 10)):
        hu = (anatomy() + random.normal(0, sd, (SLICES, ROWS, ROWS))).round().astype(np.int16)
        series("L900", name, hu=hu).write(root / name)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    series("L900", "Topogram", slices=1, attributes=scout).write(root / "Topogram")
    return root


@pytest.fixture(scope="module")
def models(home, tmp_path_factory, pair) -> dict[str, str]:
    """Versions by the name of their class."""
    root = tmp_path_factory.mktemp("cohort")
    pair(root, "L001", slices=4, matrix=(48, 56))
    ingest(str(root), "tiny")
    snapshot, registry = stores.dataset().snapshot(), stores.registry()
    facts = SeriesFacts(
        vendor="Siemens",
        kernel="B30f",
        anatomy="abdomen",
        pixel=0.8,
        increment=3.0,
        matrix=64,
        noise=30.0,
    )
    versions = {}
    for kind in (Identity, Smoother, BoneShifter, LesionEraser, Broken):
        run = registry.start(kind.__name__, {}, DatasetInputs("x", 1, snapshot.digest))
        file = tmp_path_factory.mktemp("envelope") / "envelope.json"
        file.write_text(Envelope.of([facts]).model_dump_json(by_alias=True))
        registry.log_file(run, file)
        tags = {"commit": "1", "digest": snapshot.digest, "recipe": kind.__name__}
        example = np.zeros((2, 3, 40, 48), np.float32)
        version = registry.register(run, kind().eval(), example, tags)
        versions[kind.__name__] = str(version)
        registry.finish(run)
    return versions


def restore(source: Path, target: Path, model: str, **settings) -> dict[str, dict]:
    asked = DenoiseSettings(model=model, device="cpu", **settings)
    result = denoise(str(source), str(target), asked)
    return {row.description: row.model_dump() for row in result.series}


def test_the_low_dose_series_is_restored_and_the_rest_is_told(source, models, tmp_path):
    rows = restore(source, tmp_path, models["Smoother"])
    assert rows["Full Dose Images"]["outcome"] == "left aside"
    assert (rows["Topogram"]["outcome"], rows["Topogram"]["code"]) == ("refused", "localizer")
    row = rows["Low Dose Images"]
    assert (row["outcome"], row["slices"], row["model"]) == ("restored", 6, models["Smoother"])
    files = sorted(Path(row["folder"]).iterdir())
    assert [file.name for file in files] == [f"{n:04d}.dcm" for n in range(1, 7)]
    z = [pydicom.dcmread(file).ImagePositionPatient[2] for file in files]
    assert z == sorted(z)
    record = json.loads((tmp_path / f"{row['series']}.json").read_text())
    assert record["lineage"]["recipe"] == "Smoother"
    assert record["instances"] == 6


def test_what_a_run_is_told_of_names_no_person(source, models, tmp_path, capsys):
    asked = DenoiseSettings(model=models["Smoother"], device="cpu")
    state = denoise(str(source), str(tmp_path), asked, return_state=True)
    rows = {row.description: row.source_series for row in state.result().series}
    assert f"1 series refused, the first: {rows['Topogram']}: refused" in state.message
    said = capsys.readouterr().err
    assert f"{rows['Low Dose Images']}: restored" in said
    told = state.message + said
    assert not any(name in told for name in (*rows, str(source)))


def test_what_is_done_is_not_done_again_and_another_model_is_another_series(
    source, models, tmp_path
):
    first = restore(source, tmp_path, models["Smoother"])["Low Dose Images"]
    # What a file manager leaves in every folder that it shows.
    (Path(first["folder"]) / ".DS_Store").touch()
    before = {f: f.stat().st_mtime_ns for f in Path(first["folder"]).iterdir()}
    again = restore(source, tmp_path, models["Smoother"])["Low Dose Images"]
    assert again["outcome"] == "done before"
    assert {f: f.stat().st_mtime_ns for f in Path(first["folder"]).iterdir()} == before
    half = restore(source, tmp_path, models["Smoother"], strength=0.5)["Low Dose Images"]
    assert half["series"] != first["series"]


def test_a_file_is_followed_back_to_the_data_its_model_was_trained_on(source, models, tmp_path):
    row = restore(source, tmp_path, models["Smoother"])["Low Dose Images"]
    registry = stores.registry()
    registry.tag_version(
        int(models["Smoother"]), {"verdict": "refused", "training_patients": '["L001"]'}
    )
    told = trace.explain(min(Path(row["folder"]).iterdir()))
    assert (told.series, told.model, told.registered) == (row["series"], models["Smoother"], True)
    assert told.identity_agrees
    assert told.lineage["recipe"] == "Smoother"
    assert told.lineage["digest"] == stores.dataset().snapshot().digest
    assert told.training_patients == ["L001"]
    assert told.verdict == {"verdict": "refused"}
    assert told.source_path == str(source / "Low Dose Images")
    # By itself, as a PACS gives it back, the file and this home say as much.
    alone = tmp_path / "elsewhere" / "file.dcm"
    alone.parent.mkdir()
    shutil.copy(min(Path(row["folder"]).iterdir()), alone)
    assert trace.explain(alone).model_dump(exclude={"file"}) == told.model_dump(exclude={"file"})


def test_the_journal_follows_a_series_until_it_is_sent(home, source, models, tmp_path, monkeypatch):
    monkeypatch.setenv("HQINET_SEND__RESTORED", '["pacs", "dead"]')
    settings = DenoiseSettings(model=models["Smoother"], device="cpu", strength=0.9)
    study = shutil.copytree(source, tmp_path / "inbox" / "Name^L001")
    inbox.denoise_inbox(str(tmp_path / "inbox"), str(tmp_path / "out"), 0, settings)
    box = Outbox(home)
    box.sent(*box.waiting("pacs"))
    box.failed(*box.waiting("dead"), "Name^L001 is not known here")
    uid = str(pydicom.dcmread(next(study.glob("Low*/*.dcm"))).SeriesInstanceUID)
    journal = "".join(file.read_text() for file in (home / FOLDER).iterdir())
    told = [row for line in journal.splitlines() if (row := json.loads(line))["series"] == uid]
    steps = ["restored", "queued", "queued", "sent", "not sent"]
    assert [row["step"] for row in told[-5:]] == steps
    assert [row.get("destination") for row in told[-4:]] == ["pacs", "dead", "pacs", "dead"]
    assert {row["derived"] for row in told[-5:]} == {
        child.name for child in (tmp_path / "out").glob("*/")
    }
    assert "L001" not in journal


def test_a_replay_takes_the_version_from_the_registry(source, models, tmp_path, monkeypatch):
    row = restore(source, tmp_path, models["Smoother"])["Low Dose Images"]
    monkeypatch.setattr(loading, "_LOADED", {})
    (again,) = trace.replay(Path(row["folder"]), "cpu")
    assert (again.outcome, again.instances) == ("same", SLICES), again.reason
    monkeypatch.setattr(loading, "_LOADED", {})
    load_ahead(models["Smoother"], None, "cpu").join()
    assert len(loading._LOADED) == 1


def test_a_zip_is_done_once_and_asked_for_compressed_is_written_anew(source, models, tmp_path):
    shutil.make_archive(str(tmp_path / "study"), "zip", source)
    asked = tmp_path / "study.zip", tmp_path / "out", models["Smoother"]
    first = restore(*asked)["Low Dose Images"]
    assert restore(*asked)["Low Dose Images"]["outcome"] == "done before"
    packed = restore(*asked, compress="rle")["Low Dose Images"]
    assert (packed["outcome"], packed["series"]) == ("restored", first["series"])
    image = pydicom.dcmread(next(Path(packed["folder"]).iterdir()))
    assert image.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless
    record = json.loads((tmp_path / "out" / f"{first['series']}.json").read_text())
    assert record["source_path"] == str(tmp_path / "study.zip")
    entries = [entry for entry in stores.restored().entries() if entry.folder == first["folder"]]
    assert [entry.record.series for entry in entries] == [first["series"]]


def test_a_source_without_images_is_an_error(models, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    with pytest.raises(UnusableSourceError, match="holds no CT image"):
        restore(tmp_path / "in", tmp_path / "out", models["Smoother"])
    assert not (tmp_path / "out").exists()


def test_strength_blends_input_and_output(source, models, tmp_path):
    def pixels(strength: float) -> np.ndarray:
        target = tmp_path / str(strength)
        row = restore(source, target, models["Smoother"], strength=strength)["Low Dose Images"]
        files = sorted(Path(row["folder"]).iterdir())
        return np.stack([pydicom.dcmread(file).pixel_array for file in files]).astype(float)

    none, half, whole = pixels(0.0), pixels(0.5), pixels(1.0)
    assert np.abs(half - (none + whole) / 2).max() <= 1
    images = [pydicom.dcmread(file) for file in (source / "Low Dose Images").iterdir()]
    first = min(images, key=lambda image: image.ImagePositionPatient[2])
    assert np.array_equal(none[0], first.pixel_array)


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("Identity", "not_noise", "does nothing here"),
        ("BoneShifter", "not_noise", "removed from bone"),
        ("Broken", "not_restored", "NaN or infinity"),
    ],
)
def test_what_is_not_the_removal_of_noise_is_quarantined(
    source, models, tmp_path, model, code, says
):
    row = restore(source, tmp_path, models[model])["Low Dose Images"]
    assert (row["outcome"], row["code"]) == ("quarantined", code)
    assert any(says in reason for reason in row["reasons"])
    assert [path.name for path in tmp_path.iterdir()] == [f"{row['series']}.json"]
    file = tmp_path / f"{row['series']}.json"
    assert json.loads(file.read_text())["quarantined"] == row["reasons"]


def test_a_model_that_erases_a_lesion_is_found_out(models, tmp_path, series):
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : ROWS * 1j]
    hu = anatomy() + np.random.default_rng(0).normal(0, 30, (SLICES, ROWS, ROWS))
    hu[2, np.hypot(x + 0.3, y + 0.3) < 0.2] += 80
    root = tmp_path / "in"
    series("L900", "Low Dose Images", hu=hu.round().astype(np.int16)).write(root)
    row = restore(root, tmp_path / "out", models["LesionEraser"])["Low Dose Images"]
    assert (row["outcome"], row["code"]) == ("quarantined", "not_noise")
    assert any("a region was changed" in reason for reason in row["reasons"])
    kept = restore(root, tmp_path / "out", models["Smoother"])["Low Dose Images"]
    assert kept["outcome"] == "restored"


def test_a_quarantined_series_is_remembered_until_it_would_be_judged_otherwise(
    source, models, tmp_path
):
    first = restore(source, tmp_path, models["BoneShifter"])["Low Dose Images"]
    file = tmp_path / f"{first['series']}.json"
    written = file.stat().st_mtime_ns
    again = restore(source, tmp_path, models["BoneShifter"])["Low Dose Images"]
    assert again == first | {"seconds": 0.0}
    assert file.stat().st_mtime_ns == written
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"limits": record["limits"].replace("20.0", "30.0")}))
    anew = restore(source, tmp_path, models["BoneShifter"])["Low Dose Images"]
    assert anew["reasons"] == first["reasons"]
    assert file.stat().st_mtime_ns != written
    assert json.loads(file.read_text())["limits"] == record["limits"]
    # What was measured in another way, too.
    file.write_text(json.dumps(record | {"limits": record["limits"].partition(" ")[2]}))
    anew = restore(source, tmp_path, models["BoneShifter"])["Low Dose Images"]
    assert anew["seconds"] > 0
    assert json.loads(file.read_text())["limits"] == record["limits"]
    other = restore(source, tmp_path, models["Smoother"])["Low Dose Images"]
    assert other["outcome"] == "restored"


def test_what_may_be_removed_is_the_policys_to_say(source, models, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("[removal]\nfeigned = 0.0\n\n[removal.bias]\nbone = 0.001")
    asked = DenoiseSettings(model=models["Smoother"], device="cpu")
    result = denoise(str(source), str(tmp_path / "to"), asked, policy=str(policy))
    (row,) = [row for row in result.series if row.description == "Low Dose Images"]
    assert (row.outcome, row.code) == ("quarantined", "not_noise")
    assert "from bone, allowed 0.001" in row.reasons[0]
    assert restore(source, tmp_path / "to", models["Smoother"])["Low Dose Images"]["outcome"] == (
        "restored"
    )


def test_a_series_outside_the_envelope_is_warned_of_and_refused_when_strict(
    models, tmp_path, series
):
    random = np.random.default_rng(1)
    hu = (anatomy() + random.normal(0, 30, (SLICES, ROWS, ROWS))).round().astype(np.int16)
    other = {"Manufacturer": "GE MEDICAL SYSTEMS"}
    series("H001", "Low Dose Images", hu=hu, attributes=other).write(tmp_path / "in")
    row = restore(tmp_path / "in", tmp_path / "out", models["Smoother"])["Low Dose Images"]
    assert row["outcome"] == "restored"
    assert any("vendor 'GE' is not among those" in warning for warning in row["warnings"])
    image = pydicom.dcmread(next(Path(row["folder"]).iterdir()))
    assert all(warning in image.DerivationDescription for warning in row["warnings"])
    strict = restore(tmp_path / "in", tmp_path / "strict", models["Smoother"], strict=True)
    assert strict["Low Dose Images"]["code"] == "outside_envelope"
    again = restore(tmp_path / "in", tmp_path / "out", models["Smoother"])["Low Dose Images"]
    assert (again["outcome"], again["warnings"]) == ("done before", row["warnings"])
    strict = restore(tmp_path / "in", tmp_path / "out", models["Smoother"], strict=True)
    assert strict["Low Dose Images"]["code"] == "outside_envelope"
    assert strict["Low Dose Images"]["folder"] == ""


def test_a_series_that_fails_ends_no_other(source, models, tmp_path, series, monkeypatch):
    study = shutil.copytree(source, tmp_path / "in")
    hu = (anatomy() + np.random.default_rng(3).normal(0, 30, (SLICES, ROWS, ROWS))).round()
    series("L900", "Odd", hu=hu.astype(np.int16)).write(study / "Odd")
    write, errors = restoration.derived_instance, [KeyError("odd"), StoreError("a disk that lies")]

    def fails(image, *rest):
        if image.header.SeriesDescription == "Odd":
            raise error
        return write(image, *rest)

    monkeypatch.setattr(restoration, "derived_instance", fails)
    for number, error in enumerate(errors):
        rows = restore(study, tmp_path / f"out{number}", models["Smoother"])
        assert rows["Low Dose Images"]["outcome"] == "restored"
        assert (rows["Odd"]["outcome"], rows["Odd"]["code"]) == ("refused", "not_restored")
        assert str(error) in rows["Odd"]["reasons"][0]
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        restore(study, tmp_path / "full", models["Smoother"])


def test_one_slice_alone_is_restored(models, tmp_path, series):
    hu = (anatomy()[:1] + np.random.default_rng(2).normal(0, 30, (1, ROWS, ROWS))).round()
    series("L901", "Low Dose Images", hu=hu.astype(np.int16)).write(tmp_path / "in")
    row = restore(tmp_path / "in", tmp_path / "out", models["Smoother"])["Low Dose Images"]
    # Three times the same slice: this model then changes nothing, which is told.
    assert row["slices"] == 1
    assert "does nothing here" in row["reasons"][0]


@pytest.fixture(scope="module")
def two(tmp_path_factory, series) -> Path:
    """Two low-dose series, one of them long."""
    root, random = tmp_path_factory.mktemp("two"), np.random.default_rng(5)
    for patient, slices in (("L900", SLICES), ("L901", 150)):
        hu = anatomy()[:1] + random.normal(0, 30, (slices, ROWS, ROWS))
        series(patient, "Low Dose Images", hu=hu.round().astype(np.int16)).write(root / patient)
    return root


def test_workers_write_the_bytes_that_one_process_writes_though_one_of_them_dies(
    two, models, tmp_path, dask_cluster
):
    asked = DenoiseSettings(model=models["Smoother"], device="cpu")
    here = denoise(str(two), str(tmp_path / "here"), asked)
    there = tmp_path / "there"
    there.mkdir()
    for file in (tmp_path / "here").glob("*.json"):
        # Of a restoration that was killed: the time of its beginning, which instances state, stays.
        record = json.loads(file.read_text()) | {"instances": 0}
        (there / file.name).write_text(json.dumps(record))
    (long,) = (row.series for row in here.series if row.slices == 150)
    killer = threading.Thread(target=kill_worker, args=(dask_cluster, there / f"{long}.draft"))
    killer.start()
    cluster = ClusterSettings(where=dask_cluster.scheduler_address)
    result = denoise(str(two), str(there), asked, cluster)
    killer.join()
    ended = sorted((row.outcome, row.slices) for row in result.series)
    assert ended == [("restored", SLICES), ("restored", 150)]
    for row in here.series:
        files = {file.name: file.read_bytes() for file in Path(row.folder).iterdir()}
        assert {file.name: file.read_bytes() for file in (there / row.series).iterdir()} == files
    again = denoise(str(two), str(there), asked, cluster)
    assert {row.outcome for row in again.series} == {"done before"}


def kill_worker(cluster: LocalCluster, draft: Path) -> None:
    """Kill the worker that is writing a draft."""
    end = time.monotonic() + 60
    while not (draft.is_dir() and any(draft.iterdir())):
        assert time.monotonic() < end
        time.sleep(0.002)
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        (busy, *_) = (worker for worker, tasks in client.processing().items() if tasks)
        os.kill(client.run(os.getpid, workers=[busy])[busy], signal.SIGKILL)


def test_a_gpu_is_asked_of_a_worker_that_has_one(two, models, tmp_path, dask_cluster):
    asked = DenoiseSettings(model=models["Smoother"], device="cuda")
    cluster = ClusterSettings(where=dask_cluster.scheduler_address)
    with pytest.raises(ClusterError, match="has the resource GPU: start them"):
        denoise(str(two), str(tmp_path), asked, cluster)


def test_a_kill_leaves_no_half_series_and_a_rerun_the_same_pixels(
    source, models, home, tmp_path, hqinet
):
    whole = restore(source, tmp_path / "whole", models["Smoother"])["Low Dose Images"]
    expected = _pixels(Path(whole["folder"]))
    command = hqinet(tmp_path)
    command.home = home
    target = tmp_path / "killed"
    arguments = ["denoise", source, target, "--model", models["Smoother"], "--home", home]
    process = subprocess.Popen(
        [*command.program, *map(str, arguments)],
        env=command.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 90
    while not list(target.glob("*.draft")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.1)
    process.kill()
    process.wait()
    for folder in target.iterdir():
        if folder.is_dir() and not folder.name.endswith(".draft"):
            assert len(list(folder.iterdir())) == SLICES
    row = restore(source, target, models["Smoother"])["Low Dose Images"]
    assert row["outcome"] in ("restored", "done before")
    assert _pixels(Path(row["folder"])) == expected
    assert not list(target.glob("*.draft"))
    assert not (home / "prefect" / "prefect.db").exists(), "a command by hand starts no server"


def _pixels(folder: Path) -> dict[str, bytes]:
    images = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    return {str(image.SOPInstanceUID): image.PixelData for image in images}


def test_the_day_is_reported_and_what_drifts_is_told_to_whoever_listens(
    source, models, home, tmp_path, monkeypatch
):
    row = restore(source, tmp_path, models["Smoother"])["Low Dose Images"]
    monkeypatch.setattr(drift, "FEWEST", 1)
    heard: list[dict] = []
    monkeypatch.setattr(events, "emit_event", lambda **event: heard.append(event))
    report = report_day()
    assert report.restored == len(live_entries())
    assert row["series"] in {entry.record.series for entry in live_entries()}
    assert report.seconds_a_slice > 0
    assert report.free_gib > 0
    # Without a champion the starter restores, which was not trained on white noise.
    assert any("mean frequency of the noise" in line for line in report.drift)
    assert report.refused["not_noise"] >= 1
    # Versions were registered by hand, which say of no patient that they have seen him.
    unseen, unjudged = report.unfinished
    assert "no version was trained on 1 of its training patients" in unseen
    assert f"model version {models['Broken']} has no verdict" in unjudged
    (event,) = heard
    assert event["event"] == "hqinet.drift.found"
    assert event["payload"] == {"drift": report.drift}
    assert DayReport.read(home) == report
    shown = CliRunner().invoke(app, ["status", "--home", str(home)])
    assert shown.exit_code == 1
    assert f"drift: {report.drift[0]}" in " ".join(shown.output.split())


def test_a_source_without_a_low_dose_series_is_told_and_no_error(source, models, tmp_path):
    rows = restore(source / "Full Dose Images", tmp_path, models["Smoother"])
    assert {row["outcome"] for row in rows.values()} == {"left aside"}


def test_an_image_that_comes_late_makes_another_series_and_none_with_two_at_one_place(
    source, models, tmp_path
):
    early = tmp_path / "early"
    shutil.copytree(source / "Low Dose Images", early)
    max(early.iterdir(), key=lambda file: pydicom.dcmread(file).InstanceNumber).unlink()
    part = restore(early, tmp_path / "to", models["Smoother"])["Low Dose Images"]
    whole = restore(source, tmp_path / "to", models["Smoother"])["Low Dose Images"]
    assert part["outcome"] == whole["outcome"] == "restored"
    assert part["series"] != whole["series"]
    counts = [len(list(Path(row["folder"]).iterdir())) for row in (part, whole)]
    assert counts == [SLICES - 1, SLICES]


def test_our_own_series_is_known_by_its_uid_though_its_header_hides_it(
    source, models, tmp_path, monkeypatch
):
    row = restore(source, tmp_path / "made", models["Smoother"])["Low Dose Images"]
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for file in Path(row["folder"]).iterdir():
        image = pydicom.dcmread(file)
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.SeriesDescription = "Low Dose Images"
        del image.ContributingEquipmentSequence
        image.save_as(hidden / file.name)
    (again,) = restore(hidden, tmp_path / "to", models["Smoother"]).values()
    assert (again["outcome"], again["code"]) == ("refused", "own_derived")
    shutil.copytree(source / "Full Dose Images", hidden / "Full Dose Images")
    monkeypatch.setenv("HQINET_DATASET", str(tmp_path / "dataset"))
    delivered = ingest(str(hidden), "hidden")
    assert not delivered.accepted
    assert "own_derived" in {refused.code for refused in delivered.refused}


def test_drift_sees_what_is_refused_for_it(source, models, tmp_path, monkeypatch):
    row = restore(source, tmp_path, STARTER, strict=True)["Low Dose Images"]
    assert (row["outcome"], row["code"]) == ("refused", "outside_envelope")
    assert row["series"] not in {entry.record.series for entry in live_entries()}
    monkeypatch.setattr(drift, "FEWEST", 1)
    assert [line for line in drifted(stores.refused().entries()) if "mean frequency" in line]


def test_a_record_beside_a_series_names_no_patient_trained_on(source, models, tmp_path):
    row = restore(source, tmp_path, STARTER)["Low Dose Images"]
    record = json.loads((tmp_path / f"{row['series']}.json").read_text())
    assert not [name for name in record["lineage"] if name.endswith("patients")]


def test_what_was_measured_of_a_series_stands_in_its_record(source, models, tmp_path):
    row = restore(source, tmp_path, models["Smoother"])["Low Dose Images"]
    measured = json.loads((tmp_path / f"{row['series']}.json").read_text())["measured"]
    # Of 30 HU, 0.6 goes, less what a third of that comes back with the mean of three slices.
    assert 20 < measured["noise"] < 45
    removed = measured["removed"] * measured["noise"]
    assert removed == pytest.approx(0.6 * (2 / 3) ** 0.5 * 30, rel=0.1)
    assert abs(measured["bias"]["soft"]) < 1


def test_without_a_champion_nobody_stands_in_the_shadow(models):
    assert shadow(quiet=0).version is None
