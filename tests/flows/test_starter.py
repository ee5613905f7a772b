"""The model that ships, as a challenger, and as where a training begins."""

import json

import pytest
import torch

from flows import stores
from flows.compute.beginnings import seen_by, weights_of
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.starter import add_starter
from flows.train import train
from hqinet.restoration.export import load_exported
from hqinet.restoration.starter import starter_file, starter_lineage
from hqinet.training.interrupts import TrainingError

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
    shipped = load_exported(starter_file())
    with torch.inference_mode():
        torch.testing.assert_close(registered(windows), shipped(windows), atol=0.01, rtol=0)


def test_it_is_judged_like_any_other_challenger(added):
    evaluated = evaluate(str(added))
    assert evaluated.model == added
    assert {row["patient"] for row in evaluated.patients} == {
        row.patient for row in stores.dataset().snapshot().patients("test")
    }


def test_a_training_that_begins_with_it_names_its_patients_too(cohort, tmp_path):
    trained = train(
        "starter", overrides=[*SHORT, "optimiser.learning_rate = 1e-9"], start="starter"
    )
    version = stores.registry().version(trained.model)
    seen = set(json.loads(version.tags["training_patients"]))
    ours = {row.patient for row in stores.dataset().snapshot().patients("train")}
    assert seen == ours | set(starter_lineage().training_patients)
    assert version.tags["started_from"] == "starter"
    windows = 40 + 30 * torch.randn(1, 3, 64, 64)
    model = load_exported(stores.registry().model_file(version, tmp_path))
    with torch.inference_mode():
        shipped = load_exported(starter_file())(windows)
        torch.testing.assert_close(model(windows), shipped, atol=0.1, rtol=0)
    assert seen_by(str(trained.model)).training_patients == sorted(seen)
    mine, shipped = weights_of(str(trained.model)), weights_of("starter")
    assert mine.keys() == shipped.keys()
    assert mine["stem.conv.weight"] == pytest.approx(shipped["stem.conv.weight"], abs=1e-4)


def test_another_network_cannot_begin_with_its_weights(cohort):
    with pytest.raises(TrainingError, match=r"not of the network of recipe 'starter'.*model\.\*"):
        train("starter", overrides=[*SHORT, "model.width = 0.125"], start="starter")
