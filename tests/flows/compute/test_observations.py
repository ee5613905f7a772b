"""What a run reports reaches MLflow in its order, however often MLflow was away."""

import json
import logging

import pytest

from flows.compute import observations
from flows.compute.observations import Observations
from storage.errors import RegistryError


class Taker:
    """Stands for a registry that may be away; keeps what it is given."""

    def __init__(self) -> None:
        self.away, self.rows, self.files = False, [], []

    def connect(self) -> "Taker":
        if self.away:
            raise RegistryError("no MLflow server answers")
        return self

    def log_metrics(self, _run, rows):
        if self.away:
            raise RegistryError("no MLflow server answers")
        self.rows.extend(rows)

    def log_file(self, _run, path, folder):
        self.files.append((path.name, folder))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(observations, "SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr(observations, "SECONDS_AFTER_FAILURE", 0.01)


def test_all_that_is_noted_arrives_once_and_in_order(tmp_path):
    taker = Taker()
    (tmp_path / "a.png").write_bytes(b"x")
    for start in (0, 2500):
        with Observations(tmp_path, "run", taker.connect) as noted:
            for step in range(start, start + 2500):
                noted.metrics(step, {"loss": float(step)})
            noted.file(tmp_path / "a.png", "validation")
    assert [step for step, _ in taker.rows] == list(range(5000))
    assert taker.files == [("a.png", "validation")] * 2


def test_what_could_not_be_sent_is_said_once_and_sent_by_the_next_attempt(tmp_path, caplog):
    taker = Taker()
    taker.away = True
    with (
        caplog.at_level(logging.WARNING, "hqinet.observations"),
        Observations(tmp_path, "run7", taker.connect) as noted,
    ):
        for step in range(20):
            noted.metrics(step, {"loss": 1.0})
            noted._stop.wait(0.005)
    said = [record.message for record in caplog.records]
    assert sum("training goes on" in line for line in said) == 1
    assert "hqinet train --resume run7" in said[-1]
    taker.away = False
    with Observations(tmp_path, "run7", taker.connect):
        pass
    assert [step for step, _ in taker.rows] == list(range(20))


def test_a_line_that_a_kill_cut_off_is_not_sent(tmp_path):
    taker = Taker()
    whole = json.dumps({"step": 1, "metrics": {"loss": 2.0}}) + "\n"
    (tmp_path / "observed.jsonl").write_text(whole + whole[:9])
    with Observations(tmp_path, "run", taker.connect):
        pass
    assert taker.rows == [(1, {"loss": 2.0})]
    with Observations(tmp_path, "run", taker.connect) as noted:
        noted.metrics(2, {"loss": 1.0})
    assert taker.rows == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]
