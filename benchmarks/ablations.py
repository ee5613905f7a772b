"""What each choice of the starter's recipe is worth: one change at a time, three seeds.

`python benchmarks/ablations.py DATA FOLDER [--only NAME ...]`. Networks learn from the collection
of `partners.py`, and FOLDER is the same: the recipe unchanged is its arm `collection`. Gains are
those of patients that none of them saw, with their neighbours and each slice alone. Choices are
made on X901 and X904; the others are reported. What is finished is not trained again.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from partners import ALONE, SEEDS, Silent, gain, partner
from real_pairs import read_pair
from starter import REPORTED

from hqinet.restoration.restore import read_windows
from hqinet.training.loop import train
from hqinet.training.recipe import load_recipe

CHOSEN_ON = ("X901", "X904")
CHANGES = {
    "unchanged": [],
    "neighbours always there": ["sampling.drop_neighbours = 0.0"],
    "patches never zoomed": ["sampling.zoom = [1.0, 1.0]"],
    "kernels as they are": ["sampling.kernels = [1.0, 1.0]"],
    "noise of one patient alone": ["sampling.mix_noise = false"],
    "estimates full dose": ['model.estimates = "full"'],
    "absolute errors": ["loss.mse = 0.0", "loss.l1 = 1.0"],
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("data", type=Path)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--slices", type=int, default=24, help="of each training patient")
    arguments.add_argument("--judged", type=int, default=6, help="slices of each held-out patient")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    data, folder = options.data, options.folder
    learnt = [partner(read_pair(data, patient, options.slices), folder) for patient in ALONE]
    groups = [
        [read_pair(data, patient, options.judged) for patient in patients]
        for patients in (CHOSEN_ON, REPORTED)
    ]
    print("gain, dB (SD over seeds): chosen on, reported; each slice alone: chosen on, reported")
    for name in options.only:
        rows = []
        for seed in SEEDS:
            recipe = load_recipe(
                "starter",
                f"seed = {seed}",
                "schedule.epochs = 5",
                f"schedule.steps_per_epoch = {options.steps // 5}",
                *CHANGES[name],
            )
            arm = "collection" if name == "unchanged" else name.replace(" ", "-")
            place = folder / f"starter-{options.steps}-{arm}-{seed}"
            trained = train(recipe, learnt, [], folder=place, device="cpu", observer=Silent())
            rows.append(
                [
                    mean(gain(trained.model, recipe, pair, windows) for pair in pairs)
                    for windows in (read_windows, alone)
                    for pairs in groups
                ]
            )
        cells = [f"{mean(of):5.2f} ({stdev(of):.2f})" for of in zip(*rows, strict=True)]
        print(name.ljust(28), *cells, flush=True)


def alone(low: NDArray[np.int16], z: int, _stop: int) -> NDArray[np.int16]:
    """The window of a slice without neighbours."""
    return np.stack([low[z]] * 3)[None]


if __name__ == "__main__":
    main()
