"""Checkpoints: plain dicts of tensors and numbers, loaded without pickle's code execution."""

import os
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from hqinet.errors import HqinetError
from hqinet.networks.hqinet import build
from hqinet.training.recipe import Recipe

FORMAT = 2
"""1 was of networks that saw the contrast of their input, not its detail: same shapes, no use."""
Content = dict[str, Any]


class CheckpointError(HqinetError):
    """A checkpoint cannot be used; the message is one line and says which and why."""


def save_checkpoint(content: Content, path: Path) -> None:
    """Write under a temporary name, flush to the disk, rename: a kill leaves the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left half written."""
    for draft in folder.glob(".*.pt.*"):
        if not psutil.pid_exists(int(draft.suffix[1:])):
            draft.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Content:
    """Read a checkpoint onto the CPU; CheckpointError where it is not one of this format."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {found!r}; this code reads {FORMAT}: train anew"
        )
    return content


def cpu_copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict that no later training step changes."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def load_network(path: Path) -> tuple[nn.Module, Recipe]:
    """Return the network in evaluation mode and the recipe of a `best.pt`."""
    content = load_checkpoint(path)
    recipe = Recipe.model_validate(content["recipe"])
    network = build(recipe.model, recipe.seed)
    network.load_state_dict(content["weights"])
    return network.eval(), recipe
