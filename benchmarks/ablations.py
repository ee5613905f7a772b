"""What each choice of the starter's recipe is worth: one change at a time, three seeds.

`python benchmarks/ablations.py DATA FOLDER [--only NAME ...]`. Networks learn from the collection
of `partners.py`, and FOLDER is the same: the recipe unchanged is its arm `collection`. Gains are
those of patients that none of them saw, with their neighbours and each slice alone. Choices are
made on X901 and X904; the others are reported. What is finished is not trained again.
"""

from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from real_pairs import read_pair
from short_trainings import SEEDS, arguments, gain, read_collection, trained
from starter import CHOSEN_ON, REPORTED

from hqinet.restoration.restore import read_windows

CHANGES = {
    "unchanged": [],
    "neighbours always there": ["sampling.drop_neighbours = 0.0"],
    "patches never zoomed": ["sampling.zoom = [1.0, 1.0]"],
    "kernels as they are": ["sampling.kernels = [1.0, 1.0]"],
    "noise of one patient alone": ["sampling.mix_noise = false"],
    "estimates full dose": ['model.estimates = "full"'],
    "squared errors": ["loss.l1 = 0.0", "loss.mse = 1.0"],
    "no lesions": ["sampling.lesions = 0"],
}


def main() -> None:
    parser = arguments(__doc__, steps=600)
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, folder = options.data, options.folder
    learnt = read_collection(data, folder, options.slices)
    groups = [
        [read_pair(data, patient, options.judged) for patient in patients]
        for patients in (CHOSEN_ON, REPORTED)
    ]
    print("gain, dB (SD over seeds): chosen on, reported; each slice alone: chosen on, reported")
    for name in options.only:
        rows = []
        for seed in SEEDS:
            arm = "collection" if name == "unchanged" else name.replace(" ", "-")
            place = folder / f"starter-{options.steps}-{arm}-{seed}"
            changes = CHANGES[name]
            network, recipe = trained("starter", options.steps, seed, learnt, place, changes)
            rows.append(
                [
                    mean(gain(network, recipe, pair, windows) for pair in pairs)
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
