"""The look over an installation: what is wrong is a failure with what to do, and nothing raises."""

import shutil
from pathlib import Path

import pytest

from flows import stores
from flows.ingest import ingest
from flows.operations import doctor
from flows.operations import home as homes
from flows.operations.check import Check
from flows.operations.outbox import Outbox
from flows.settings import Settings


@pytest.fixture
def found(home, monkeypatch):
    """Examine the home of this file; outcomes by name."""
    for name, value in homes.environment(home).items():
        if name.startswith(("DO_NOT", "MLFLOW_DISABLE", "PREFECT_SERVER_ANALYTICS")):
            monkeypatch.setenv(name, value)

    def look() -> dict[str, Check]:
        return {check.name: check for check in doctor.examine(home)}

    return look


def test_a_new_home_has_notes_and_no_failure(found, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_SPACE", 0)
    checks = found()
    assert {c.name for c in checks.values() if c.outcome == "failure"} == set()
    assert checks["dataset"].advice == "`hqinet ingest SOURCE`"
    assert checks["services"].found == "down"
    assert "no champion" in checks["models"].found


def test_a_damaged_volume_is_named(found, home, tiny_cohort):
    ingest(str(tiny_cohort), "tiny")
    assert found()["dataset"].found == "commit 1, 5 volumes whole"
    row = stores.dataset().snapshot().patients()[0]
    shutil.rmtree(Path(home) / "dataset" / row.path)
    check = found()["dataset"]
    assert check.outcome == "failure"
    assert f"1 of 5 volumes are damaged, the first of {row.patient}" in check.found


@pytest.mark.parametrize(
    ("variable", "value", "name", "says"),
    [
        ("DO_NOT_TRACK", "0", "telemetry", "DO_NOT_TRACK=0"),
        ("HQINET_CLUSTER__WHERE", "tcp://127.0.0.1:9", "workers", "no Dask scheduler answers"),
        ("HQINET_TRAIN__DEVICE", "cuda", "device", "cuda"),
        ("HQINET_SEND__RESTORED", '["pacs"]', "outbox", "no destination 'pacs'"),
        ("HQINET_NONSENSE", "1", "dataset", "HQINET_NONSENSE is no setting"),
    ],
)
def test_what_is_wrong_is_a_failure_that_says_so(found, monkeypatch, variable, value, name, says):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(doctor, "TIMEOUT", 1)
    check = found()[name]
    assert check.outcome == "failure"
    assert says in check.found
    assert check.advice


def test_a_destination_that_is_dead_is_a_failure(found, monkeypatch, tmp_path):
    file = tmp_path / "destinations.toml"
    file.write_text('[pacs]\nhost = "127.0.0.1"\nport = 9\nae_title = "PACS"\n')
    monkeypatch.setenv("HQINET_SEND__DESTINATIONS", str(file))
    check = found()["outbox"]
    assert check.outcome == "failure"
    assert "pacs: PACS at 127.0.0.1:9 takes no association" in check.found


def test_what_waits_for_a_destination_without_a_table_is_a_failure(found, monkeypatch, tmp_path):
    home = Settings().home.absolute()
    job = Outbox(home).put(tmp_path / "1.2.3", "former")
    try:
        check = found()["outbox"]
        assert check.outcome == "failure"
        assert "no destination 'former'" in check.found
    finally:
        Outbox(home).sent(job)


def test_a_full_disk_a_missing_decoder_and_a_package_out_of_range(found, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_SPACE", 2**80)
    monkeypatch.setitem(doctor.DECODERS, "JPEG XL", "no_such_module")
    monkeypatch.setattr(doctor, "version", lambda name: "99" if name == "fastapi" else "0")
    checks = found()
    assert checks["space"].outcome == "failure"
    assert checks["decoders"].found == "no decoder of JPEG XL"
    assert "fastapi 99, expected" in checks["packages"].found
