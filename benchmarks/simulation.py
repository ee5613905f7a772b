"""Is simulated low dose what it says: amount, texture, place, bias, projections, speed.

`python benchmarks/simulation.py DATA` with the folder of real CT (docs: `HQINET_REAL_DATA`). The
low dose that comes with those pairs is simulated by another program, so that texture is judged
against the full dose's own noise and against that program, not against a scanner. With
astra-toolbox installed it is a second judge of projections beside scikit-image.
"""

import argparse
import importlib.util
import math
import time
from pathlib import Path

import numpy as np
import torch
from real_pairs import RealPair, read_pair
from scipy.ndimage import gaussian_filter
from skimage.transform import radon

from hqinet.noise import noise_level
from hqinet.physics import phantoms
from hqinet.physics.dose_simulation import simulate_dose
from hqinet.physics.projection import ParallelBeam, back_project, project, ramp
from hqinet.physics.scanner import Detector, FullDose
from hqinet.quality.noise_spectrum import (
    NoisePower,
    NoisePowerMeter,
    mean_frequency,
    peak_frequency,
    spectral_distance,
)
from hqinet.quality.reference import find_body, find_tissues

PATIENTS = ("C901", "C902", "L901", "L902")
SLICES = 12
REALISATIONS = 8


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    projections()
    speed()
    cylinder()
    for patient in PATIENTS:
        pair = read_pair(options.data, patient, SLICES)
        if patient == "L901":
            law(pair.full)
        anatomy(pair)


def projections() -> None:
    """Projections of a phantom against libraries that follow rays."""
    size, views = 256, 90
    hu = phantoms.make("abdomen", seed=1, slices=1, size=size).hu[0]
    # Rays and Fourier transform differ at edges sharper than a pixel, which no scanner resolves.
    image = gaussian_filter(1 + hu / 1000, 1.0).clip(0).astype(np.float32)
    beam = ParallelBeam(size, views)
    ours = project(torch.from_numpy(image)[None], beam)[0].numpy()
    degrees = -np.arange(views) * 180 / views
    theirs = radon(image, theta=degrees, circle=False).T
    first = beam.bins // 2 - theirs.shape[1] // 2
    report("scikit-image", ours[:, first : first + theirs.shape[1]], theirs)
    if importlib.util.find_spec("astra") is None:
        print("projections against astra-toolbox: not installed")
        return
    import astra

    angles = np.arange(views) * math.pi / views
    # Its second axis points upwards.
    geometry = astra.create_proj_geom("parallel", 1.0, beam.bins, -angles)
    volume = astra.create_vol_geom(size, size)
    projector = astra.create_projector("linear", geometry, volume)
    _, rays = astra.create_sino(image, projector)
    # astra's image middle lies between pixels, ours on one: half a pixel along both axes.
    shift = -0.5 * (np.cos(angles) + np.sin(angles))
    place = np.arange(beam.bins)
    moved = np.stack(
        [np.interp(place, place + 0.5 + d, row) for row, d in zip(rays, shift, strict=True)]
    )
    report("astra-toolbox", ours, moved)


def report(library: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    error = np.abs(ours - theirs)
    print(
        f"projections against {library}: mean error {error.mean() / theirs.max():.2%}, "
        f"largest {error.max() / theirs.max():.2%} of the largest line integral"
    )


def speed() -> None:
    """Seconds a 512x512 slice with 720 views, projected and its noise reconstructed."""
    beam = ParallelBeam(512, 720)
    image = torch.rand(1, 512, 512)
    back_project(project(image, beam), beam, ramp(beam))
    began = time.perf_counter()
    for _ in range(5):
        back_project(project(image, beam), beam, ramp(beam))
    seconds = (time.perf_counter() - began) / 5
    print(f"project and reconstruct 512x512, 720 views: {seconds:.2f} s a slice")


def cylinder() -> None:
    """Noise of a water cylinder: centre over edge, against the mean of e^p over all rays."""
    size, radius, pixel = 256, 100, 1.2
    axis = np.arange(size) - size // 2
    distance = np.hypot(axis[:, None], axis)
    noise = np.random.default_rng(0).normal(0, 10, (SLICES, size, size))
    hu = np.where(distance < radius, noise, -1000).round().astype(np.int16)
    made = simulate_dose(FullDose(hu, pixel, 3.0, 3.0), dose=0.25, seed=0, realisations=4)
    added = made.low - hu.astype(float)
    angle = np.linspace(0, math.pi, 720, endpoint=False)

    def expected(r: float) -> float:
        chord = 2 * np.sqrt(np.clip(radius**2 - (r * np.cos(angle)) ** 2, 0, None))
        return math.sqrt(np.exp(0.0193 * pixel * chord).mean())

    for r in (0.5, 0.8, 0.9):
        ring = np.abs(distance - r * radius) < 4
        centre = distance < 12
        found = added[:, :, centre].std() / added[:, :, ring].std()
        print(
            f"cylinder, centre over {r:.1f} of the radius: {found:.2f}, "
            f"theory {expected(0) / expected(r * radius):.2f}"
        )


def law(series: FullDose) -> None:
    """SD of the added noise with photons calibrated once; and the dose that each pair implies."""
    photons = simulate_dose(series, dose=0.25, seed=0).photons
    full = torch.from_numpy(series.hu)
    body = find_body(full)
    one = None
    for dose in (0.5, 0.25, 0.1, 0.05):
        made = simulate_dose(series, dose=dose, seed=0, detector=Detector(photons=photons))
        low = torch.from_numpy(made.low[0])
        deviation = float((low - full).float()[body].std()) / math.sqrt(1 / dose - 1)
        one = one or deviation
        implied = float((noise_level(full) / noise_level(low)).median()) ** 2
        print(
            f"L901 at {dose:.0%}: SD over the law's {deviation / one:.3f} of that at 50 %, "
            f"implied dose {implied:.3f}"
        )


def anatomy(pair: RealPair) -> None:
    """Texture, bias and dose of a patient's simulated pair."""
    series, dose = pair.full, pair.dose
    began = time.perf_counter()
    made = simulate_dose(series, dose=dose, seed=0)
    seconds = (time.perf_counter() - began) / len(series.hu)
    several = simulate_dose(series, dose=dose, seed=1, realisations=REALISATIONS).low
    full = torch.from_numpy(series.hu).float()
    body = find_body(full)
    ours, theirs = (torch.from_numpy(v).float() - full for v in (made.low[0], pair.low))
    own = full.diff(dim=0) / math.sqrt(2)
    spectra = {
        "own noise": power(own, body[1:] & body[:-1], series.pixel),
        "added": power(ours, body, series.pixel),
        "added by the other program": power(theirs, body, series.pixel),
    }
    said = "; ".join(
        f"{name}: peak {peak_frequency(s):.2f}, mean {mean_frequency(s):.2f}/mm"
        for name, s in spectra.items()
    )
    apart = spectral_distance(spectra["added"], spectra["added by the other program"])
    tissues = find_tissues(full, body)
    bias = {
        tissue: [float((torch.from_numpy(low).float() - full)[mask].mean()) for low in several]
        for tissue, mask in tissues.items()
        if mask.sum() > 500
    }
    print(f"{pair.patient} at {dose:.0%}: implied dose {made.implied:.3f}, {seconds:.2f} s a slice")
    print(f"  {said}; distance of the last two {apart:.2f}")
    print(
        f"  bias of {REALISATIONS} realisations, HU with its standard error: "
        + ", ".join(
            f"{tissue} {np.mean(means):+.2f} ({np.std(means, ddof=1) / len(means) ** 0.5:.2f})"
            for tissue, means in bias.items()
        )
    )


def power(noise: torch.Tensor, body: torch.Tensor, pixel: float) -> NoisePower:
    meter = NoisePowerMeter((noise.shape[1], noise.shape[2]), (pixel, pixel))
    meter.add(noise, body)
    return meter.result()


if __name__ == "__main__":
    main()
