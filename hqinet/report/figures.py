"""Figures of the report, as SVG that stands in the page."""

from collections.abc import Mapping, Sequence
from io import StringIO

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hqinet.quality.edge_response import CONTRASTS, REACH
from hqinet.quality.metrics import METRICS
from hqinet.quality.noise_spectrum import NoisePower
from hqinet.quality.tasks import IMAGES, Tasks

SHOWN = ("psnr", "psnr_window", "ssim_window", "rmse_body")
COLOURS = {"low": "#b5651d", "restored": "#1f6f8b", "full": "#444"}


def distributions(patients: pd.DataFrame) -> str:
    """Each patient's change from low dose to restored, by anatomy; four metrics."""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    anatomies = sorted(patients["anatomy"].unique())
    for index, metric in enumerate(SHOWN):
        axes = figure.add_subplot(1, len(SHOWN), index + 1)
        for place, anatomy in enumerate(anatomies):
            group = patients[patients["anatomy"] == anatomy]
            # A metric that no patient has is drawn empty, not left out.
            wide = group.pivot_table(index="patient", columns="image", values=metric, dropna=False)
            for _, pair in wide.iterrows():
                axes.plot([place - 0.2, place + 0.2], pair[["low", "restored"]], color="#bbb", lw=1)
            for shift, image in ((-0.2, "low"), (0.2, "restored")):
                values = wide[image]
                axes.plot(
                    np.full(len(values), place + shift),
                    values,
                    "o",
                    color=COLOURS[image],
                    ms=5,
                    label=image if place == 0 else None,
                )
        axes.set_xticks(range(len(anatomies)), anatomies)
        axes.set_xlim(-0.6, len(anatomies) - 0.4)
        unit = METRICS[metric].unit
        axes.set_title(metric if unit == "1" else f"{metric} [{unit}]", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def noise_power(noise: Sequence[tuple[str, dict[str, NoisePower]]]) -> str:
    """The noise power spectrum of every patient's residual, low dose against restored.

    noise: a patient's anatomy, and the spectrum of each image.
    """
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    anatomies = sorted({anatomy for anatomy, _ in noise})
    for index, anatomy in enumerate(anatomies):
        axes = figure.add_subplot(1, len(anatomies), index + 1)
        for images in (images for of, images in noise if of == anatomy):
            for image, power in images.items():
                axes.semilogy(power.frequency, power.power, color=COLOURS[image], alpha=0.7)
        axes.set_title(f"{anatomy}: NPS of image - full dose", fontsize=10)
        axes.set(xlabel="spatial frequency [1/mm]", ylabel="HU² mm²")
        axes.grid(alpha=0.3)
    for image in ("low", "restored"):
        figure.axes[0].plot([], [], color=COLOURS[image], label=image)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def edge_curves(tasks: Mapping[str, Tasks]) -> str:
    """Mean profiles across the edges of each contrast, of every patient; empty without any."""
    kinds = [kind for kind in CONTRASTS if any(kind in one.profiles for one in tasks.values())]
    if not kinds:
        return ""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for index, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), index + 1)
        for profiles in (one.profiles[kind] for one in tasks.values() if kind in one.profiles):
            for curve, name in zip(profiles, ("restored", "full"), strict=True):
                place = np.linspace(-REACH, REACH, len(curve))
                axes.plot(place, curve, color=COLOURS[name], alpha=0.7)
        least, most = CONTRASTS[kind]
        axes.set_title(f"{kind}: steps of {least:g} to {most:g} HU", fontsize=10)
        axes.set(xlabel="pixels across the edge", ylabel="share of the step")
        axes.grid(alpha=0.3)
    for name in ("restored", "full"):
        figure.axes[0].plot([], [], color=COLOURS[name], label=name)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def lesion_pictures(tasks: Mapping[str, Tasks]) -> str:
    """One place of the first patient that has one, with the lesion and without; empty for none."""
    found = next(((p, one) for p, one in tasks.items() if len(one.example["full"])), None)
    if found is None:
        return ""
    patient, one = found
    figure = Figure(figsize=(12, 2.4), layout="constrained")
    centre = float(np.median(one.example["full"][0]))
    for index, (image, present) in enumerate(
        (image, present) for image in IMAGES for present in (1, 0)
    ):
        axes = figure.add_subplot(1, 2 * len(IMAGES), index + 1)
        axes.imshow(one.example[image][present], cmap="gray", vmin=centre - 125, vmax=centre + 125)
        axes.set_title(f"{image}, {'with' if present else 'without'}", fontsize=9)
        axes.set_axis_off()
    figure.suptitle(f"{patient}: width 250 HU around the tissue's level", fontsize=9)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    text = StringIO()
    # A fixed salt and no date: equal numbers give an equal page.
    with mpl.rc_context({"svg.hashsalt": "hqinet", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
