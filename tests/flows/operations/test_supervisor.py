"""The supervisor and the watch on a disk that is full: what runs goes on."""

import errno
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from flows.operations import supervisor as module
from flows.operations import watch
from flows.operations.supervisor import Child, StopRequested, Supervisor


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class Unstartable(Child):
    """A service that a full disk keeps from being started the first two times."""

    def start(self, _variables: Mapping[str, str], _folder: Path) -> None:
        self.starts += 1
        if self.starts <= 2:
            full()

    def is_due(self) -> bool:
        return True


@pytest.fixture
def supervisor(tmp_path) -> Supervisor:
    return Supervisor(tmp_path, [Unstartable("prefect", [], 4200)], [Unstartable("worker-cpu", [])])


def stop_after(monkeypatch, passes: int) -> None:
    """Have the supervisor told to stop in its so-manieth pause."""
    left = iter(range(passes - 1))

    def pause(_: float) -> None:
        if next(left, None) is None:
            raise StopRequested

    monkeypatch.setattr(module, "sleep", pause)


def test_a_full_disk_keeps_no_service_from_being_watched(supervisor, monkeypatch, capsys):
    stop_after(monkeypatch, 4)
    monkeypatch.setattr(module, "write", full)
    with pytest.raises(StopRequested):
        supervisor._watch()
    assert [child.starts for child in (*supervisor.servers, *supervisor.workers)] == [4, 4]
    lines = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
    reason = "No space left on device"
    assert lines == [
        f"prefect cannot be started: {reason}",
        f"worker-cpu cannot be started: {reason}",
        f"services.json cannot be written: {reason}",
    ]


def test_what_could_not_be_written_is_written_later(supervisor, monkeypatch, tmp_path):
    really, calls = module.write, []

    def full_at_first(*args: object) -> None:
        calls.append(args)
        really(*args) if len(calls) > 1 else full()

    stop_after(monkeypatch, 2)
    monkeypatch.setattr(module, "write", full_at_first)
    with pytest.raises(StopRequested):
        supervisor._watch()
    assert module.read(tmp_path).state == "up"


def test_a_log_that_takes_no_line_ends_neither_supervisor_nor_watch(
    supervisor, monkeypatch, prefectless
):
    monkeypatch.setattr(sys.stdout, "write", full)
    stop_after(monkeypatch, 4)
    with pytest.raises(StopRequested):
        supervisor._watch()
    with pytest.raises(StopRequested):
        watch.main()
    assert prefectless == ["looked", "looked"]


@pytest.fixture
def prefectless(monkeypatch) -> list[str]:
    """A watch that sees one dead run each time, and is told to stop after the second look."""
    looks: list[str] = []

    def look(_: watch.Watch) -> list[str]:
        looks.append("looked")
        return ["a run is dead"]

    def pause(_: float) -> None:
        if len(looks) == 2:
            raise StopRequested

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(watch.Watch, "look", look)
    monkeypatch.setattr(watch.time, "sleep", pause)
    return looks
