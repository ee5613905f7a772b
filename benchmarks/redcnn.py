"""RED-CNN beside HQINet: the same patients and samples, three times the time, its rate tuned.

`python benchmarks/redcnn.py DATA FOLDER`. It is trained on the collection of `partners.py`, whose
networks it is to be compared with; FOLDER is the same. Its learning rate is chosen on X901 and X904
after a third of the steps. Started again, what is finished is not trained again.
"""

import numpy as np
import torch
from partners import HELD_OUT
from real_pairs import RealPair, read_pair
from short_trainings import SEEDS, arguments, gain, read_collection, trained
from starter import CHOSEN_ON

RATES = (1e-4, 3e-4, 1e-3)


def main() -> None:
    options = arguments(__doc__, steps=450).parse_args()
    torch.set_num_threads(options.threads)
    data, folder = options.data, options.folder
    learnt = read_collection(data, folder, options.slices)
    held_out = {patient: read_pair(data, patient, options.judged) for patient in HELD_OUT}
    chosen_on = [held_out[patient] for patient in CHOSEN_ON]

    def gains(judged: list[RealPair], rate: float, steps: int, seed: int) -> list[float]:
        changes = (f"optimiser.learning_rate = {rate}", "optimiser.ema = 0.99")
        place = folder / f"redcnn-{rate:g}-{steps}-{seed}"
        network, recipe = trained("redcnn", steps, seed, learnt, place, changes)
        return [gain(network, recipe, pair) for pair in judged]

    def mean_gain(rate: float) -> float:
        of_rate = gains(chosen_on, rate, options.steps // 3, seed=0)
        print(f"rate {rate:g}: " + " ".join(f"{value:.2f}" for value in of_rate), flush=True)
        return sum(of_rate)

    rate = max(RATES, key=mean_gain)
    of_seeds = []
    for seed in SEEDS:
        of_seeds.append(gains(list(held_out.values()), rate, options.steps, seed))
        print(f"seed {seed}: " + " ".join(f"{v:.2f}" for v in of_seeds[-1]), flush=True)
    for patient, values in zip(held_out, np.array(of_seeds).T, strict=True):
        print(f"{patient} {values.mean():.2f} ({values.std(ddof=1):.2f})")
    print(f"all {np.mean(of_seeds):.2f}")


if __name__ == "__main__":
    main()
