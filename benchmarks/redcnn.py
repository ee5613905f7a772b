"""RED-CNN beside HQINet: the same patients and samples, three times the time, its rate tuned.

`python benchmarks/redcnn.py DATA FOLDER`. It is trained on the collection of `partners.py`, whose
networks it is to be compared with; FOLDER is the same. Its learning rate is chosen on X901 and X904
after a third of the steps. Started again, what is finished is not trained again.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from partners import ALONE, HELD_OUT, SEEDS, Silent, gain, partner
from real_pairs import RealPair, read_pair

from hqinet.samples.pairs import VolumePair
from hqinet.training.loop import train
from hqinet.training.recipe import load_recipe

RATES = (1e-4, 3e-4, 1e-3)
CHOSEN_ON = ("X901", "X904")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("data", type=Path)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--steps", type=int, default=450)
    arguments.add_argument("--slices", type=int, default=24, help="of each training patient")
    arguments.add_argument("--judged", type=int, default=6, help="slices of each held-out patient")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    data, folder = options.data, options.folder
    learnt = [partner(read_pair(data, patient, options.slices), folder) for patient in ALONE]
    held_out = {patient: read_pair(data, patient, options.judged) for patient in HELD_OUT}
    chosen_on = [held_out[patient] for patient in CHOSEN_ON]

    def mean_gain(rate: float) -> float:
        gains = trained(learnt, chosen_on, folder, rate, options.steps // 3, seed=0)
        print(f"rate {rate:g}: " + " ".join(f"{value:.2f}" for value in gains), flush=True)
        return sum(gains)

    rate = max(RATES, key=mean_gain)
    of_seeds = []
    for seed in SEEDS:
        judged = list(held_out.values())
        of_seeds.append(trained(learnt, judged, folder, rate, options.steps, seed))
        print(f"seed {seed}: " + " ".join(f"{v:.2f}" for v in of_seeds[-1]), flush=True)
    for patient, values in zip(held_out, np.array(of_seeds).T, strict=True):
        print(f"{patient} {values.mean():.2f} ({values.std(ddof=1):.2f})")
    print(f"all {np.mean(of_seeds):.2f}")


def trained(
    learnt: list[VolumePair],
    judged: list[RealPair],
    folder: Path,
    rate: float,
    steps: int,
    seed: int,
) -> list[float]:
    """Train one RED-CNN, and return its gain on each patient, dB."""
    recipe = load_recipe(
        "redcnn",
        f"seed = {seed}",
        f"optimiser.learning_rate = {rate}",
        "optimiser.ema = 0.99",
        "schedule.epochs = 5",
        f"schedule.steps_per_epoch = {steps // 5}",
    )
    place = folder / f"redcnn-{rate:g}-{steps}-{seed}"
    done = train(recipe, learnt, [], folder=place, device="cpu", observer=Silent())
    return [gain(done.model, recipe, pair) for pair in judged]


if __name__ == "__main__":
    main()
