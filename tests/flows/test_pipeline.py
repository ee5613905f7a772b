"""The whole pipeline on a tiny cohort, once; then what it left is looked at from all sides."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from flows import stores
from flows.compute import models
from flows.evaluate import EvaluationError, evaluate
from flows.pipeline import PipelineResult, pipeline
from flows.promote import promote
from flows.settings import TrainSettings
from flows.train import open_run, train
from hqinet.restoration.export import load_built
from hqinet.training.interrupts import TrainingError
from hqinet.training.recipe import RecipeError, load_recipe
from storage.dataset.versions import Dataset
from storage.errors import RegistryError
from storage.models.registry import DatasetInputs


@pytest.fixture(scope="module")
def result(home, tiny_cohort, tiny_recipe) -> PipelineResult:
    return pipeline(str(tiny_cohort), "tiny", tiny_recipe)


def test_ingest_accepts_pairs_and_refuses_with_a_reason(result):
    assert [row.patient for row in result.ingest.accepted] == [f"L10{n}" for n in range(5)]
    (refused,) = result.ingest.refused
    assert (refused.patient, refused.code) == ("L109", "no_low_dose")
    assert {row.split for row in result.ingest.accepted} == {"train", "validation", "test"}


def test_the_version_names_its_lineage(result, home):
    version = stores.registry().version(result.train.model)
    snapshot = Dataset(home / "dataset").snapshot(result.ingest.commit)
    assert version.run == result.train.run
    assert version.tags["commit"] == str(result.ingest.commit)
    assert version.tags["digest"] == snapshot.digest
    for tag, split in (("training_patients", "train"), ("validation_patients", "validation")):
        named = [row.patient for row in snapshot.patients(split)]
        assert named
        assert json.loads(version.tags[tag]) == named
    assert version.tags["recipe"] == "tiny"


def test_the_registered_model_restores_without_the_project(result, tmp_path):
    file = stores.registry().model_file(stores.registry().version("latest"), tmp_path)
    hu = torch.randn(1, 3, 40, 50) * 30
    assert torch.export.load(file).module()(hu).shape == (1, 1, 40, 50)


def test_the_network_of_a_version_of_this_code_is_built_and_of_another_is_not(
    result, tiny_recipe, monkeypatch
):
    monkeypatch.setattr(models, "is_exact", lambda _: True)
    asked = models.Models(str(result.train.model))
    used = asked.resolve()
    assert used.network == load_recipe(tiny_recipe).model
    assert load_built(used.file, used.network, dose=None) is not None
    monkeypatch.setattr(models, "code_version", lambda: "0.0.1")
    assert models.Models(str(result.train.model)).resolve().network is None


def test_the_run_holds_losses_recipe_curve_and_images(result):
    client = stores.registry()._client
    run = client.get_run(result.train.run)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.width"] == "0.03"
    assert len(client.get_metric_history(result.train.run, "loss")) == 6
    names = {entry.path for entry in client.list_artifacts(result.train.run)}
    assert {"run.json", "curves.png", "validation", "evaluation"} <= names


def test_the_report_has_every_patient_of_the_split(result, home):
    folder = Path(result.evaluate.report)
    snapshot = Dataset(home / "dataset").snapshot()
    patients = [row.patient for row in snapshot.patients("test")]
    assert [row["patient"] for row in result.evaluate.patients] == patients
    slices = pd.read_parquet(folder / "per_slice.parquet")
    assert len(slices) == 2 * 4 * len(patients)
    table = pd.read_csv(folder / "per_patient.csv")
    means = slices.groupby(["patient", "image"])["rmse"].mean()
    for row in table.itertuples():
        assert row.rmse == pytest.approx(means[row.patient, row.image])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["provenance"]["dataset digest"] == snapshot.digest
    assert "report.html" in {file.name for file in folder.iterdir()}


def test_the_reports_means_stand_with_the_run_and_with_the_version(result):
    client = stores.registry()._client
    version = stores.registry().version(result.train.model)
    expected = pd.DataFrame([row["restored"] for row in result.evaluate.patients])["psnr"].mean()
    run = client.get_run(version.run).data.metrics
    assert run["test_psnr"] == pytest.approx(expected)
    shown = {metric.key: metric.value for metric in client.get_logged_model(version.logged).metrics}
    assert shown["test_psnr"] == pytest.approx(expected)


def test_a_first_model_is_judged_without_a_champion(result):
    rules = {rule["rule"] for rule in result.promote.rules}
    assert "lineage complete" in rules
    assert "gain over the champion" not in rules
    version = stores.registry().version(result.train.model)
    assert version.tags["verdict"] == result.promote.verdict
    assert ("champion" in version.aliases) == (result.promote.verdict == "promoted")


def test_a_model_is_never_judged_on_its_training_patients(result):
    with pytest.raises(EvaluationError, match="was trained or chosen on L10"):
        evaluate(str(result.train.model), None, "train")


def test_a_finished_run_resumed_is_registered_once(result):
    again = train(resume=result.train.run)
    assert again.model == result.train.model


def test_mistakes_are_named(result):
    with pytest.raises(RecipeError, match="demo"):
        train("dmeo")
    with pytest.raises(RecipeError, match="width"):
        train("demo", overrides=["model.wdth = 0.5"])
    elsewhere = stores.registry().start("elsewhere", {}, DatasetInputs("x", 1, "0"))
    with pytest.raises(TrainingError, match="left no folder"):
        train(resume=elsewhere)


def test_another_dataset_on_the_same_server_trains_and_judges_nothing_of_ours(
    result, home, tiny_cohort, tiny_recipe, tmp_path, monkeypatch
):
    ours = stores.registry().version(result.train.model)
    monkeypatch.setenv("HQINET_HOME", str(tmp_path))
    monkeypatch.setenv("HQINET_TRACKING_URI", f"sqlite:///{home}/mlflow/mlflow.db")
    with pytest.raises(RegistryError, match=r"belongs to another dataset.*HQINET_MODEL"):
        pipeline(str(tiny_cohort), "tiny", tiny_recipe)
    with pytest.raises(RegistryError, match="belongs to another dataset"):
        evaluate(str(result.train.model))
    with pytest.raises(RegistryError, match="belongs to another dataset"):
        promote(result.train.model)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("HQINET_MODEL", "hqinet-elsewhere")
    run = open_run(tiny_recipe, [], None, None, TrainSettings())
    assert stores.registry().versions() == []
    artifacts = stores.registry()._client.get_run(run.run).info.artifact_uri
    assert artifacts.startswith((home / "mlflow" / "artifacts").as_uri())
    monkeypatch.undo()
    monkeypatch.setenv("HQINET_HOME", str(home))
    assert stores.registry().version(result.train.model) == ours


def test_nothing_is_written_outside_the_home(result, home):
    inside = {entry.name for entry in home.iterdir()}
    assert {"dataset", "mlflow", "runs", "reports", "scratch"} <= inside
    left = [path for path in (home / "scratch").rglob("*") if path.is_file()]
    assert [path for path in left if path.suffix != ".lock"] == []  # Dask's own locks
