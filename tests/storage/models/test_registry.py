import numpy as np
import pytest
import torch
from torch import nn

from storage.errors import RegistryError
from storage.models.registry import DatasetInputs, Registry
from storage.models.versions import Owner

INPUTS = DatasetInputs("data/ct", 3, "0" * 64)


class Middle(nn.Module):
    """Returns the middle slice, a little brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(2.0))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return hu[:, 1:2] + self.offset


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    folder = tmp_path_factory.mktemp("mlflow")
    return Registry(f"sqlite:///{folder}/deep/mlflow.db", (folder / "artifacts").as_uri())


@pytest.fixture(scope="module")
def run(registry) -> str:
    return registry.start("trial", {"width": 0.25}, INPUTS)


@pytest.fixture(scope="module")
def version(registry, run) -> int:
    example = np.zeros((2, 3, 16, 24), np.float32)
    return registry.register(run, Middle().eval(), example, {"recipe": "demo"})


def test_a_run_names_its_dataset_commit_and_digest(registry, run):
    found = registry._client.get_run(run)
    (given,) = found.inputs.dataset_inputs
    assert given.dataset.name == "commit-3"
    assert given.dataset.digest == INPUTS.digest[:36]
    assert '"delta_table_version": 3' in given.dataset.source
    assert found.data.params == {"width": "0.25"}
    assert found.data.tags["digest"] == INPUTS.digest


def test_a_version_loads_without_pickle_or_project(registry, version, tmp_path):
    file = registry.model_file(registry.version(version), tmp_path)
    hu = torch.randn(5, 3, 20, 30)
    assert torch.equal(torch.export.load(file).module()(hu), hu[:, 1:2] + 2)
    assert not list(file.parent.rglob("*pickle*"))


def test_versions_are_found_by_number_alias_and_newest(registry, version):
    registry.point("champion", version)
    for which in (version, str(version), "champion", "latest"):
        assert registry.version(which).version == version
    assert registry.version("champion").tags["recipe"] == "demo"


def test_a_version_is_born_with_its_lineage_and_silently(tmp_path, capfd, monkeypatch):
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "artifacts").as_uri())
    monkeypatch.setattr(registry, "tag_version", None)
    example = np.zeros((2, 3, 16, 24), np.float32)
    capfd.readouterr()
    for number in (1, 2):
        run = registry.start("trial", {}, INPUTS)
        assert registry.register(run, Middle().eval(), example, {"recipe": "fast"}) == number
        assert registry.version(number).tags["recipe"] == "fast"
        assert registry.version(number).logged
    assert capfd.readouterr() == ("", "")


def test_a_run_has_one_version(registry, run, version):
    assert registry.register(run, None, None, {"validation_patients": "[]"}) == version
    assert (
        registry.version(version).tags.items()
        >= {
            "recipe": "demo",
            "validation_patients": "[]",
        }.items()
    )


def test_what_is_not_there_is_named(registry, version):
    with pytest.raises(RegistryError, match="99"):
        registry.version(99)
    with pytest.raises(RegistryError, match="no run"):
        registry.reopen("nowhere")


def test_an_empty_registry_says_what_to_do(tmp_path):
    empty = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path.as_uri())
    assert empty.versions() == []
    with pytest.raises(RegistryError, match="hqinet train"):
        empty.version("latest")


def test_artifacts_come_back(registry, run, tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")
    registry.log_file(run, tmp_path / "a.csv", "evaluation/commit-3-test")
    path = registry.fetch(run, "evaluation/commit-3-test/a.csv", tmp_path / "back")
    assert path.read_text() == "x\n1\n"
    assert registry.fetch(run, "evaluation/commit-9-test/a.csv", tmp_path / "back") is None


def test_a_server_that_is_away_is_said_at_once():
    with pytest.raises(RegistryError, match=r"no MLflow server answers at http://127\.0\.0\.1:9"):
        Registry("http://127.0.0.1:9", None)


def test_a_server_that_goes_away_is_not_taken_for_a_missing_run(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("storage.models.registry.answers", lambda _: True)
    away = Registry("http://127.0.0.1:10", None)
    with pytest.raises(RegistryError, match="MLflow does not"):
        away.reopen("0" * 32)


def owner(identity: str, *digests: str) -> Owner:
    return Owner(identity, lambda tags: tags.get("digest") in digests)


def test_a_registered_model_belongs_to_one_dataset(tmp_path):
    uri, artifacts = f"sqlite:///{tmp_path}/mlflow.db", tmp_path.as_uri()
    example = np.zeros((2, 3, 16, 24), np.float32)
    ours = Registry(uri, artifacts, "hqinet", owner("a"))
    run = ours.start("trial", {}, INPUTS)
    version = ours.register(run, Middle().eval(), example, {})
    theirs = Registry(uri, artifacts, "hqinet", owner("b"))
    with pytest.raises(RegistryError, match=r"belongs to another dataset \(a\).*HQINET_MODEL"):
        theirs.versions()
    with pytest.raises(RegistryError, match="belongs to another dataset"):
        theirs.start("trial", {}, INPUTS)
    with pytest.raises(RegistryError, match="belongs to another dataset"):
        theirs.register(run, Middle().eval(), example, {})
    other = Registry(uri, artifacts, "hqinet-demo", owner("b"))
    assert other.versions() == []
    assert other.register(other.start("trial", {}, INPUTS), Middle().eval(), example, {}) == 1
    assert [row.version for row in ours.versions()] == [version]


def test_a_registered_model_of_before_is_known_by_its_newest_version(tmp_path):
    uri, artifacts = f"sqlite:///{tmp_path}/mlflow.db", tmp_path.as_uri()
    example = np.zeros((2, 3, 16, 24), np.float32)
    before = Registry(uri, artifacts)
    before.register(before.start("trial", {}, INPUTS), Middle().eval(), example, {"digest": "d"})
    assert len(Registry(uri, artifacts, "hqinet", owner("a", "d")).versions()) == 1
    with pytest.raises(RegistryError, match="belongs to another dataset, not to this one"):
        Registry(uri, artifacts, "hqinet", owner("b", "e")).versions()
