"""Real anatomy, simulated dose: the pipeline as its user runs it, then a later cohort."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def command(hqinet, tmp_path_factory):
    return hqinet(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def first(command, real_data) -> dict:
    shorter = ["--set", "schedule.steps_per_epoch=20"]
    return command.json("pipeline", real_data / "ldct-mini", "--recipe", "demo", *shorter)


def splits(command) -> dict[str, str]:
    return {row["patient"]: row["split"] for row in command.json("dataset", "show")["patients"]}


def test_four_pairs_are_accepted_and_one_patient_refused(first):
    assert [row["patient"] for row in first["ingest"]["accepted"]] == [
        "C901",
        "C902",
        "L901",
        "L902",
    ]
    (refused,) = first["ingest"]["refused"]
    assert (refused["patient"], refused["code"]) == ("L903", "no_low_dose")
    assert "no low-dose series" in refused["reason"]


def test_it_ends_with_a_model_that_beats_low_dose_and_is_refused_for_want_of_patients_alone(first):
    assert first["evaluate"]["model"] == first["train"]["model"]
    for row in first["evaluate"]["patients"]:
        assert row["restored"]["psnr"] > row["low"]["psnr"] + 0.3, row["patient"]
    # Of four pairs one is a test patient, of whom there is no confidence.
    assert first["promote"]["verdict"] == "refused"
    failed = {row["rule"] for row in first["promote"]["rules"] if not row["passed"]}
    assert failed == {"enough patients", "gain over low dose"}
    assert (Path(first["evaluate"]["report"]) / "report.html").stat().st_size < 30e6


def test_a_later_cohort_adds_patients_and_moves_no_one(command, first, real_data):
    before = splits(command)
    later = command.json("ingest", real_data / "limb-mini")
    assert later["commit"] == first["ingest"]["commit"] + 1
    assert [row["patient"] for row in later["accepted"]] == [f"X90{n}" for n in range(1, 9)]
    after = splits(command)
    assert len(after) == 12
    assert {patient: after[patient] for patient in before} == before
