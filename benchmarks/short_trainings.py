"""Networks that are trained for minutes, to be compared with one another.

Runs lie in a folder: started again, what is finished is not trained again.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from real_pairs import RealPair, read_pair
from torch import nn

from hqinet.physics.dose_simulation import simulate_dose
from hqinet.quality.reference import find_body
from hqinet.restoration.restore import Restorer, read_windows
from hqinet.samples.pairs import VolumePair
from hqinet.training.loop import train
from hqinet.training.recipe import Recipe, load_recipe

COLLECTION = tuple(f"F{number}" for number in range(901, 913))
"""Patients of full dose alone."""
SEEDS = (0, 1, 2)
Windows = Callable[[NDArray[np.int16], int, int], NDArray[np.int16]]


class Silent:
    """Observes nothing."""

    def on_step(self, *_: object) -> None: ...
    def on_epoch(self, *_: object) -> None: ...
    def on_images(self, *_: object) -> None: ...


def arguments(description: str, steps: int) -> argparse.ArgumentParser:
    """What all benchmarks of short trainings are told."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--slices", type=int, default=24, help="of each training patient")
    parser.add_argument("--judged", type=int, default=6, help="slices of each held-out patient")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def trained(
    name: str,
    steps: int,
    seed: int,
    learnt: list[VolumePair],
    folder: Path,
    changes: Sequence[str] = (),
) -> tuple[nn.Module, Recipe]:
    """Train a recipe for so many steps with nobody to validate on; the last step is kept."""
    overrides = (f"seed = {seed}", "schedule.epochs = 5")
    overrides += (f"schedule.steps_per_epoch = {steps // 5}", *changes)
    recipe = load_recipe(name, *overrides)
    done = train(recipe, learnt, [], folder=folder, device="cpu", observer=Silent())
    return done.model, recipe


def read_collection(data: Path, folder: Path, slices: int) -> list[VolumePair]:
    """The collection with simulated partners, which lie in FOLDER once they are made."""
    return [partner(read_pair(data, patient, slices), folder) for patient in COLLECTION]


def partner(pair: RealPair, folder: Path) -> VolumePair:
    """A pair whose low dose is simulated from its full dose alone, once."""
    file = folder / f"{pair.patient}-{len(pair.full.hu)}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, simulate_dose(pair.full, dose=pair.dose, seed=0).low[0])
    return VolumePair(pair.patient, "", np.load(file), pair.full.hu, pair.dose)


def gain(
    network: nn.Module, recipe: Recipe, pair: RealPair, windows: Windows = read_windows
) -> float:
    """Gain in PSNR inside the body, dB, over all slices, restored with their neighbours."""
    restorer = Restorer(network, recipe.model.removed(pair.dose)).eval()
    low, full = (torch.from_numpy(hu).float() for hu in (pair.low, pair.full.hu))
    body, before, after = find_body(full), 0.0, 0.0
    with torch.inference_mode():
        for z, inside in enumerate(body):
            window = torch.from_numpy(windows(pair.low, z, z + 1)).float()
            restored = restorer(window)[0, 0]
            before += float((low[z] - full[z])[inside].square().sum())
            after += float((restored - full[z])[inside].square().sum())
    return 10 * math.log10(before / after)
