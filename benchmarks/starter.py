"""What a restorer does to patients it has not seen: gain, bias, texture, edges, lesions.

`python benchmarks/starter.py MODEL.pt2 DATA [--patients C902 ...]`. Real anatomy, simulated dose.
Each slice is restored with its neighbours and alone; the first and last of a volume count apart.
Lesions are put into low and full dose alike, for the noise that was added does not depend on them.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from real_pairs import RealPair, read_pair
from torch import Tensor

from hqinet.quality.ceiling import dose_ceiling
from hqinet.quality.reader_study import Estimate, ask_observer
from hqinet.quality.reference import find_body, find_tissues
from hqinet.quality.tasks import Tasks, perform_tasks
from hqinet.restoration.export import load_exported
from hqinet.restoration.restore import HUModel, read_windows
from hqinet.samples.pairs import VolumePair

CHOSEN_ON = ("X901", "X904")
"""Patients on which networks and filters are chosen, and none was trained."""
REPORTED = ("C902", "L902", "X905", "X906", "X907", "X908")
"""Patients on which nothing was chosen and no network was trained."""


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
    performed: list[Tasks] = []
    for patient in options.patients:
        pair = read_pair(options.data, patient, options.slices)
        model = load_exported(options.model, dose=pair.dose)
        with torch.inference_mode():
            of = restore(pair, model)
            judge(pair, of)
            performed.append(perform(pair, of, model))
    study = ask_observer(performed)
    print(f"observer, {study.places} places of {study.patients} patients:")
    for channels, answers in (("", study.answers), (", human channels", study.human)):
        for question, answer in answers.items():
            d = ", ".join(f"{name} {estimate(value)}" for name, value in answer.index.items())
            print(f"  {question}{channels}: d' {d}; restored over low {estimate(answer.ratio)}")


def estimate(of: Estimate) -> str:
    return f"{of.value:.2f} [{of.low:.2f}, {of.high:.2f}]"


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
    print(
        f"  SD removed over SD added {float(removed[body].std() / added[body].std()):.2f} "
        f"(optimum {math.sqrt(1 - pair.dose):.2f})"
    )


def perform(pair: RealPair, of: Restored, model: HUModel) -> Tasks:
    """Print what a reader can do with a patient's slices, and return what an observer saw."""
    stated = VolumePair(pair.patient, "abdomen", pair.low, pair.full.hu, pair.dose)
    restored = of.with_neighbours.round().short().numpy()
    spacing, device = (pair.full.pixel, pair.full.pixel), torch.device("cpu")
    tasks = perform_tasks(stated, restored, model, spacing=spacing, device=device)
    figures = tasks.figures
    for name, values in (
        ("mean frequency of noise, 1/mm", figures.frequency),
        ("slope of edges over full dose's", figures.sharpness),
        ("visual fidelity in the abdomen's window", figures.fidelity),
        ("structure invented over low dose's", {"": figures.invented}),
    ):
        there = {key: value for key, value in values.items() if value is not None}
        print(f"  {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in there.items()))
    return tasks


if __name__ == "__main__":
    main()
