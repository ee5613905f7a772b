"""What a restorer does to patients it has not seen: gain, bias, texture, edges, lesions.

`python benchmarks/starter.py MODEL.pt2 DATA [--patients C902 ...]`. Real anatomy, simulated dose.
Each slice is restored with its neighbours and alone; the first and last of a volume count apart.
Lesions are put into low and full dose alike, for the noise that was added does not depend on them.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from real_pairs import RealPair, read_pair
from torch import Tensor

from hqinet.quality.ceiling import dose_ceiling
from hqinet.quality.detectability import detect, laguerre_gauss, lesion
from hqinet.quality.edge_response import CONTRASTS, edge_profiles, relative_sharpness
from hqinet.quality.noise_spectrum import NoisePowerMeter, mean_frequency
from hqinet.quality.reference import find_body, find_tissues
from hqinet.restoration.export import load_exported
from hqinet.restoration.restore import HUModel, read_windows

REPORTED = ("C902", "L902", "X905", "X906", "X907", "X908")
"""Patients on which nothing was chosen and no network was trained."""
ROI = 40
LESIONS = ((8.0, -40.0), (6.0, -30.0), (10.0, -20.0))
"""Diameter in mm and contrast in HU."""


@dataclass(frozen=True)
class Restored:
    """A patient's slices, (slices, rows, columns) float32 HU."""

    low: Tensor
    full: Tensor
    with_neighbours: Tensor
    alone: Tensor


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--patients", nargs="+", default=REPORTED)
    arguments.add_argument("--slices", type=int, default=20)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    for patient in options.patients:
        pair = read_pair(options.data, patient, options.slices)
        model = load_exported(options.model, dose=pair.dose)
        with torch.inference_mode():
            judge(pair, restore(pair, model))
            lesions(pair, model)


def restore(pair: RealPair, model: HUModel) -> Restored:
    low, full = (torch.from_numpy(v).float() for v in (pair.low, pair.full.hu))
    near = [torch.from_numpy(read_windows(pair.low, z, z + 1)).float() for z in range(len(low))]
    alone = [slice_.expand(1, 3, -1, -1).contiguous() for slice_ in low]
    return Restored(
        low,
        full,
        torch.cat([model(window)[:, 0] for window in near]),
        torch.cat([model(window)[:, 0] for window in alone]),
    )


def judge(pair: RealPair, of: Restored) -> None:
    """Print a patient's figures."""
    body = find_body(of.full)
    ceiling = dose_ceiling(pair.dose)

    def gain(image: Tensor, slices: slice | list[int] = slice(None)) -> float:
        inside = body[slices]
        before, after = (
            float((x[slices] - of.full[slices])[inside].square().mean()) for x in (of.low, image)
        )
        return 10 * math.log10(before / after)

    worst = min(gain(of.alone, [z]) for z in range(len(of.low)))
    print(
        f"{pair.patient} at {pair.dose:.0%}: gain {gain(of.with_neighbours):.2f} dB, "
        f"{gain(of.with_neighbours) / ceiling:.2f} of the ceiling; first and last slice "
        f"{gain(of.with_neighbours, [0, -1]):.2f}; alone {gain(of.alone):.2f}, "
        f"{gain(of.alone) / ceiling:.2f} (worst slice {worst:.2f})"
    )
    bias = {
        name: float((of.with_neighbours - of.full)[mask].mean())
        for name, mask in find_tissues(of.full, body).items()
        if mask.sum() > 1000
    }
    print("  bias, HU: " + ", ".join(f"{name} {value:+.2f}" for name, value in bias.items()))
    removed, added = of.low - of.with_neighbours, of.low - of.full
    optimum = math.sqrt(1 - pair.dose)
    print(
        f"  SD removed over SD added {float(removed[body].std() / added[body].std()):.2f} "
        f"(optimum {optimum:.2f}); mean frequency of neighbours' difference, 1/mm: "
        + ", ".join(
            f"{name} {texture(image, body, pair.full.pixel):.3f}"
            for name, image in (
                ("low", of.low),
                ("restored", of.with_neighbours),
                ("full", of.full),
            )
        )
    )
    print("  edges, slope over full dose's: " + ", ".join(edges(of, body)))


def texture(image: Tensor, body: Tensor, pixel: float) -> float:
    meter = NoisePowerMeter((image.shape[1], image.shape[2]), (pixel, pixel))
    meter.add(image.diff(dim=0), body[1:] & body[:-1])
    return mean_frequency(meter.result())


def edges(of: Restored, body: Tensor) -> Iterator[str]:
    for kind in CONTRASTS:
        sums, count = [np.zeros(0), np.zeros(0)], 0
        for z in range(len(of.full)):
            one, other, found = edge_profiles(of.with_neighbours[z], of.full[z], body[z], kind)
            if found:
                pair = [found * one, found * other]
                sums = [a + b if count else b for a, b in zip(sums, pair, strict=True)]
                count += found
        if count > 200:
            yield f"{kind} {relative_sharpness(*sums):.2f} ({count})"


def lesions(pair: RealPair, model: HUModel) -> None:
    """Detection of low-contrast lesions in soft tissue, by low, restored and full dose."""
    low, full = (torch.from_numpy(v).float() for v in (pair.low, pair.full.hu))
    places = [place for z in range(len(full)) for place in smooth_places(full[z], z)]
    for diameter, contrast in LESIONS:
        drawn = torch.from_numpy(
            lesion(ROI, pair.full.pixel, diameter=diameter, contrast=contrast, edge=0.5)
        ).float()
        channels = laguerre_gauss(ROI, 1.5 * diameter / pair.full.pixel)
        said = []
        for name, image, restorer in (
            ("low", low, None),
            ("restored", low, model),
            ("full", full, None),
        ):
            present, absent = (
                regions(image, places, part, restorer) for part in (drawn, 0 * drawn)
            )
            if len(present) < 2 * 2 * len(channels):
                return
            found = detect(present, absent, channels)
            low_end, high_end = found.interval
            said.append(f"{name} {found.index:.2f} [{low_end:.2f}, {high_end:.2f}]")
        print(
            f"  lesion {diameter:g} mm {contrast:g} HU, {len(places)} places: d' " + ", ".join(said)
        )


def smooth_places(full: Tensor, z: int) -> Iterator[tuple[int, int, int]]:
    """Places of a grid around which there is soft tissue alone."""
    rows, columns = full.shape
    for row in range(0, rows - ROI, ROI):
        for column in range(0, columns - ROI, ROI):
            # Smoothed, or noise would choose.
            part = full[row : row + ROI, column : column + ROI]
            mean = torch.nn.functional.avg_pool2d(part[None], 7, 1)
            if mean.min() > -20 and mean.max() < 150:
                yield z, row, column


def regions(
    image: Tensor,
    places: list[tuple[int, int, int]],
    drawn: Tensor,
    model: Callable[[Tensor], Tensor] | None,
) -> np.ndarray:
    changed = image.clone()
    for z, row, column in places:
        changed[z, row : row + ROI, column : column + ROI] += drawn
    if model is not None:
        slices = {z for z, _, _ in places}
        stack = changed.round().to(torch.int16).numpy()
        for z in slices:
            window = torch.from_numpy(read_windows(stack, z, z + 1)).float()
            changed[z] = model(window)[0, 0]
    return (
        np.stack([changed[z, r : r + ROI, c : c + ROI].double().numpy() for z, r, c in places])
        if places
        else np.zeros((0, ROI, ROI))
    )


if __name__ == "__main__":
    main()
