"""Pictures for people: image panels in the anatomy's window, and curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from hqinet.quality.reference import window, window_of

CAPTION = 14
"""Height of the caption line above an image, pixels."""
CURVES = ("train_loss", "val_psnr", "val_psnr_low", "val_gain_worst")
"""Of a training history; what it has of single patients stands in MLflow."""


def panel(
    low: np.ndarray, restored: np.ndarray, full: np.ndarray | None, anatomy: str
) -> Image.Image:
    """Low dose, restored, full dose and restored less full dose, side by side with captions.

    Images are (rows, columns) HU; the first three are shown in the anatomy's window, the difference
    in a window of a quarter of its width around zero. Without a full dose the difference is that
    of low dose: what was removed.
    """
    shown = window_of(anatomy)
    span = shown.width / 4
    views = {"low dose": _grey(low, anatomy), "restored": _grey(restored, anatomy)}
    if full is not None:
        views["full dose"] = _grey(full, anatomy)
    against, name = (low, "low") if full is None else (full, "full")
    # Of int16 volumes the difference may not fit.
    difference = restored.astype(np.float32) - against
    views[f"restored - {name}, +-{span / 2:.0f} HU"] = np.clip(difference / span + 0.5, 0, 1) * 255
    rows, columns = low.shape
    page = Image.new("L", (columns * len(views), rows + CAPTION), 255)
    draw = ImageDraw.Draw(page)
    for index, (caption, view) in enumerate(views.items()):
        page.paste(Image.fromarray(view.astype(np.uint8)), (index * columns, CAPTION))
        draw.text((index * columns + 4, 1), caption, fill=0)
    return page


def save_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw the CURVES that a training history has against the epoch, one small axis each."""
    names = [name for name in CURVES if name in history[0]]
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for index, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        axes.plot(
            [row["epoch"] for row in history],
            [row.get(name, np.nan) for row in history],
            marker=".",
        )
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def _grey(hu: np.ndarray, anatomy: str) -> np.ndarray:
    return window(torch.from_numpy(np.array(hu, np.float32)), window_of(anatomy)).numpy() * 255
