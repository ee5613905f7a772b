"""Series go out to a real receiver, wait where it is dead, and never wait for another."""

import errno
import json
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification
from typer.testing import CliRunner

from flows import events, inbox
from flows.cli import services
from flows.cli.main import app
from flows.compute.preparation import SeriesOutcome
from flows.compute.sources import DenoiseResult
from flows.operations import home as homes
from flows.operations import outbox as module
from flows.operations import sender
from flows.operations.destinations import Entity, SendError, WebService, known, read_destinations
from flows.operations.outbox import Job, Outbox
from flows.operations.receiver import Receiver, listen
from flows.operations.routing import Rules
from flows.operations.sender import attempt, work
from flows.settings import ReceiveSettings


@pytest.fixture
def pacs(tmp_path) -> Iterator[Entity]:
    """A receiver of our own stands for the PACS; what it holds lies in `pacs/received`."""
    receiver = Receiver(tmp_path / "pacs", Rules(), 3600, print)
    server = listen(receiver, ReceiveSettings(port=0, ae_title="PACS", callers=["HQINET"]))
    yield Entity(host="127.0.0.1", port=server.server_address[1], ae_title="PACS")
    server.shutdown()


@pytest.fixture
def folder(series, tmp_path) -> Path:
    return series("L001", "Low Dose Images", slices=3).write(tmp_path / "restored")


@pytest.fixture
def outbox(tmp_path) -> Outbox:
    return Outbox(tmp_path / "home")


DEAD = Entity(host="127.0.0.1", port=9, ae_title="DEAD")


def test_a_series_is_sent_whole(pacs, folder, outbox, tmp_path):
    said = attempt(outbox, outbox.put(folder, "pacs"), pacs)
    assert said == "restored to pacs: 3 images sent"
    assert outbox.waiting("pacs") == []
    got = {pydicom.dcmread(f).SOPInstanceUID for f in (tmp_path / "pacs").rglob("*.dcm")}
    assert got == {pydicom.dcmread(f).SOPInstanceUID for f in folder.iterdir()}


def test_what_is_not_taken_waits_longer_each_time_over_restarts_and_is_given_up(
    folder, outbox, tmp_path
):
    job = outbox.put(folder, "dead")
    assert outbox.put(folder, "dead").queued >= job.queued
    (job,) = outbox.waiting("dead")
    pauses = []
    for _ in range(3):
        before = datetime.now(UTC)
        said = attempt(outbox, job, DEAD)
        assert "not sent" in said
        assert "DEAD at 127.0.0.1:9 takes no association" in said
        (job,) = Outbox(tmp_path / "home").waiting("dead")
        pauses.append(round((job.due - before).total_seconds()))
    assert pauses == [10, 20, 40]
    assert outbox.due("dead") == []


@pytest.fixture
def heard(monkeypatch) -> list[dict]:
    """Payloads of the events that are emitted."""
    said: list[dict] = []
    monkeypatch.setattr(events, "emit_event", lambda **event: said.append(event["payload"]))
    return said


def old(job: Job) -> Job:
    """The job as if it had waited as long as one may."""
    return job.model_copy(update={"queued": job.queued - module.OLDEST - timedelta(seconds=1)})


def test_what_waits_too_long_is_given_up_and_told_of_until_it_is_sent(pacs, folder, outbox, heard):
    said = attempt(outbox, old(outbox.put(folder, "dead")), DEAD)
    assert "not sent, try 1, the last: DEAD at 127.0.0.1:9 takes no association" in said
    assert outbox.waiting("dead") == []
    assert [row.folder for row in outbox.given_up("dead")] == [folder]
    # A folder that is no UID may be called after a person.
    assert heard == [{"series": "", "destination": "dead", "tries": 1}]
    assert attempt(outbox, outbox.put_again(folder, "dead"), pacs).endswith("3 images sent")
    assert outbox.given_up("dead") == []


def test_the_operator_is_told_once_of_many_that_are_given_up(series, outbox, tmp_path, heard):
    for number in range(3):
        folder = series("L001", slices=3).write(tmp_path / f"1.2.{number}")
        attempt(outbox, old(outbox.put(folder, "dead")), DEAD)
    assert len(outbox.given_up("dead")) == 3
    assert heard == [{"series": "1.2.0", "destination": "dead", "tries": 1}]


def test_more_than_may_wait_is_given_up_and_told_of(outbox, tmp_path, heard, monkeypatch):
    monkeypatch.setenv("HQINET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HQINET_SEND__RESTORED", '["pacs"]')
    monkeypatch.setattr(module, "MOST", 2)
    rows = [
        SeriesOutcome(outcome="restored", source="", description="", folder=str(tmp_path / name))
        for name in ("1.1", "1.2", "1.3")
    ]
    for _ in range(2):
        inbox.queue_for_sending(DenoiseResult(destination="", series=rows))
    assert [job.folder.name for job in outbox.waiting("pacs")] == ["1.1", "1.2"]
    assert [job.folder.name for job in outbox.given_up("pacs")] == ["1.3"]
    assert outbox.given_up("pacs")[0].said == "2 series wait for pacs already"
    assert heard == [{"series": "1.3", "destination": "pacs", "tries": 0}]


def test_sent_by_hand_a_series_waits_anew_and_no_name_of_a_folder_is_noted(
    series, tmp_path, monkeypatch
):
    home, folder = tmp_path / "home", series("L001", slices=3).write(tmp_path / "Doe^Jane")
    box = Outbox(home)
    box._write(old(box.put(folder, "dead")))
    file = tmp_path / "destinations.toml"
    file.write_text('[dead]\nhost = "127.0.0.1"\nport = 9\nae_title = "DEAD"\n')
    asked = ["send", str(folder), "--to", "dead", "--destinations", str(file), "--json"]
    done = CliRunner().invoke(app, [*asked, "--home", str(home)])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["sent"] is False
    (job,) = box.waiting("dead")
    assert datetime.now(UTC) - job.queued < timedelta(minutes=1)
    assert not (home / "journal").exists()


def test_what_is_put_again_while_it_is_sent_is_sent_again(pacs, folder, outbox, tmp_path):
    def meanwhile(images: list[Path], to: Entity) -> None:
        really(images, to)
        Outbox(tmp_path / "home").put(folder, "pacs")

    really = sender._c_store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sender, "_c_store", meanwhile)
        assert attempt(outbox, outbox.put(folder, "pacs"), pacs).endswith("3 images sent")
    (job,) = outbox.due("pacs")
    attempt(outbox, job, pacs)
    assert outbox.waiting("pacs") == []


def test_a_series_that_is_swapped_while_it_is_sent_waits_on(
    pacs, folder, outbox, tmp_path, monkeypatch
):
    def meanwhile(images: list[Path], to: Entity) -> None:
        really(images, to)
        shutil.copytree(folder, tmp_path / "anew")
        folder.rename(tmp_path / "former")
        (tmp_path / "anew").rename(folder)

    really = sender._c_store
    monkeypatch.setattr(sender, "_c_store", meanwhile)
    said = attempt(outbox, outbox.put(folder, "pacs"), pacs)
    assert said.endswith(f"not sent, try 1: {folder} was restored again while it was sent")
    assert [job.folder for job in outbox.waiting("pacs")] == [folder]


def test_folders_of_the_same_name_do_not_take_each_others_place(outbox, tmp_path):
    both = [tmp_path / "a" / "low", tmp_path / "b" / "low"]
    for folder in both:
        outbox.put_again(folder, "pacs")
    first, second = outbox.waiting("pacs")
    assert [first.folder, second.folder] == both
    outbox.sent(first)
    assert [job.folder for job in outbox.waiting("pacs")] == both[1:]


def test_a_job_of_an_earlier_version_is_removed_from_where_it_lies(outbox, tmp_path):
    outbox.put(tmp_path / "low", "pacs")
    (file,) = (tmp_path / "home" / "outbox" / "pacs").glob("*.json")
    file.rename(file.with_name("low.json"))
    outbox.sent(outbox.failed(outbox.waiting("pacs")[0], "no answer"))
    assert outbox.waiting("pacs") == []


def test_a_damaged_job_does_not_end_the_sender(pacs, folder, outbox, tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "EVERY", 0.05)
    damaged = tmp_path / "home" / "outbox" / "pacs" / "damaged.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    outbox.put(folder, "pacs")
    stop, said = threading.Event(), []

    def say(line: str) -> None:
        said.append(line)
        damaged.unlink(missing_ok=True)
        if len(said) == 2:
            stop.set()

    work(outbox, {"pacs": pacs}, say, stop)
    assert said[0].startswith("pacs: ValidationError: ")
    assert said[1] == "restored to pacs: 3 images sent"


def test_a_log_that_takes_no_line_does_not_end_the_sender(pacs, folder, outbox, monkeypatch):
    def full(_: str) -> None:
        if not outbox.waiting("pacs"):
            stop.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    def fails_once(*_: object) -> str:
        monkeypatch.setattr(sender, "attempt", attempt)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sender, "EVERY", 0.05)
    monkeypatch.setattr(sender, "attempt", fails_once)
    outbox.put(folder, "pacs")
    stop = threading.Event()
    threading.Timer(30, stop.set).start()
    work(outbox, {"pacs": pacs}, full, stop)
    assert outbox.waiting("pacs") == []


def test_a_dead_destination_does_not_keep_another_waiting(
    pacs, folder, outbox, tmp_path, monkeypatch
):
    def slow(path: Path, to: Entity) -> int:
        if to is DEAD:
            time.sleep(30)
        return really(path, to)

    really = sender.send
    monkeypatch.setattr(sender, "send", slow)
    monkeypatch.setattr(sender, "EVERY", 0.1)
    for name in ("dead", "pacs"):
        outbox.put(folder, name)
    stop, said = threading.Event(), []
    both = {"dead": DEAD, "pacs": pacs}
    thread = threading.Thread(target=work, args=(outbox, both, said.append, stop), daemon=True)
    thread.start()
    until = time.monotonic() + 15
    while outbox.waiting("pacs") and time.monotonic() < until:
        time.sleep(0.1)
    stop.set()
    thread.join(5)
    assert outbox.waiting("pacs") == []
    assert len(outbox.waiting("dead")) == 1
    assert said == ["restored to pacs: 3 images sent"]


def test_a_refusal_and_a_folder_that_is_gone_are_said(pacs, folder, outbox, tmp_path):
    image = next(folder.iterdir())
    ours = pydicom.dcmread(image)
    ours.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "HQINET"]
    ours.save_as(image)
    with pytest.raises(SendError, match=r"PACS at 127\.0\.0\.1:\d+ answers 0xc001 to "):
        sender.send(folder, pacs)
    with pytest.raises(SendError, match="holds no image"):
        sender.send(tmp_path / "gone", pacs)


def test_a_damaged_image_keeps_its_series_back_and_no_other(pacs, folder, series, outbox, tmp_path):
    next(folder.iterdir()).write_bytes(b"no DICOM at all")
    whole = series("L002", "Low Dose Images", slices=3).write(tmp_path / "whole")
    jobs = [outbox.put(one, "pacs") for one in (folder, whole)]
    said = [attempt(outbox, job, pacs) for job in jobs]
    assert "restored to pacs: not sent, try 1: " in said[0]
    assert said[1] == "whole to pacs: 3 images sent"
    assert [job.folder for job in outbox.waiting("pacs")] == [folder]


def test_a_web_service_takes_a_series_whole(orthanc, folder, outbox):
    web = WebService(url=f"http://127.0.0.1:{orthanc.http}/dicom-web/")
    assert attempt(outbox, outbox.put(folder, "web"), web) == "restored to web: 3 images sent"
    sent = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, folder.iterdir())}
    first = next(iter(sent.values()))
    path = f"studies/{first.StudyInstanceUID}/series/{first.SeriesInstanceUID}"
    back = {image.SOPInstanceUID: image for image in orthanc.retrieve(path)}
    assert back.keys() == sent.keys()
    assert all(image.PixelData == sent[uid].PixelData for uid, image in back.items())


def test_a_web_service_that_refuses_or_is_dead_is_said(orthanc, folder):
    elsewhere = WebService(url=f"http://127.0.0.1:{orthanc.http}/nowhere")
    with pytest.raises(SendError, match=r"/nowhere/studies answers 404 to "):
        sender.send(folder, elsewhere)
    (folder / "1-001.dcm").write_bytes(b"no DICOM at all")
    service = WebService(url=f"http://127.0.0.1:{orthanc.http}/dicom-web")
    with pytest.raises(SendError, match=r"/studies answers \d+ to 1-001\.dcm"):
        sender.send(folder, service)
    with pytest.raises(SendError, match=r"127\.0\.0\.1:9/studies does not answer"):
        sender.send(folder, WebService(url="http://127.0.0.1:9"))


def test_a_destination_is_asked_whether_it_is_there(pacs, orthanc):
    web = WebService(url=f"http://127.0.0.1:{orthanc.http}/dicom-web")
    for there in (pacs, web):
        sender.reach(there)
    with pytest.raises(SendError, match=r"DEAD at 127\.0\.0\.1:9 takes no association"):
        sender.reach(DEAD)
    with pytest.raises(SendError, match=r"/nowhere/studies answers 404"):
        sender.reach(web.model_copy(update={"url": f"http://127.0.0.1:{orthanc.http}/nowhere"}))
    with pytest.raises(SendError, match="does not answer"):
        sender.reach(WebService(url="http://127.0.0.1:9"))


def test_a_series_goes_by_tls_to_whom_we_trust_and_comes_from_whom_we_know(
    folder, tmp_path, certificate
):
    file, key = certificate
    receiver = Receiver(tmp_path / "pacs", Rules(), 3600, print)
    secured = {"certificate": file, "key": key, "authority": file}
    server = listen(receiver, ReceiveSettings(port=0, ae_title="PACS", **secured))
    port = server.server_address[1]
    ours = Entity(host="127.0.0.1", port=port, ae_title="PACS", tls=True, **secured)
    try:
        assert sender.send(folder, ours) == 3
        for change in ({"tls": False}, {"authority": None}, {"certificate": None, "key": None}):
            with pytest.raises(SendError, match=r"takes no association|stopped answering"):
                sender.send(folder, ours.model_copy(update=change))
    finally:
        server.shutdown()
    with pytest.raises(SendError, match=r"certificates .*gone\.pem, .* No such file"):
        ours.model_copy(update={"authority": tmp_path / "gone.pem"}).tls_context()


def test_what_the_inbox_restores_is_queued_for_its_destinations(
    monkeypatch, outbox, tmp_path, caplog
):
    monkeypatch.setenv("HQINET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HQINET_SEND__RESTORED", '["pacs", "archive"]')
    rows = [
        SeriesOutcome(outcome=outcome, source="", description="", folder=str(tmp_path / outcome))
        for outcome in ("restored", "refused")
    ]
    inbox.queue_for_sending(DenoiseResult(destination="", series=rows))
    for name in ("pacs", "archive"):
        assert [job.folder.name for job in outbox.waiting(name)] == ["restored"]
    said = "HQINET_SEND__RESTORED names 'pacs', and HQINET_SEND__DESTINATIONS no file"
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ('["pacs", "pcas"]', "names 'pcas', which is not in .*/destinations.toml, only pacs"),
        ('["pacs"]', None),
    ],
)
def test_the_services_start_only_where_what_is_restored_has_a_destination(
    tmp_path, monkeypatch, names, says
):
    def start(_: Path) -> None:
        raise SendError("started")

    file = tmp_path / "destinations.toml"
    file.write_text('[pacs]\nhost = "127.0.0.1"\nport = 9\nae_title = "PACS"\n')
    monkeypatch.setenv("HQINET_SEND__DESTINATIONS", str(file))
    monkeypatch.setenv("HQINET_SEND__RESTORED", names)
    monkeypatch.setattr(services, "enter", homes.require)
    monkeypatch.setattr(services.services, "start", start)
    with pytest.raises(SendError, match=says or "started"):
        CliRunner().invoke(app, ["up", "--home", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[pacs]\nhost = "x"\nae_title = "PACS"', r"pacs\.port: Field required"),
        ('[web]\nurl = "ftp://x"', r"web\.url: String should match pattern"),
        ('[pacs]\nhost = "x"\nport = 104\nae_title = "PACS"\ntsl = true', r"pacs\.tsl: Extra"),
        ("[pacs", "destinations .*destinations.toml: "),
    ],
)
def test_a_mistake_in_the_destinations_is_one_line_that_names_it(tmp_path, text, says):
    (tmp_path / "destinations.toml").write_text(text)
    with pytest.raises(SendError, match=says):
        read_destinations(tmp_path / "destinations.toml")


def test_a_destination_that_is_not_there_is_named():
    with pytest.raises(SendError, match="there is no destination 'pcas', only pacs"):
        known({"pacs": DEAD}, "pcas")


def test_a_destination_that_answers_an_echo_with_a_failure_is_no_destination():
    entity = AE(ae_title="SICK")
    entity.add_supported_context(Verification)
    handlers = [(evt.EVT_C_ECHO, lambda _: 0x0122)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        there = Entity(host="127.0.0.1", port=server.server_address[1], ae_title="SICK")
        with pytest.raises(SendError, match="answers 0x0122 to C-ECHO"):
            sender.reach(there)
    finally:
        server.shutdown()
