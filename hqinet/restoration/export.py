"""The trained network as one file that runs without this project and without pickle."""

import copy
import json
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.export.passes import move_to_device_pass
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hqinet.errors import HqinetError
from hqinet.networks.blocks import ConvNorm
from hqinet.networks.hqinet import build
from hqinet.networks.recipe import ModelRecipe
from hqinet.restoration.restore import HUModel, Restorer

Module = TypeVar("Module", bound=nn.Module)
USUAL_DOSE = 0.25
"""Dose of the low-dose series of the published cohorts, for whoever does not say."""

_FLOAT32 = 7
"""In the configuration of an archive's weights (`torch._export.serde.schema.ScalarType`)."""


class ArchiveError(HqinetError):
    """A file that holds no program as this project exports it; the message is one line."""


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
    return _folded(copy.deepcopy(network).cpu(), recipe)


def _folded(network: nn.Module, recipe: ModelRecipe) -> Restorer:
    network.eval()
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
    return _ready(program.module(), dose)


def load_built(
    path: Path, recipe: ModelRecipe, device: torch.device | str = "cpu", *, dose: float | None
) -> Restorer | None:
    """As `load_exported`, of a network that this version of the project builds: the same pixels.

    The weights are the file's, the graph is not read: to parse its symbolic shapes takes seconds.
    None where the weights are of another network than the recipe's; whether the code that it was
    exported by is the present one, the caller has to know.
    """
    weights = archived_weights(path)
    model = _folded(build(recipe, 0), recipe)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != expected:
        return None
    model.load_state_dict(weights)
    return _ready(model.requires_grad_(requires_grad=False).to(device), dose)


def archived_weights(path: Path) -> dict[str, Tensor]:
    """Return the state of the program in a pt2 archive; nothing of its graph or pickles is read.

    Raises ArchiveError for a file that is no such archive, or whose weights are not float32.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (config,) = (n for n in archive.namelist() if n.endswith("_weights_config.json"))
            folder = config.rpartition("/")[0]
            return {
                name: _weight(archive.read(f"{folder}/{entry['path_name']}"), entry)
                for name, entry in json.loads(archive.read(config))["config"].items()
            }
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise ArchiveError(
            f"{path}: holds no float32 weights as torch {torch.__version__} archives them "
            f"({type(error).__name__}: {error}): take the file as `torch.export.save` wrote it"
        ) from error


def _weight(content: bytes, entry: dict[str, Any]) -> Tensor:
    about = entry["tensor_meta"]
    if entry["use_pickle"] or about["dtype"] != _FLOAT32:
        raise ValueError(f"{entry['path_name']} is pickled, or not float32")
    sizes, strides = ([n["as_int"] for n in about[key]] for key in ("sizes", "strides"))
    values = torch.frombuffer(bytearray(content), dtype=torch.float32)
    return values.as_strided(sizes, strides, about["storage_offset"]["as_int"]).clone()


def _ready(module: Module, dose: float | None) -> Module:
    """Set the dose, and bring the weights into the order of memory that computes fastest."""
    removed = getattr(module, "removed", None)
    if dose is not None and removed is not None:
        removed.fill_(1 - dose)
    return module.to(memory_format=torch.channels_last)
