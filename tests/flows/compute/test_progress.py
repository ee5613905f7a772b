"""What somebody who waits is told."""

from itertools import count
from unittest.mock import Mock
from uuid import uuid4

import pytest

from flows.compute import progress


@pytest.mark.parametrize(
    ("seconds_a_step", "says"), [(12.0, "1998 more steps take about 6.7 hours"), (0.5, "")]
)
def test_a_training_of_hours_says_so_early_and_once(monkeypatch, capsys, seconds_a_step, says):
    monkeypatch.setattr(progress, "update_progress_artifact", Mock())
    clock = count(step=seconds_a_step)
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    display = progress.Display(uuid4())
    for step in range(1, 60):
        display(step, 2001, {"loss": 1.0, "samples_per_second": 2.0})
    told = [line for line in capsys.readouterr().err.splitlines() if "more steps" in line]
    assert len(told) == bool(says), told
    assert all(says in line for line in told)
