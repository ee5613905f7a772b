"""The file that MLflow registers: equal to the network at any size, alone, without pickle."""

import io
import math
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlflow.pytorch
import pytest
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from hqinet.networks.hqinet import build
from hqinet.networks.recipe import HQINetRecipe, ModelRecipe, REDCNNRecipe
from hqinet.restoration.export import (
    USUAL_DOSE,
    ArchiveError,
    archived_weights,
    deployable,
    example_windows,
    load_built,
    load_exported,
)
from hqinet.restoration.restore import HUModel, Restorer
from storage.models.registry import SIGNATURE

NETWORKS: dict[str, ModelRecipe] = {
    "paper": HQINetRecipe(width=0.125),
    "noise_residual": HQINetRecipe(width=0.125, norm="none", output="noise_residual", init="he"),
    "clean": HQINetRecipe(width=0.125, norm="none", output="residual", estimates="clean"),
    "redcnn": REDCNNRecipe(network="redcnn", channels=4),
}
SIZES = [(1, 48, 48), (3, 57, 101), (2, 64, 50)]


def trained(name: str) -> nn.Module:
    """The network with weights that are not those it starts from."""
    network = build(NETWORKS[name], 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    return network


def hu(n: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return 60 + 300 * torch.randn(n, 3, rows, columns, generator=generator)


@dataclass
class Exported:
    network: nn.Module
    recipe: ModelRecipe
    path: Path

    @property
    def eager(self) -> Restorer:
        return Restorer(self.network, self.recipe.removed(USUAL_DOSE)).eval()

    @cached_property
    def loaded(self) -> HUModel:
        """Loaded once, which takes seconds: nothing may change it."""
        return load_exported(self.path)


def exported(name: str, folder: Path) -> Exported:
    """As `storage.models.registry` has MLflow write it."""
    network = trained(name).train()
    mlflow.pytorch.save_model(
        deployable(network, NETWORKS[name]),
        folder / "model",
        serialization_format="pt2",
        input_example=example_windows().numpy(),
        signature=SIGNATURE,
        pip_requirements=["torch"],
    )
    assert network.training, "exporting must leave the network as it was"
    (path,) = (folder / "model").rglob("model.pt2")
    return Exported(network, NETWORKS[name], path)


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(request.param, tmp_path_factory.mktemp("export"))


def test_equal_to_the_network_at_any_batch_height_and_width(model: Exported) -> None:
    eager = model.eager
    for size in SIZES:
        windows = hu(*size)
        with torch.no_grad():
            torch.testing.assert_close(model.loaded(windows), eager(windows), rtol=1e-4, atol=1e-2)


def test_what_is_built_with_the_weights_of_the_file_gives_the_pixels_of_its_program(
    model: Exported,
) -> None:
    built = load_built(model.path, model.recipe, dose=None)
    for size in SIZES:
        windows = hu(*size)
        with torch.inference_mode():
            assert torch.equal(built(windows), model.loaded(windows))


def test_weights_of_another_network_build_none(model: Exported) -> None:
    other = REDCNNRecipe(network="redcnn", channels=5)
    assert load_built(model.path, other, dose=None) is None


def test_a_file_without_float32_weights_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ArchiveError, match="holds no float32 weights"):
        archived_weights(tmp_path / "text")
    program = torch.export.export(nn.Linear(2, 2).double(), (torch.zeros(1, 2).double(),))
    torch.export.save(program, tmp_path / "double.pt2")
    with pytest.raises(ArchiveError, match="pickled, or not float32"):
        archived_weights(tmp_path / "double.pt2")


def test_the_dose_decides_how_much_is_taken_off(model: Exported) -> None:
    windows = hu(2, 50, 70)
    middle = windows[:, 1:2]
    restored = {
        dose: load_built(model.path, model.recipe, dose=dose)(windows).detach()
        for dose in (None, 0.1, 0.6)
    }
    if model.recipe.estimates == "full":
        assert torch.equal(restored[0.1], restored[None])
        return
    clean = Restorer(model.network)(windows).detach()
    for dose, image in restored.items():
        share = 1 - (dose or USUAL_DOSE)
        expected = middle + share * (clean - middle)
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-2)


def test_deployable_has_no_batch_norm_left_and_equals_the_network() -> None:
    network = trained("paper")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    quick = deployable(network, NETWORKS["paper"])
    assert network.training
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) > 50
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quick.modules())
    windows = hu(2, 57, 70)
    with torch.no_grad():
        expected = Restorer(network).eval()(windows)
        torch.testing.assert_close(quick(windows), expected, rtol=1e-4, atol=1e-2)


class WithoutValues(torch.fx.Interpreter):
    """Runs a program on the device `meta`, whose tensors have no values to be read as numbers."""

    def __init__(self, program: torch.fx.GraphModule, numbers: list[int]) -> None:
        super().__init__(program)
        self.numbers = iter(numbers)

    def call_function(self, target, args, kwargs):
        if target is torch.ops.aten.item.default:
            return next(self.numbers)
        return super().call_function(target, args, kwargs)


def test_no_device_is_baked_in(model: Exported) -> None:
    moved = move_to_device_pass(torch.export.load(model.path), "meta")
    named = [node.kwargs["device"] for node in moved.graph.nodes if "device" in node.kwargs]
    assert {torch.device(device).type for device in named} <= {"meta"}
    run = WithoutValues(moved.module(), [math.ceil(57 / 16), math.ceil(101 / 16)]).run
    assert run(torch.empty(3, 3, 57, 101, device="meta")).shape == (3, 1, 57, 101)


def test_nothing_in_the_file_needs_pickles_code(model: Exported) -> None:
    with zipfile.ZipFile(model.path) as archive:
        pickled = [name for name in archive.namelist() if name.endswith((".pt", ".pkl"))]
        for name in pickled:
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)


@pytest.mark.parametrize("model", ["noise_residual"], indirect=True)
def test_runs_without_this_project(model: Exported, tmp_path: Path) -> None:
    windows = hu(2, 50, 70)
    torch.save(windows, tmp_path / "windows.pt")
    script = (
        "import sys, torch\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "torch.save(model(torch.load('windows.pt')).detach(), 'restored.pt')\n"
        "assert not any(name.startswith('hqinet') for name in sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(model.path)], cwd=tmp_path, check=True, timeout=120
    )
    with torch.no_grad():
        expected = model.eager(windows)
    torch.testing.assert_close(torch.load(tmp_path / "restored.pt"), expected, rtol=1e-4, atol=1e-2)
