"""What a classical filter does to the patients that the starter is reported on.

`python benchmarks/filters.py DATA`. Non-local means (Buades et al. 2005, as in scikit-image), the
noise level of each patient measured, its strength chosen on X901 and X904 alone.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from real_pairs import RealPair, read_pair
from skimage.restoration import denoise_nl_means
from starter import CHOSEN_ON, REPORTED, estimate, judge, perform, restore
from torch import Tensor

from hqinet.quality.reader_study import ask_observer
from hqinet.quality.reference import find_body
from hqinet.restoration.envelope import measured_noise
from hqinet.restoration.restore import HUModel

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.6)
"""Of `h`, in noise levels."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--slices", type=int, default=20)
    options = arguments.parse_args()
    pairs = [read_pair(options.data, patient, 4) for patient in CHOSEN_ON]
    gains = {of: [gain(pair, non_local_means(pair, of)) for pair in pairs] for of in STRENGTHS}
    for strength, of in gains.items():
        print(f"h = {strength}: " + ", ".join(f"{value:.2f} dB" for value in of), flush=True)
    chosen = max(STRENGTHS, key=lambda one: sum(gains[one]))
    performed = []
    for patient in REPORTED:
        pair = read_pair(options.data, patient, options.slices)
        model = non_local_means(pair, chosen)
        restored = restore(pair, model)
        judge(pair, restored)
        performed.append(perform(pair, restored, model))
    for question, answer in ask_observer(performed).answers.items():
        print(f"{question}: restored over low {estimate(answer.ratio)}")


def non_local_means(pair: RealPair, strength: float) -> HUModel:
    """The filter as a restorer: (windows, 3, rows, columns) HU, of which it sees the middle."""
    level = measured_noise(pair.low)

    def filtered(slice_: Tensor) -> Tensor:
        made = denoise_nl_means(
            slice_.numpy(), patch_size=5, patch_distance=7, h=strength * level, sigma=level
        )
        return torch.from_numpy(made.astype(np.float32))

    return lambda windows: torch.stack([filtered(window[1]) for window in windows])[:, None]


def gain(pair: RealPair, model: HUModel) -> float:
    """Gain in PSNR in the body, dB."""
    low, full = (torch.from_numpy(hu).float() for hu in (pair.low, pair.full.hu))
    body = find_body(full)
    restored = model(low[:, None].expand(-1, 3, -1, -1))[:, 0]
    before, after = ((of - full)[body].square().mean() for of in (low, restored))
    return 10 * math.log10(before / after)


if __name__ == "__main__":
    main()
