"""Which steps are tried again: those of runs that nobody waits for, after trouble of the moment."""

import pytest
from prefect import flow, task

from flows.evaluate import check_leakage, measure, write_report
from flows.ingest import convert, inventory, merge
from flows.promote import judge_version
from flows.retries import TRIED_AGAIN, is_of_the_moment
from flows.train import register
from storage.errors import DatasetError, RegistryError, StoreError, UnavailableError

STEPS = [register, check_leakage, measure, write_report, judge_version, inventory, convert, merge]


@pytest.fixture
def deployed(monkeypatch) -> None:
    """Runs are of a deployment, as Prefect's own variable for tests has it."""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-a-test")


def attempts(error: Exception) -> int:
    """How often a step is tried that fails once with an error."""
    tried = []

    @task(**TRIED_AGAIN | {"retry_delay_seconds": 0})
    def step() -> None:
        tried.append(error)
        if len(tried) == 1:
            raise error

    @flow
    def once() -> None:
        step()

    once(return_state=True)
    return len(tried)


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (StoreError("s3://x: 503"), 2),
        (UnavailableError("MLflow does not do what was asked"), 2),
        (OSError(116, "Stale file handle"), 2),
        (RegistryError("no model is registered yet"), 1),
        (DatasetError("no commit 7"), 1),
        (KeyError("x"), 1),
    ],
)
def test_a_step_of_a_deployment_is_tried_again_where_that_may_help(deployed, error, times):
    assert attempts(error) == times


def test_a_command_by_hand_says_at_once_what_is_wrong():
    assert attempts(StoreError("s3://x: 503")) == 1


def test_the_steps_that_reach_outside_are_tried_again():
    for step in STEPS:
        assert (step.retries, step.retry_condition_fn) == (2, is_of_the_moment), step.name
