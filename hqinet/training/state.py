"""What a training run is at one moment: all that a checkpoint holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hqinet.networks.hqinet import build
from hqinet.samples.pairs import VolumePair
from hqinet.training.checkpoint import CheckpointError, Content, cpu_copy, load_checkpoint
from hqinet.training.interrupts import LossWatch, TrainingError
from hqinet.training.recipe import OptimiserRecipe, Recipe

Weights = Mapping[str, Tensor]
"""A network's state dict."""


@dataclass
class Best:
    """The best epoch so far; without validation patients, the last one."""

    epoch: int
    psnr: float | None
    weights: dict[str, Tensor]


@dataclass
class State:
    """The moving parts of a run."""

    recipe: Recipe
    network: nn.Module
    averaged: AveragedModel | None
    optimiser: torch.optim.Optimizer
    data: list[list[Any]]
    """Patients and volume shapes trained and validated on."""
    micro_batch: int = 0
    bf16: bool = False
    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs finished."""
    seconds: float = 0.0
    """Wall time so far, all attempts together."""
    validation_seconds: float = 0.0
    finished: bool = False
    epoch_losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    best: Best | None = None
    watch: LossWatch = field(default_factory=LossWatch)

    @property
    def judged(self) -> nn.Module:
        """The network that validation judges and the run returns."""
        return self.network if self.averaged is None else self.averaged.module

    def content(self) -> Content:
        """Return what to save."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.data,
            "network": self.network.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": None if self.best is None else vars(self.best),
            "watch": vars(self.watch),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def restore(self, content: Content) -> None:
        """Take over what was saved."""
        self.network.load_state_dict(content["network"])
        if self.averaged is not None:
            self.averaged.load_state_dict(content["averaged"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.best = None if content["best"] is None else Best(**content["best"])
        self.watch = LossWatch(**content["watch"])
        for name in _PLAIN:
            setattr(self, name, content[name])

    def best_content(self) -> Content:
        """Return the best weights and the recipe, as `checkpoint.load_network` reads them."""
        if self.best is None:
            raise TrainingError("no epoch has finished, so there are no best weights")
        return {"recipe": self.recipe.model_dump(mode="json"), **vars(self.best)}

    def remember_best(self, psnr: float | None) -> bool:
        """Keep the weights where this epoch is the best, or where nothing can judge it."""
        if self.best is not None and psnr is not None and psnr <= (self.best.psnr or 0.0):
            return False
        self.best = Best(self.epoch, psnr, cpu_copy(self.judged.state_dict()))
        return True


_PLAIN = (
    "micro_batch",
    "bf16",
    "step",
    "epoch",
    "seconds",
    "validation_seconds",
    "finished",
    "epoch_losses",
    "history",
)


def fresh_state(
    recipe: Recipe,
    training: Sequence[VolumePair],
    validation: Sequence[VolumePair],
    device: torch.device,
    start: Weights | None = None,
) -> State:
    """Return a run at step 0 on the device, with weights to begin with or those of its seed.

    Raises TrainingError for weights of another network.
    """
    network = build(recipe.model, recipe.seed)
    if start is not None:
        try:
            network.load_state_dict(start)
        except RuntimeError as error:
            raise TrainingError(
                f"the weights to start from are not of the network of recipe {recipe.name!r}: "
                "leave model.* as the recipe has it that they were trained by"
            ) from error
    network = network.to(device, memory_format=torch.channels_last).train()
    decay = recipe.optimiser.ema
    return State(
        recipe=recipe,
        network=network,
        averaged=None if decay is None else averaged_model(network, decay),
        optimiser=_optimiser(network, recipe.optimiser),
        data=[
            [role, pair.patient, *map(int, pair.low.shape)]
            for role, pairs in (("training", training), ("validation", validation))
            for pair in pairs
        ],
    )


def resume(state: State, path: Path) -> None:
    """Continue from a checkpoint of the same recipe and data; TrainingError for another's."""
    try:
        content = load_checkpoint(path)
    except CheckpointError as error:
        raise TrainingError(f"{error}; delete it to train from the start") from error
    then, now = _complete(content["recipe"]), state.recipe.model_dump(mode="json")
    if then != now:
        changed = ", ".join(_differences(then, now))
        raise TrainingError(
            f"{path} was made by another recipe ({changed}); train in a new folder, or resume "
            "with the recipe it was started with"
        )
    if content["data"] != state.data:
        other = [item for item in state.data if item not in content["data"]]
        other += [item for item in content["data"] if item not in state.data]
        raise TrainingError(f"{path} was trained on other volumes: {other}; train in a new folder")
    state.restore(content)


def _complete(recipe: dict[str, Any]) -> dict[str, Any]:
    """Give keys that came later than a checkpoint the value that their absence stands for."""
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json")
    except ValidationError:
        return recipe


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(one.keys() | other.keys()):
        before, now = one.get(key), other.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key}: {before!r} -> {now!r}")
    return found


def averaged_model(network: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of the weights, its decay rising to `decay`.

    At update n the decay is at most (1 + n) / (10 + n), so that a short run's average is not the
    untrained network (Abadi et al. 2016, `ExponentialMovingAverage`). Counters are copied.
    """

    @torch.no_grad()
    def average(mean: list[Tensor], now: list[Tensor], updates: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        for a, b in zip(mean, now, strict=True):
            if a.is_floating_point():
                a.lerp_(b, weight)
            else:
                a.copy_(b)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def _optimiser(network: nn.Module, recipe: OptimiserRecipe) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if recipe.weight_decay else torch.optim.Adam
    return kind(
        network.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
