"""Images come in by DICOM, from DCMTK's sender and from a sender that misbehaves."""

import errno
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE
from typer.testing import CliRunner

from flows.cli.main import app
from flows.operations import receiver as module
from flows.operations.receiver import Receiver, ReceiverError, listen
from flows.operations.routing import Rules, RulesError, read_rules
from flows.settings import ReceiveSettings

RULES = """
[[rule]]
to = "ignore"
when = { ImageType = "*LOCALIZER*" }

[[rule]]
to = "denoise"
when = { Modality = "CT", SeriesDescription = "*low*" }

[[rule]]
to = "ingest"
when = { Modality = "CT" }
"""


@pytest.fixture
def rules(tmp_path) -> Rules:
    (tmp_path / "rules.toml").write_text(RULES)
    return read_rules(tmp_path / "rules.toml")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def receiver(tmp_path, rules, said) -> Receiver:
    return Receiver(tmp_path / "home", rules, 0, said.append)


@pytest.fixture
def port(receiver) -> Iterator[int]:
    server = listen(receiver, ReceiveSettings(port=0, callers=["SCANNER"]))
    yield server.server_address[1]
    server.shutdown()


def store(port: int, *paths: Path, caller: str = "SCANNER", called: str = "HQINET") -> int:
    """DCMTK's exit status; of `dcmsend`, for pynetdicom has a `storescu` of its own."""
    command = ["dcmsend", "-aet", caller, "-aec", called, "+sd", "+r"]
    done = subprocess.run(
        [*command, "127.0.0.1", str(port), *map(str, paths)], capture_output=True, check=False
    )
    return done.returncode


def answer(port: int, image: pydicom.Dataset) -> int:
    """The status of one C-STORE."""
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title="HQINET")
    try:
        return association.send_c_store(image).Status
    finally:
        association.release()


def test_a_study_is_stored_as_it_was_sent_and_goes_where_the_rules_say(
    receiver, port, series, tmp_path, said
):
    for name, low in (("Low Dose Images", True), ("Full Dose Images", False)):
        series("L001", name, low=low, slices=3).write(tmp_path / "study" / name)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    series("L001", "Topogram", slices=1, attributes=scout).write(tmp_path / "study" / "Topogram")
    assert store(port, tmp_path / "study") == 0
    sent = {pydicom.dcmread(f).SOPInstanceUID: f for f in (tmp_path / "study").rglob("*.dcm")}
    placed = receiver.pass_on()
    home = tmp_path / "home"
    assert sorted(path.relative_to(home).parts[0] for path in placed) == ["denoise-inbox", "inbox"]
    got = [image for path in placed for image in path.glob("*.dcm")]
    assert len(got) == 6
    for image in got:
        original = pydicom.dcmread(sent[image.stem])
        assert pydicom.dcmread(image).PixelData == original.PixelData
    assert any("1 images, ignore by rule 1" in line for line in said)
    (file,) = (home / "journal").iterdir()
    journal = file.read_text()
    noted = [json.loads(line) for line in journal.splitlines()]
    assert sorted((row["to"], row["images"]) for row in noted) == [
        ("denoise", 3),
        ("ignore", 1),
        ("ingest", 3),
    ]
    assert {path.name for path in placed} < {row["series"] for row in noted}
    assert {(row["step"], row["caller"]) for row in noted} == {("received", "SCANNER")}
    assert "L001" not in journal
    assert list((home / "received").iterdir()) == []


def test_a_study_that_still_comes_waits_and_late_images_open_it_again(
    receiver, port, series, tmp_path
):
    folder = series("L001", "Low Dose Images", slices=3).write(tmp_path / "study")
    first, *late = sorted(folder.iterdir())
    receiver._quiet = 3600
    store(port, first)
    assert receiver.pass_on() == []
    receiver._quiet = 0
    (place,) = receiver.pass_on()
    store(port, *late)
    assert receiver.pass_on() == [place]
    assert len(list(place.iterdir())) == 3


def test_a_study_that_cannot_be_passed_on_is_said_once_and_keeps_no_other_waiting(
    receiver, series, tmp_path, said
):
    received = tmp_path / "home" / "received"
    damaged, whole = received / "1.1" / "1.1.1", received / "1.2" / "1.2.1"
    for folder in (damaged, whole):
        series("L001", "Low Dose Images", slices=1).write(folder)
    next(damaged.iterdir()).write_bytes(b"no DICOM at all")
    assert [place.name for place in receiver.pass_on()] == ["1.2.1"]
    assert receiver.pass_on() == []
    assert sum(line.startswith("study 1.1: InvalidDicomError: ") for line in said) == 1


def test_what_a_killed_receiver_left_is_cleared_away(receiver, tmp_path):
    left = tmp_path / "home" / "received" / "1.1" / "1.1.1"
    left.mkdir(parents=True)
    (left / "1.dcm.0123.draft").write_bytes(b"half")
    assert receiver.pass_on() == []
    assert not left.parent.exists()


@pytest.mark.parametrize(
    "keyword", ["NumberOfStudyRelatedInstances", "NumberOfSeriesRelatedInstances"]
)
def test_as_many_images_as_the_sender_says_complete_a_study_at_once(
    receiver, port, series, tmp_path, keyword
):
    folder = series("L001", "Low Dose Images", slices=3, attributes={keyword: 3}).write(
        tmp_path / "study"
    )
    first, *others = sorted(folder.iterdir())
    receiver._quiet = 3600
    store(port, first)
    assert receiver.pass_on() == []
    store(port, *others)
    (place,) = receiver.pass_on()
    assert len(list(place.iterdir())) == 3
    assert list((tmp_path / "home" / "received").iterdir()) == []


def test_a_series_that_is_complete_does_not_wait_for_another(receiver, port, series, tmp_path):
    for name, expected in (("Low Dose Images", 3), ("Full Dose Images", 4)):
        attributes = {"NumberOfSeriesRelatedInstances": expected}
        series("L001", name, slices=3, attributes=attributes).write(tmp_path / "study" / name)
    receiver._quiet = 3600
    store(port, tmp_path / "study")
    (place,) = receiver.pass_on()
    assert "denoise-inbox" in place.parts
    receiver._quiet = 0
    (place,) = receiver.pass_on()
    assert "inbox" in place.parts
    assert len(list(place.iterdir())) == 3


def test_a_certificate_that_is_not_there_is_one_line(receiver, tmp_path):
    with pytest.raises(ReceiverError, match=r"the receiver's certificates .*/none\.pem: "):
        listen(receiver, ReceiveSettings(port=0, certificate=tmp_path / "none.pem"))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"SeriesInstanceUID": "../../../etc"}, module.CANNOT_UNDERSTAND),
        ({"StudyInstanceUID": "1." * 40 + "1"}, module.CANNOT_UNDERSTAND),
        ({"StudyInstanceUID": ""}, module.CANNOT_UNDERSTAND),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "HQINET"]}, module.OUR_OWN),
    ],
)
def test_what_must_not_come_in_is_refused(port, series, tmp_path, said, change, status):
    folder = series("L001", slices=1).write(tmp_path / "study")
    image = pydicom.dcmread(next(folder.iterdir()))
    with pydicom.config.disable_value_validation():
        for name, value in change.items():
            setattr(image, name, value)
        assert answer(port, image) == status
    assert "image of SCANNER refused" in said[0]
    assert not list((tmp_path / "home").rglob("*.dcm"))


def test_a_full_disk_is_answered_as_one_though_the_log_lies_on_it(
    rules, series, tmp_path, monkeypatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    image = pydicom.dcmread(next(series("L001", slices=1).write(tmp_path / "study").iterdir()))
    monkeypatch.setattr(module.files, "write", full)
    server = listen(Receiver(tmp_path / "home", rules, 0, full), ReceiveSettings(port=0))
    try:
        assert answer(server.server_address[1], image) == module.NO_SPACE
    finally:
        server.shutdown()


def test_strangers_are_not_listened_to_and_echo_is_answered(port, series, tmp_path):
    folder = series("L001", slices=1).write(tmp_path / "study")
    assert store(port, folder, caller="STRANGER") != 0
    assert store(port, folder, called="OTHER") != 0
    echo = ["echoscu", "-aet", "SCANNER", "-aec", "HQINET", "127.0.0.1", str(port)]
    assert subprocess.run(echo, check=False).returncode == 0


def test_it_does_not_listen_to_the_network_without_a_list_of_callers(receiver):
    with pytest.raises(ReceiverError, match=r"from anybody at 0\.0\.0\.0: name its callers"):
        listen(receiver, ReceiveSettings(host="0.0.0.0", port=0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[rule]]\nto = "heaven"', r"rule\.0\.to"),
        ('[[rule]]\nto = "hold"\nwhen = { Modalty = "CT" }', "'Modalty' is no keyword"),
        ("[[rule", "rules.toml: "),
    ],
)
def test_a_mistake_in_the_rules_is_one_line_that_names_it(tmp_path, text, says):
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(RulesError, match=says):
        read_rules(tmp_path / "rules.toml")


def test_without_rules_everything_is_held():
    assert read_rules(None).route(pydicom.Dataset()) == ("hold", None)


@pytest.mark.parametrize("count", ["-1", "0"])
def test_a_count_that_cannot_be_meant_completes_no_study(receiver, port, series, tmp_path, count):
    odd = {"NumberOfStudyRelatedInstances": count}
    folder = series("L001", "Low Dose Images", slices=1, attributes=odd).write(tmp_path / "study")
    receiver._quiet = 3600
    assert answer(port, pydicom.dcmread(next(folder.iterdir()))) == 0
    assert receiver.pass_on() == []


def test_rules_explain_no_file_that_is_no_dicom(tmp_path):
    (tmp_path / "note.txt").write_text("no image")
    done = CliRunner().invoke(app, ["receive", "--explain", str(tmp_path / "note.txt")])
    assert done.exit_code == 2
    assert "is no DICOM" in done.output.replace("\n", "")
