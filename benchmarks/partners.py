"""Whether a simulated low dose teaches as much as a delivered one, and more patients more.

`python benchmarks/partners.py DATA FOLDER`. One network, one recipe, as many steps, three seeds;
trained on (1) two patients with the low dose that was delivered, (2) the same two with partners
simulated from their full dose alone, (3) twelve patients of full dose alone with such partners.
Gains are those of patients that none of them saw, nobody was validated on, and the last step is
kept. Runs lie in FOLDER: started again, what is finished is not trained again.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from real_pairs import read_pair
from short_trainings import SEEDS, arguments, gain, partner, read_collection, trained

from hqinet.samples.pairs import VolumePair

PAIRS = ("C901", "L901")
HELD_OUT = ("C902", "L902", *(f"X{number}" for number in range(901, 909)))


def main() -> None:
    parser = arguments(__doc__, steps=500)
    parser.add_argument("--recipe", default="starter")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held_out = [read_pair(options.data, patient, options.judged) for patient in HELD_OUT]
    gains = {}
    learnt = dict(arms(options.data, options.folder, options.slices))
    for seed, (arm, pairs) in product(SEEDS, learnt.items()):
        place = options.folder / f"{options.recipe}-{options.steps}-{arm}-{seed}"
        network, recipe = trained(options.recipe, options.steps, seed, pairs, place)
        gains[arm, seed] = [gain(network, recipe, pair) for pair in held_out]
        print(arm, seed, " ".join(f"{value:.2f}" for value in gains[arm, seed]), flush=True)
    report(gains)


def arms(data: Path, folder: Path, slices: int) -> Iterable[tuple[str, list[VolumePair]]]:
    """The patients that each network learns from."""
    pairs = [read_pair(data, patient, slices) for patient in PAIRS]
    yield "delivered", [VolumePair(p.patient, "", p.low, p.full.hu, p.dose) for p in pairs]
    yield "simulated", [partner(pair, folder) for pair in pairs]
    yield "collection", read_collection(data, folder, slices)


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
