"""Whether a simulated low dose teaches as much as a delivered one, and more patients more.

`python benchmarks/partners.py DATA FOLDER`. One network, one recipe, as many steps, three seeds;
trained on (1) two patients with the low dose that was delivered, (2) the same two with partners
simulated from their full dose alone, (3) twelve patients of full dose alone with such partners.
Gains are those of patients that none of them saw, nobody was validated on, and the last step is
kept. Runs lie in FOLDER: started again, what is finished is not trained again.
"""

import argparse
import math
from collections.abc import Callable, Iterable
from itertools import product
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

PAIRS = ("C901", "L901")
ALONE = tuple(f"F{number}" for number in range(901, 913))
HELD_OUT = ("C902", "L902", *(f"X{number}" for number in range(901, 909)))
SEEDS = (0, 1, 2)
Windows = Callable[[NDArray[np.int16], int, int], NDArray[np.int16]]


class Silent:
    """Observes nothing."""

    def on_step(self, *_: object) -> None: ...
    def on_epoch(self, *_: object) -> None: ...
    def on_images(self, *_: object) -> None: ...


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("data", type=Path)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--recipe", default="starter")
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--slices", type=int, default=24, help="of each training patient")
    arguments.add_argument("--judged", type=int, default=6, help="slices of each held-out patient")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    held_out = [read_pair(options.data, patient, options.judged) for patient in HELD_OUT]
    gains = {}
    learnt = dict(arms(options.data, options.folder, options.slices))
    for seed, (arm, pairs) in product(SEEDS, learnt.items()):
        overrides = (
            f"seed = {seed}",
            "schedule.epochs = 5",
            f"schedule.steps_per_epoch = {options.steps // 5}",
        )
        recipe = load_recipe(options.recipe, *overrides)
        folder = options.folder / f"{options.recipe}-{options.steps}-{arm}-{seed}"
        trained = train(recipe, pairs, [], folder=folder, device="cpu", observer=Silent())
        gains[arm, seed] = [gain(trained.model, recipe, pair) for pair in held_out]
        print(arm, seed, " ".join(f"{value:.2f}" for value in gains[arm, seed]), flush=True)
    report(gains)


def arms(data: Path, folder: Path, slices: int) -> Iterable[tuple[str, list[VolumePair]]]:
    """The patients that each network learns from."""
    pairs = [read_pair(data, patient, slices) for patient in PAIRS]
    yield "delivered", [VolumePair(p.patient, "", p.low, p.full.hu, p.dose) for p in pairs]
    yield "simulated", [partner(pair, folder) for pair in pairs]
    yield "collection", [partner(read_pair(data, patient, slices), folder) for patient in ALONE]


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


def report(gains: dict[tuple[str, int], list[float]]) -> None:
    """A row a patient: mean and SD over seeds of each arm, and the differences."""
    names = list(dict.fromkeys(arm for arm, _ in gains))
    table = np.array([[gains[arm, seed] for seed in SEEDS] for arm in names])
    print("gain, dB".ljust(10), *(name.rjust(14) for name in names))
    for number, patient in enumerate(HELD_OUT):
        cells = [f"{of.mean():.2f} ({of.std(ddof=1):.2f})" for of in table[:, :, number]]
        print(patient.ljust(10), *(cell.rjust(14) for cell in cells))
    means = table.mean((1, 2))
    print("all".ljust(10), *(f"{mean:.2f}".rjust(14) for mean in means))


if __name__ == "__main__":
    main()
