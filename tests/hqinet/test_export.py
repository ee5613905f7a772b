"""The exported program: equal to the network at any size, alone, without pickle, on any device."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from hqinet.export import export, load_exported
from hqinet.inference import Restorer
from hqinet.model import build
from hqinet.recipe import HQINetRecipe, ModelRecipe, REDCNNRecipe

NETWORKS: dict[str, ModelRecipe] = {
    "paper": HQINetRecipe(width=0.125),
    "noise_residual": HQINetRecipe(width=0.125, norm="none", output="noise_residual", init="he"),
    "resnet_strides": HQINetRecipe(width=0.125, norm="group", stem_strides=(2, 2)),
    "redcnn": REDCNNRecipe(network="redcnn", channels=4),
}
SIZES = [(1, 48, 48), (3, 57, 101), (2, 64, 50), (1, 200, 96)]


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


@pytest.fixture(scope="module", params=NETWORKS)
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, ExportedProgram, Path]:
    network = trained(request.param).train()
    exported = export(network)
    path = tmp_path_factory.mktemp("export") / "model.pt2"
    torch.export.save(exported, path)
    assert network.training
    return network, exported, path


def test_equal_to_the_network_at_any_batch_height_and_width(
    program: tuple[nn.Module, ExportedProgram, Path],
) -> None:
    network, _, path = program
    model, eager = load_exported(path), Restorer(network).eval()
    for size in SIZES:
        windows = hu(*size)
        with torch.no_grad():
            torch.testing.assert_close(model(windows), eager(windows), rtol=1e-4, atol=1e-2)


def test_no_device_is_baked_in(program: tuple[nn.Module, ExportedProgram, Path]) -> None:
    moved = move_to_device_pass(program[1], "meta")
    named = [node.kwargs["device"] for node in moved.graph.nodes if "device" in node.kwargs]
    assert {torch.device(device).type for device in named} <= {"meta"}
    assert moved.module()(torch.empty(3, 3, 57, 101, device="meta")).shape == (3, 1, 57, 101)


def test_nothing_in_the_file_needs_pickles_code(
    program: tuple[nn.Module, ExportedProgram, Path],
) -> None:
    with zipfile.ZipFile(program[2]) as archive:
        pickled = [name for name in archive.namelist() if name.endswith((".pt", ".pkl"))]
        for name in pickled:
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def test_runs_without_this_project(tmp_path: Path) -> None:
    network = trained("noise_residual")
    torch.export.save(export(network), tmp_path / "model.pt2")
    windows = hu(2, 50, 70)
    torch.save(windows, tmp_path / "windows.pt")
    script = (
        "import sys, torch\n"
        "model = torch.export.load('model.pt2').module()\n"
        "torch.save(model(torch.load('windows.pt')).detach(), 'restored.pt')\n"
        "assert not any(name.startswith('hqinet') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    with torch.no_grad():
        expected = Restorer(network).eval()(windows)
    torch.testing.assert_close(torch.load(tmp_path / "restored.pt"), expected, rtol=1e-4, atol=1e-2)
