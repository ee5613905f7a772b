"""The model that ships, as a challenger, and as where a training begins."""

import json

import pytest
import torch

from flows import lineage, stores
from flows.compute.beginnings import seen_by, weights_of
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.starter import add_starter
from flows.train import train
from hqinet.restoration.export import load_built, load_exported
from hqinet.restoration.starter import starter_file, starter_lineage
from hqinet.training.interrupts import TrainingError
from hqinet.training.recipe import load_recipe
from hqinet.training.state import fresh_state

SHORT = ["schedule.epochs = 1", "schedule.steps_per_epoch = 1", "sampling.patch = 32"]


@pytest.fixture(scope="module")
def cohort(home, tiny_cohort):
    return ingest(str(tiny_cohort), "tiny")


@pytest.fixture(scope="module")
def added(cohort) -> int:
    return add_starter().model


def test_it_is_registered_with_whom_it_has_seen_and_restores_as_the_file_does(added, tmp_path):
    version = stores.registry().version(added)
    assert json.loads(version.tags["training_patients"]) == starter_lineage().training_patients
    assert version.aliases == ()
    windows = 40 + 30 * torch.randn(1, 3, 64, 64)
    registered = load_exported(stores.registry().model_file(version, tmp_path))
    shipped = load_built(starter_file(), load_recipe("starter").model, dose=None)
    with torch.inference_mode():
        torch.testing.assert_close(registered(windows), shipped(windows), atol=0.01, rtol=0)


def test_it_is_judged_like_any_other_challenger(added):
    evaluated = evaluate(str(added))
    assert evaluated.model == added
    assert {row["patient"] for row in evaluated.patients} == {
        row.patient for row in stores.dataset().snapshot().patients("test")
    }


def test_a_training_begins_with_its_weights_or_those_of_a_version(added):
    recipe = load_recipe("starter")
    shipped = weights_of("starter")
    state = fresh_state(recipe, [], [], torch.device("cpu"), shipped)
    begun = state.judged.state_dict()
    assert begun.keys() == shipped.keys()
    assert all(torch.equal(begun[name], shipped[name]) for name in shipped)
    assert all(torch.equal(x, shipped[name]) for name, x in weights_of(str(added)).items())


def test_whom_it_has_seen_counts_as_seen_by_what_began_with_it(added):
    snapshot = stores.dataset().snapshot()
    ours = {row.patient for row in snapshot.patients("train")}
    for start in ("starter", str(added)):
        tags = lineage.started_from(start, seen_by(start), snapshot)
        seen = set(json.loads(tags["training_patients"]))
        assert seen == ours | set(starter_lineage().training_patients)
        assert tags["started_from"] == start


def test_another_network_cannot_begin_with_its_weights(cohort):
    with pytest.raises(TrainingError, match=r"not of the network of recipe 'starter'.*model\.\*"):
        train("starter", overrides=[*SHORT, "model.width = 0.125"], start="starter")
