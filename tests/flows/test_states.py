"""What the state of a run is called, which events flows emit, and when an inbox is taken."""

import errno
import itertools
import os
import shutil
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from pydicom import dcmread

from flows import events, inbox, stores
from flows.compute.sources import DenoiseResult
from flows.denoise import denoise
from flows.evaluations import PromotionError
from flows.inbox import denoise_inbox, ingest_inbox
from flows.ingest import ingest
from flows.maintenance import DamagedError, due_in, maintenance
from flows.operations import arrivals
from flows.operations.arrivals import FIRST_PAUSE, MARK, InboxError, PutOff, look_at
from flows.operations.deployment import declared
from flows.settings import DenoiseSettings
from flows.states import LONGEST, QUARANTINED, REFUSED, ended
from storage.dataset import upkeep
from storage.dataset.upkeep import rollback
from storage.errors import UnusableSourceError


@pytest.fixture
def heard(monkeypatch) -> list[dict]:
    """Everything that is emitted."""
    said: list[dict] = []
    monkeypatch.setattr(events, "emit_event", lambda **event: said.append(event))
    return said


@pytest.fixture(scope="module")
def delivery(home, tiny_cohort) -> Path:
    """An inbox in the home with the tiny cohort, of which one patient has no low dose."""
    return shutil.copytree(tiny_cohort, home / "inbox")


def named(said: list[dict], name: str) -> list[dict]:
    return [event for event in said if event["event"] == f"hqinet.{name}"]


def test_an_inbox_is_taken_when_it_lies_quiet_and_once(home, delivery, heard, monkeypatch):
    monkeypatch.chdir(home)
    waiting = ingest_inbox(quiet=3600, return_state=True)
    assert waiting.name == "Completed"
    assert waiting.result().arriving == ["inbox"]
    assert heard == []

    taken = ingest_inbox(quiet=0, return_state=True)
    assert (taken.type, taken.name) == ("COMPLETED", REFUSED)
    assert "1 refused, the first: L109: " in taken.message
    assert taken.result().taken == ["inbox"]
    (event,) = named(heard, "dataset.committed")
    trained_on = len(stores.dataset().snapshot().patients("train"))
    assert event["payload"] == {"commit": 1, "new_training_patients": trained_on}
    assert event["resource"]["hqinet.new-training-patients"] == str(trained_on)

    again = ingest_inbox(quiet=0, return_state=True)
    assert again.name == "Completed"
    assert again.result().taken == []
    assert len(heard) == 1


def test_a_delivery_without_news_emits_nothing_and_repeats_no_alarm(home, delivery, heard):
    again = ingest(str(delivery), return_state=True)
    assert again.name == "Completed"
    assert again.result().refused
    assert heard == []


def test_a_commit_without_new_training_patients_starts_no_training(home, delivery, heard, series):
    series("L110", seed=4, slices=4, matrix=(48, 56)).write(delivery / "L110" / "Full Dose Images")
    state = ingest(str(delivery), return_state=True)
    assert state.name == REFUSED
    (event,) = named(heard, "dataset.committed")
    assert event["resource"]["hqinet.new-training-patients"] == "0"


def test_a_commit_whose_run_died_before_it_could_tell_is_told_by_the_next(
    home, tmp_path, pair, heard, monkeypatch
):
    emit, tried = events.emit_event, []

    def dies(**event: object) -> None:
        tried.append(event)
        raise KeyboardInterrupt

    pair(tmp_path, "L120", slices=4, matrix=(48, 56))
    monkeypatch.setattr(events, "emit_event", dies)
    with pytest.raises(KeyboardInterrupt):
        ingest(str(tmp_path), "late")
    commit = stores.dataset().snapshot().commit
    assert len(tried) == 1
    monkeypatch.setattr(events, "emit_event", emit)
    for _ in range(2):
        assert ingest(str(tmp_path), "late").commit == commit
    (event,) = named(heard, "dataset.committed")
    trained_on = {row.patient for row in stores.dataset().snapshot().patients("train")}
    assert event["payload"]["commit"] == commit
    assert event["payload"]["new_training_patients"] == int("L120" in trained_on)


def test_a_missing_inbox_is_one_line_with_its_absolute_path(home, monkeypatch):
    monkeypatch.chdir(home)
    with pytest.raises(InboxError, match=f"inbox {home}/nowhere is not there: make it"):
        ingest_inbox("nowhere")
    failed = denoise_inbox("nowhere", return_state=True)
    assert failed.is_failed()
    assert f"{home}/nowhere" in failed.message


def test_a_prefix_of_an_object_store_is_an_inbox_too(home, tmp_path, tiny_cohort, s3, monkeypatch):
    monkeypatch.setenv("HQINET_DATASET", str(tmp_path / "dataset"))
    names = {"aws_endpoint": "AWS_ENDPOINT_URL"}
    for name, value in s3.items():
        monkeypatch.setenv(names.get(name, name.upper()), value)
    bucket = boto3.resource("s3", endpoint_url=s3["aws_endpoint"]).Bucket("ct-data")
    for file in tiny_cohort.rglob("*.dcm"):
        bucket.upload_file(file, f"ward-7/{file.relative_to(tiny_cohort)}")
    inbox = "s3://ct-data/ward-7"
    assert ingest_inbox(inbox, quiet=3600).arriving == ["ward-7"]
    assert not (home / "mirrors").exists()
    bucket.put_object(Key=f"ward-7/{MARK}", Body=b"")
    assert ingest_inbox(inbox, quiet=3600).taken == ["ward-7"]
    snapshot = stores.dataset().snapshot()
    assert (snapshot.commit, len(snapshot.patients()), snapshot.cohorts) == (1, 5, ["ward-7"])
    assert ingest_inbox(inbox, quiet=0).taken == []
    kept = {file: file.stat().st_mtime_ns for file in (home / "mirrors").rglob("*.dcm")}
    next(iter(bucket.objects.filter(Prefix="ward-7/L109/"))).delete()
    assert ingest_inbox(inbox, quiet=0).taken == ["ward-7"]
    left = {file: file.stat().st_mtime_ns for file in (home / "mirrors").rglob("*.dcm")}
    assert left.items() < kept.items()
    assert len(left) == len(kept) - 1


def test_each_study_of_the_denoise_inbox_is_restored_once(home, monkeypatch, tmp_path):
    def pretended(source: str, *_: object, **_options: object) -> DenoiseResult:
        asked.append(Path(source).name)
        outcome = {"b": "refused", "c": "quarantined"}.get(asked[-1], "restored")
        row = {"outcome": outcome, "source": source, "description": ""}
        return DenoiseResult(destination="", series=[row])

    asked: list[str] = []
    monkeypatch.setattr(inbox, "denoise", pretended)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").write_bytes(b"1")
    (tmp_path / "empty").mkdir()
    first = denoise_inbox(str(tmp_path), quiet=0, return_state=True)
    assert (first.name, asked) == (REFUSED, ["a", "b"])
    assert "1 restored, 1 refused, 0 quarantined" in first.message
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.dcm").write_bytes(b"1")
    (tmp_path / "a" / "2.dcm").write_bytes(b"late images open a study again")
    second = denoise_inbox(str(tmp_path), quiet=0, return_state=True)
    assert (second.name, asked[2:]) == (QUARANTINED, ["a", "c"])


def test_the_inbox_restores_with_the_settings_of_its_environment(home, monkeypatch, tmp_path):
    asked: list[DenoiseSettings] = []

    def pretended(
        _source: str, _destination: str, settings: DenoiseSettings, *, policy: str
    ) -> DenoiseResult:
        asked.append(settings)
        assert policy == "demo"
        return DenoiseResult(destination="", series=[])

    monkeypatch.setattr(inbox, "denoise", pretended)
    (tmp_path / "1.2.3").mkdir()
    (tmp_path / "1.2.3" / "1.dcm").write_bytes(b"1")
    denoise_inbox(
        str(tmp_path), quiet=0, strict=True, settings=DenoiseSettings(batch=2), policy="demo"
    )
    assert [(row.batch, row.strict) for row in asked] == [(2, True)]
    (parameters,) = [row["parameters"] for row in declared() if row["name"] == "denoise-inbox"]
    # With a table of settings, all that it does not name would be as if nobody had set it.
    assert parameters == {"inbox": "denoise-inbox", "destination": "denoised", "strict": True}


def test_what_was_refused_before_alarms_nobody_when_its_delivery_is_touched(home, delivery):
    ingest(str(delivery))
    os.utime(next((delivery / "L109").rglob("*.dcm")))
    again = ingest_inbox(str(delivery), quiet=0, return_state=True)
    assert again.name == "Completed"
    assert again.result().taken == [delivery.name]


def test_a_delivery_that_is_marked_complete_need_not_lie_quiet(home, monkeypatch, tmp_path):
    monkeypatch.setattr(inbox, "denoise", lambda *_, **__: DenoiseResult(destination="", series=[]))
    study = tmp_path / "study"
    study.mkdir()
    (study / "1.dcm").write_bytes(b"1")
    assert denoise_inbox(str(tmp_path), quiet=3600).arriving == ["study"]
    (tmp_path / "empty").mkdir()
    for folder in ("study", "empty"):
        (tmp_path / folder / MARK).touch()
    assert denoise_inbox(str(tmp_path), quiet=3600).taken == ["study"]
    (study / MARK).touch()
    assert denoise_inbox(str(tmp_path), quiet=3600).taken == []
    late = study / "2.dcm"
    late.write_bytes(b"what comes later takes the mark back")
    os.utime(late, (time.time() + 1,) * 2)
    assert denoise_inbox(str(tmp_path), quiet=3600).arriving == ["study"]


def test_a_study_that_fails_is_not_taken_and_keeps_no_other_from_being_restored_later(
    home, monkeypatch, tmp_path
):
    def fails(*_: object, **_options: object) -> DenoiseResult:
        raise PromotionError("no model")

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.dcm").write_bytes(b"1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inbox, "denoise", fails)
        assert denoise_inbox(str(tmp_path), quiet=0, return_state=True).is_failed()
    monkeypatch.setattr(inbox, "denoise", lambda *_, **__: DenoiseResult(destination="", series=[]))
    assert denoise_inbox(str(tmp_path), quiet=0).arriving == ["a"]
    monkeypatch.setattr(arrivals, "time", lambda: time.time() + FIRST_PAUSE.total_seconds())
    assert denoise_inbox(str(tmp_path), quiet=0).taken == ["a"]


def test_a_study_that_fails_waits_twice_as_long_each_time_until_it_changes(monkeypatch, tmp_path):
    study, now = tmp_path / "1.dcm", time.time()
    study.write_bytes(b"1")
    arrival, waits = look_at(study), []
    for _ in range(30):
        PutOff(tmp_path / "failed.json").add(arrival)
        later = PutOff(tmp_path / "failed.json")
        while arrival in later:
            now += 60
            monkeypatch.setattr(arrivals, "time", lambda now=now: now)
        waits.append(now)
    minutes = [round((b - a) / 60) for a, b in itertools.pairwise(waits)]
    assert minutes[:5] == [10, 20, 40, 80, 160]
    assert set(minutes[5:]) == {240}
    PutOff(tmp_path / "failed.json").add(arrival)
    study.write_bytes(b"mended")
    assert look_at(study) not in PutOff(tmp_path / "failed.json")


def test_of_what_nothing_can_be_made_or_what_fails_keeps_no_other_study_waiting(
    home, heard, monkeypatch, tmp_path
):
    def pretended(source: str, *_: object, **_options: object) -> DenoiseResult:
        asked.append(name := Path(source).name)
        if name == "Doe^Jane":
            raise UnusableSourceError(f"source {source} holds no CT image")
        if name == "b":
            raise OSError("the disk does not answer")
        return DenoiseResult(destination="", series=[])

    asked: list[str] = []
    monkeypatch.setattr(inbox, "denoise", pretended)
    for name in ("Doe^Jane", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.txt").write_bytes(b"1")
    failed = denoise_inbox(str(tmp_path), quiet=0, return_state=True)
    assert failed.is_failed()
    assert "1 of 3 studies could not be restored, the first: study of digest" in failed.message
    assert ": the disk does not answer; of the others" in failed.message
    assert "of the others series: 0 restored, 1 refused, 0 quarantined" in failed.message
    assert asked == ["Doe^Jane", "b", "c"]
    (event,) = named(heard, "series.refused")
    assert event["payload"]["code"] == "unusable_source"
    # What failed is tried again; what was refused is not, unless it changes.
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "Doe^Jane" / "2.txt").write_bytes(b"late, and no image either")
    refused = denoise_inbox(str(tmp_path), quiet=0, return_state=True)
    assert asked[3:] == ["Doe^Jane"]
    assert refused.name == REFUSED
    assert "1 refused, 0 quarantined; the first: unusable_source; why stands" in refused.message
    assert "Doe" not in failed.message + refused.message + str(heard)


def test_a_zip_is_refused_for_good_only_where_it_is_damaged(home, monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.writestr("1.txt", "no image")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", full)
        assert denoise_inbox(str(tmp_path), quiet=0, return_state=True).is_failed()
    monkeypatch.setattr(arrivals, "time", lambda: time.time() + FIRST_PAUSE.total_seconds())
    assert denoise_inbox(str(tmp_path), quiet=0, return_state=True).name == REFUSED
    assert denoise_inbox(str(tmp_path), quiet=0).taken == []


def test_without_its_model_no_study_is_tried(home, monkeypatch, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.dcm").write_bytes(b"1")
    asked: list[str] = []
    monkeypatch.setattr(inbox, "denoise", lambda *_, **__: asked.append(""))
    settings = DenoiseSettings(model="99")
    failed = denoise_inbox(str(tmp_path), quiet=0, settings=settings, return_state=True)
    assert failed.is_failed()
    assert "no model is registered yet" in failed.message
    assert asked == []


def test_a_refused_series_ends_the_run_refused_and_is_told_of(home, heard, series, tmp_path):
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    folder = series("L300", "Topogram", slices=1, attributes=scout).write(tmp_path / "study")
    uid = dcmread(next(folder.iterdir())).SeriesInstanceUID
    state = denoise(str(tmp_path / "study"), str(tmp_path / "to"), return_state=True)
    assert state.name == REFUSED
    assert f"1 series refused, the first: {uid}: refused; " in state.message
    assert "Topogram" not in state.message
    (event,) = named(heard, "series.refused")
    assert event["payload"]["code"] == "localizer"
    assert str(tmp_path) not in str(event)


def test_that_an_event_cannot_be_sent_ends_no_flow(home, delivery, monkeypatch):
    def fails(**_: object) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(events, "emit_event", fails)
    shutil.rmtree(delivery / "L110")
    rollback(stores.dataset(), 1)
    (delivery / "L109").rename(delivery / "L111")
    assert ingest(str(delivery)).commit > 1


def test_maintenance_verifies_then_clears_and_leaves_a_damaged_dataset_alone(home, delivery):
    dataset = stores.dataset()
    done = maintenance()
    assert done.volumes == 5
    row = dataset.snapshot().patients()[0]
    volume = home / "dataset" / row.path
    shutil.rmtree(volume)
    with pytest.raises(DamagedError, match=f"1 of 5 volumes .* the first of {row.patient}"):
        maintenance()


def test_without_a_dataset_there_is_nothing_to_maintain_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HQINET_DATASET", str(tmp_path / "dataset"))
    assert maintenance().volumes == 0
    assert not (tmp_path / "dataset").exists()


def test_every_pixel_is_read_once_within_the_weeks_that_are_given():
    patients = [f"L{number:03d}" for number in range(100)]
    weeks = [datetime(2026, 1, 4, 4, tzinfo=UTC) + timedelta(weeks=n) for n in range(13)]
    shares = [due_in(week, patients, 13) for week in weeks]
    assert sorted(one for share in shares for one in share) == patients
    assert max(map(len, shares)) < 20
    assert due_in(weeks[0], patients, 1) == patients
    assert due_in(weeks[0], patients, 0) == []


def test_a_pixel_that_changed_is_found_by_maintenance(home, tmp_path, tiny_cohort, monkeypatch):
    monkeypatch.setenv("HQINET_DATASET", str(tmp_path / "dataset"))
    ingest(str(tiny_cohort), "tiny")
    assert maintenance(deep_within=1).deep == 5
    monkeypatch.setattr(upkeep.volumes, "digest", lambda *_: "another")
    assert maintenance(deep_within=0).deep == 0
    with pytest.raises(DamagedError, match=r"5 of 5 volumes of commit 1 are damaged, .* digest"):
        maintenance(deep_within=1)


def test_a_long_message_is_cut():
    state = ended("result", REFUSED, "x" * 1000)
    assert len(state.message) == LONGEST
    assert ended("result", None, "") == "result"
