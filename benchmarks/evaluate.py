"""All metrics of a 512 x 512 pair: the project, scikit-image and scipy loops, and the restoring.

As an evaluation does, low dose and restored are both measured; the body mask is given to both.

    python benchmarks/evaluate.py [--slices 300] [--peer-slices 20]

The peer computes the same metrics slice by slice, on fewer slices since its cost is linear in them.
Medians over repeats; ratios are what to read, for machines differ.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from skimage.metrics import (
    mean_squared_error,
    normalized_root_mse,
    peak_signal_noise_ratio,
    structural_similarity,
)
from sklearn.metrics import mutual_info_score

from hqinet.networks.hqinet import build
from hqinet.physics import phantoms
from hqinet.quality.evaluation import threads
from hqinet.quality.metrics import measure
from hqinet.quality.reference import TISSUES, WINDOWS, find_body, reference_of_body
from hqinet.restoration.export import deployable
from hqinet.restoration.restore import restore
from hqinet.training.recipe import load_recipe

BATCH = 8


def pair(slices: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = phantoms.make("chest", seed=0, slices=BATCH, size=512).hu
    full = torch.from_numpy(np.tile(drawn, (-(-slices // BATCH), 1, 1))[:slices])
    generator = torch.Generator().manual_seed(0)
    return full + torch.randn(full.shape, generator=generator) * 60, full


def ours(low: torch.Tensor, full: torch.Tensor, body: torch.Tensor) -> dict[str, np.ndarray]:
    """As `hqinet.quality.evaluation` does it: a slice a thread."""

    def one(low: torch.Tensor, full: torch.Tensor, body: torch.Tensor) -> dict[str, torch.Tensor]:
        reference = reference_of_body(full, low, "chest", body)
        return {
            f"{image} {name}": value
            for image, hu in (("low", low), ("restored", restored(low)))
            for name, value in measure(hu, reference).items()
        }

    with threads(torch.device("cpu")) as pool:
        parts = list(pool.map(one, low.split(1), full.split(1), body.split(1)))
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def restored(low: torch.Tensor) -> torch.Tensor:
    return 0.9 * low - 20


def peers(low: torch.Tensor, full: torch.Tensor, body: torch.Tensor) -> dict[str, np.ndarray]:
    rows = []
    for x, y, inside in zip(low, full, body.numpy(), strict=True):
        row = {}
        for image, hu in (("low", x), ("restored", restored(x))):
            values = peer(hu.numpy(), x.numpy(), y.numpy(), inside)
            row |= {f"{image} {name}": value for name, value in values.items()}
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def peer(x: np.ndarray, low: np.ndarray, y: np.ndarray, body: np.ndarray) -> dict[str, float]:
    """One slice by the libraries that a script would use; tissues and edges are found here too."""
    a, b = (x + 1024) / 4095, (y + 1024) / 4095
    codes = [np.clip((z * 256).astype(int), 0, 255).ravel() for z in (a, b)]
    level, width = WINDOWS["chest"].level, WINDOWS["chest"].width
    wx, wy = (np.clip((z - (level - 0.5)) / (width - 1) + 0.5, 0, 1) for z in (x, y))
    similarity, similarities = structural_similarity(wy, wx, data_range=1.0, full=True)
    held = np.clip(x, -1024, 1900) - np.clip(y, -1024, 1900)
    removed, noise = (low - x)[body] + 1e-9 * low[body], (low - y)[body]
    gradients = [np.gradient(ndimage.uniform_filter(z, 3)) for z in (x, y)]
    steep = np.hypot(*gradients[1])
    edges = body & (steep >= np.quantile(steep[body], 0.95))
    values = {
        "l1": np.abs(a - b).mean(),
        "nmse": normalized_root_mse(b, a) ** 2,
        "psnr": peak_signal_noise_ratio(b, a, data_range=b.max()),
        "mi": mutual_info_score(*codes),
        "psnr_window": peak_signal_noise_ratio(wy, wx, data_range=1.0),
        "ssim_window": similarity,
        "rmse": np.sqrt(mean_squared_error(np.clip(y, -1024, 1900), np.clip(x, -1024, 1900))),
        "psnr_window_body": 10 * np.log10(1 / ((wx - wy)[body] ** 2).mean()),
        "ssim_window_body": similarities[body].mean(),
        "rmse_body": np.sqrt((held[body] ** 2).mean()),
        "noise_removed": 1 - ((x - y)[body] ** 2).mean() / (noise**2).mean(),
        "noise_likeness": np.corrcoef(removed, noise)[0, 1],
        "edge_sharpness": sum((g * h)[edges].sum() for g, h in zip(*gradients, strict=True))
        / (steep[edges] ** 2).sum(),
    }
    mean = ndimage.uniform_filter(y, 5)
    for name, (least, most) in TISSUES.items():
        inside = ndimage.minimum_filter((mean >= least) & (mean <= most), 5)
        error = (x - y)[inside]
        values[f"bias_{name}"] = error.mean() if error.size else np.nan
        values[f"sd_{name}"] = error.std() if error.size else np.nan
    return values


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--slices", type=int, default=300)
    arguments.add_argument("--peer-slices", type=int, default=20)
    options = arguments.parse_args()
    low, full = pair(options.slices)
    # First, as in an evaluation: what a process did before decides how its memory is handed out.
    paper = load_recipe("paper").model
    model = deployable(build(paper, 0), paper).to(memory_format=torch.channels_last)
    stack = low[:4].to(torch.int16).numpy()
    restoring = seconds(lambda: list(restore(model, stack))) / 4
    few = slice(0, options.peer_slices)
    body = torch.cat([find_body(part) for part in full.split(BATCH)])
    mine, theirs = (work(low[few], full[few], body[few]) for work in (ours, peers))
    worst = max(
        np.nanmax(np.abs(mine[name] - theirs[name]) / (np.abs(theirs[name]) + 0.01))
        for name in (
            f"restored {metric}"
            for metric in ("l1", "nmse", "psnr", "mi", "ssim_window", "rmse", "noise_likeness")
        )
    )
    project = seconds(lambda: ours(low, full, body)) / options.slices
    scipy = seconds(lambda: peers(low[few], full[few], body[few]), 1) / options.peer_slices
    print(f"{torch.get_num_threads()} threads; largest relative difference to the peer {worst:.1e}")
    print(f"project            {1e3 * project:8.1f} ms a slice, body given")
    print(
        f"scikit-image loops {1e3 * scipy:8.1f} ms a slice: {scipy / project:.1f} times the project"
    )
    print(f"restoring          {1e3 * restoring:8.1f} ms a slice at full width")
    print(f"measuring low and restored costs {project / restoring:.1%} of restoring")


if __name__ == "__main__":
    main()
