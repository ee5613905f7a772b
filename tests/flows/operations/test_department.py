"""Real collections are dropped into the inboxes of running services, and nobody types.

The schedules as shipped look at the inbox at night: here they are set to every minute, which an
operator may, too. Deliveries are taken when they have lain quiet for a minute, as shipped.
"""

import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest

from storage.dicom.statement import read_statement

pytestmark = [pytest.mark.real, pytest.mark.department, pytest.mark.timeout(1800)]
ENDS = {"promoted": "Completed", "refused": "Refused"}


@pytest.fixture(scope="module")
def hurried(department):
    """Both inboxes are looked at every minute."""
    for name in ("ingest-inbox", "denoise-inbox"):
        known = department.deployment(name)
        (schedule,) = known["schedules"]
        url = f"{department.services().prefect}/deployments/{known['id']}/schedules"
        change = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}}
        answer = httpx.patch(f"{url}/{schedule['id']}", json=change, timeout=30)
        assert answer.is_success, answer.text
    return department


def deliver(collection: Path, inbox: Path) -> None:
    """Copy a collection as somebody with a file manager would."""
    shutil.copytree(collection, inbox / collection.name)


@pytest.fixture(scope="module")
def champion(hurried, real_data) -> dict:
    """The run that judged what the first collection became."""
    deliver(real_data / "ldct-mini", hurried.home / "inbox")
    return hurried.ended("promote-on-report", 900)


def test_the_first_collection_becomes_a_champion(hurried, champion):
    assert champion["state"]["name"] == "Completed"
    (model,) = hurried.command.json("models")["models"]
    assert (model["aliases"], model["verdict_commit"]) == (["champion"], "2")
    shown = hurried.command.json("dataset", "show")
    assert [row["patient"] for row in shown["patients"]] == ["C901", "C902", "L901", "L902"]


def test_a_low_dose_series_is_restored_by_that_champion(hurried, champion, real_data):
    # Of a patient who was trained on: others' kernels are not known to so small a model.
    patients = hurried.command.json("dataset", "show")["patients"]
    known = next(row["patient"] for row in patients if row["split"] == "train")
    (source,) = (real_data / "ldct-mini").glob(f"*/{known}/*/*Low*")
    deliver(source, hurried.home / "denoise-inbox")
    # A series gets its name when it is whole.
    named = lambda: list((hurried.home / "denoised").glob("*[0-9]"))  # noqa: E731
    (folder,) = hurried.wait(named, 300, "a derived series")
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    assert len(images) == len(list(source.iterdir()))
    derived = folder / "0024.dcm"
    assert grain(derived) < 0.8 * grain(_source_of(derived, source))
    assert all("model 1" in image.DerivationDescription for image in images)
    told = json.loads(hurried.command("explain", images[0].filename, "--json").stdout)
    assert told["verdict"]["verdict"] == "promoted"
    assert known in told["training_patients"]


def grain(file: Path) -> float:
    """How much neighbouring pixels differ: less where there is less noise."""
    return float(np.abs(np.diff(pydicom.dcmread(file).pixel_array.astype(int))).mean())


def _source_of(derived: Path, folder: Path) -> Path:
    """The file of a series that an instance was made from."""
    wanted = read_statement(derived).source_instance
    headers = ((file, pydicom.dcmread(file, stop_before_pixels=True)) for file in folder.iterdir())
    return next(file for file, header in headers if header.SOPInstanceUID == wanted)


@pytest.fixture(scope="module")
def second(hurried, champion, real_data) -> dict:
    """The run that judged what the second collection became."""
    deliver(real_data / "limb-mini", hurried.home / "inbox")
    return hurried.ended("promote-on-report", 1200, of=2)


def test_the_second_collection_becomes_a_commit_a_training_and_a_verdict(hurried, second):
    newer, first = hurried.command.json("models")["models"]
    assert (newer["version"], newer["verdict_commit"]) == (2, "3")
    assert second["state"]["name"] == ENDS[newer["verdict"]]
    assert ("champion" in newer["aliases"]) == (newer["verdict"] == "promoted")
    assert first["version"] == 1
    shown = hurried.command.json("dataset", "show")
    assert (shown["commit"], len(shown["patients"])) == (3, 12)
    # Nights without news begin no training.
    before = looks(hurried)
    hurried.wait(lambda: looks(hurried) > before + 1, 200, "two more looks at the inbox")
    assert len(hurried.runs("train-on-commit")) == 2


def looks(department) -> int:
    """How often the inbox was looked at."""
    wanted = {"state": {"type": {"any_": ["COMPLETED"]}}}
    of = {"name": {"any_": ["ingest-inbox"]}}
    return len(department.post("flow_runs/filter", deployments=of, flow_runs=wanted))
