"""The trained network as one file that runs without this project and without pickle."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.export.passes import move_to_device_pass
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hqinet.networks.blocks import ConvNorm
from hqinet.networks.recipe import ModelRecipe
from hqinet.restoration.restore import HUModel, Restorer

USUAL_DOSE = 0.25
"""Dose of the low-dose series of the published cohorts, for whoever does not say."""


def example_windows() -> Tensor:
    """Return an input to trace the exported program with: (2, 3, 48, 72) float32 HU."""
    generator = torch.Generator().manual_seed(0)
    return 40 + 20 * torch.randn(2, 3, 48, 72, generator=generator)


def deployable(network: nn.Module, recipe: ModelRecipe) -> Restorer:
    """Return a copy of the network that is quickest to run, from HU to HU, on the CPU.

    In evaluation mode, with each batch norm folded into the convolution before it; equal to
    `Restorer(network)` in evaluation mode up to rounding. A network that estimates the slice
    without noise leaves the noise of full dose, where the input is of USUAL_DOSE.
    """
    network = copy.deepcopy(network).cpu().eval()
    for module in network.modules():
        if isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return Restorer(network, recipe.removed(USUAL_DOSE)).eval()


def save_exported(model: Restorer, path: Path) -> None:
    """Write a `deployable` network as one file for any batch, height and width.

    As MLflow writes it for the registry; for who has none.
    """
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(model, (example_windows(),), dynamic_shapes=dynamic)
    torch.export.save(program, path)


def load_exported(
    path: Path, device: torch.device | str = "cpu", *, dose: float | None = None
) -> HUModel:
    """Return the program saved at `path` as a function on `device`, its weights channels last.

    They become so here and not before the export, which cannot follow their strides. `dose`: of the
    slices to be restored, as a fraction of the full dose; None: USUAL_DOSE. A program that
    estimates the full dose itself takes no heed of it.
    """
    program = move_to_device_pass(torch.export.load(path), str(device))
    module = program.module()
    removed = getattr(module, "removed", None)
    if dose is not None and removed is not None:
        removed.fill_(1 - dose)
    return module.to(memory_format=torch.channels_last)
