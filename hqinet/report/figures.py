"""Figures of the report, as SVG that stands in the page."""

from collections.abc import Sequence
from io import StringIO

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hqinet.quality.metrics import METRICS
from hqinet.quality.noise_spectrum import NoisePower

SHOWN = ("psnr", "psnr_window", "ssim_window", "rmse_body")
COLOURS = {"low": "#b5651d", "restored": "#1f6f8b"}


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
    for image, colour in COLOURS.items():
        figure.axes[0].plot([], [], color=colour, label=image)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    text = StringIO()
    # A fixed salt and no date: equal numbers give an equal page.
    with mpl.rc_context({"svg.hashsalt": "hqinet", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
