"""Anatomy-like phantoms for the demonstration cohort: chests and abdomens, no two alike.

Made of soft-edged ellipses, tubes and textures with HU of the textbook (lung -850, fat -100,
muscle 50, liver 60, contrast-filled vessels 150-250, bone 200-1000). They are not patients.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

FloatArray = np.ndarray


@dataclass(frozen=True)
class Phantom:
    """One synthetic patient: `hu` (slices, rows, columns) float32, `spacing` (z, y, x) in mm."""

    anatomy: str
    hu: FloatArray
    spacing: tuple[float, float, float]


@dataclass
class _Canvas:
    """A volume under construction, with coordinates in mm from the centre of the body."""

    hu: FloatArray
    z: FloatArray
    y: FloatArray
    x: FloatArray
    pixel: float
    random: np.random.Generator

    def ellipse(
        self, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0
    ) -> FloatArray:
        """Soft membership (0..1) of an elliptic cylinder that tapers a little along z."""
        taper = 1 + 0.06 * np.sin(self.z / 25 + self.random.uniform(0, 2 * np.pi))
        v, u = self.y - centre[0], self.x - centre[1]
        cos, sin = np.cos(angle), np.sin(angle)
        along, across = (u * cos + v * sin) / radii[1], (v * cos - u * sin) / radii[0]
        distance = (np.hypot(along, across) - taper) * min(radii)
        return 1 / (1 + np.exp(np.clip(distance / (0.35 * self.pixel), -50, 50)))

    def paint(self, membership: FloatArray, hu: float | FloatArray) -> None:
        """Replace what stands there by `hu` where `membership` is one."""
        self.hu += membership * (hu - self.hu)

    def texture(self, deviation: float, grain: float) -> FloatArray:
        """Smooth random field of the given standard deviation (HU) and grain (mm)."""
        field = gaussian_filter(self.random.standard_normal(self.hu.shape), grain / self.pixel)
        return deviation * field / field.std()

    def tube(self, centre: tuple[float, float], radius: float, hu: float) -> None:
        """Paint a vessel that wanders along z."""
        phase, drift = self.random.uniform(0, 2 * np.pi), self.random.uniform(2, 8)
        v = self.y - centre[0] - drift * np.sin(self.z / 18 + phase)
        u = self.x - centre[1] - drift * np.cos(self.z / 22 + phase)
        edge = (np.hypot(u, v) - radius) / (0.35 * self.pixel)
        self.paint(1 / (1 + np.exp(np.clip(edge, -50, 50))), hu)


def make(anatomy: str, *, seed: int, slices: int, size: int, increment: float = 3.0) -> Phantom:
    """Draw one synthetic patient; equal arguments give an equal patient.

    anatomy: "chest" or "abdomen". size: rows and columns. increment: slice increment in mm.
    Raises ValueError for another anatomy.
    """
    organs = {"chest": _chest, "abdomen": _abdomen}
    if anatomy not in organs:
        raise ValueError(f"no phantom for anatomy {anatomy!r}; there are {sorted(organs)}")
    random = np.random.default_rng(seed)
    pixel = 380 / size
    across = (np.arange(size) - (size - 1) / 2) * pixel
    canvas = _Canvas(
        hu=np.full((slices, size, size), -1000.0),
        z=((np.arange(slices) - slices / 2) * increment)[:, None, None],
        y=across[None, :, None],
        x=across[None, None, :],
        pixel=pixel,
        random=random,
    )
    build = random.uniform(0.88, 1.08)
    _torso(canvas, build)
    organs[anatomy](canvas, build)
    _skeleton(canvas, build)
    return Phantom(anatomy, canvas.hu.astype(np.float32), (increment, pixel, pixel))


def _torso(canvas: _Canvas, build: float) -> None:
    fat = canvas.random.uniform(6, 18)
    canvas.paint(canvas.ellipse((0, 0), (105 * build, 155 * build)), -100 + canvas.texture(8, 4))
    canvas.paint(
        canvas.ellipse((0, 0), (105 * build - fat, 155 * build - fat)), 50 + canvas.texture(8, 3)
    )


def _chest(canvas: _Canvas, build: float) -> None:
    random = canvas.random
    for side in (-1, 1):
        centre = (random.uniform(-8, 4) * build, side * random.uniform(66, 74) * build)
        lung = canvas.ellipse(centre, (70 * build, 52 * build), angle=side * 0.12)
        canvas.paint(lung, -850 + canvas.texture(35, 5))
        for _ in range(26):
            turn, reach = random.uniform(0, 2 * np.pi), np.sqrt(random.uniform(0.02, 0.75))
            at = (
                centre[0] + 62 * build * reach * np.sin(turn),
                centre[1] + 44 * build * reach * np.cos(turn),
            )
            canvas.tube(at, random.uniform(1.2, 4.0), random.uniform(-60, 60))
    canvas.paint(
        canvas.ellipse((-18 * build, 14 * build), (42 * build, 46 * build), angle=0.5),
        random.uniform(45, 70) + canvas.texture(10, 5),
    )
    canvas.tube((34 * build, 14 * build), 12 * build, random.uniform(120, 230))
    canvas.tube((2 * build, -6 * build), 9 * build, -990)


def _abdomen(canvas: _Canvas, build: float) -> None:
    random = canvas.random
    canvas.paint(
        canvas.ellipse((-14 * build, -66 * build), (58 * build, 62 * build), angle=0.4),
        random.uniform(55, 110) + canvas.texture(9, 4),
    )
    canvas.paint(
        canvas.ellipse((10 * build, 98 * build), (34 * build, 24 * build)),
        random.uniform(60, 120) + canvas.texture(9, 4),
    )
    for side in (-1, 1):
        kidney = ((46 + random.uniform(-6, 6)) * build, side * 58 * build)
        canvas.paint(canvas.ellipse(kidney, (26 * build, 17 * build), side * 0.4), 140.0)
        canvas.paint(canvas.ellipse(kidney, (11 * build, 7 * build), side * 0.4), 20.0)
    for _ in range(9):
        at = (random.uniform(-70, -10) * build, random.uniform(-40, 90) * build)
        radius = random.uniform(9, 20)
        canvas.paint(canvas.ellipse(at, (radius, radius * random.uniform(0.7, 1.3))), -60.0)
        canvas.paint(canvas.ellipse(at, (radius - 3, radius - 3)), random.choice([-950.0, 20.0]))
    for _ in range(14):
        canvas.tube(
            (random.uniform(-40, 40) * build, random.uniform(-95, -35) * build),
            random.uniform(1.5, 4.0),
            random.uniform(120, 200),
        )
    canvas.tube((28 * build, 8 * build), 9 * build, random.uniform(150, 250))
    canvas.tube((26 * build, -14 * build), 10 * build, random.uniform(90, 160))


def _skeleton(canvas: _Canvas, build: float) -> None:
    random = canvas.random
    spine = (66 * build, 0.0)
    canvas.paint(canvas.ellipse(spine, (20 * build, 24 * build)), 700.0)
    canvas.paint(canvas.ellipse(spine, (17 * build, 21 * build)), 240 + canvas.texture(45, 2))
    canvas.paint(canvas.ellipse((90 * build, 0), (8 * build, 9 * build)), 30.0)
    count, start = 11, random.uniform(0, 1)
    for rib in range(count):
        turn = np.pi * (0.06 + 0.88 * (rib + start) / count) - np.pi / 2
        for side in (-1, 1):
            at = (84 * build * np.sin(turn), side * 132 * build * np.cos(turn))
            canvas.paint(canvas.ellipse(at, (5, 8), side * turn), random.uniform(500, 900))
            canvas.paint(canvas.ellipse(at, (2.5, 5), side * turn), 200.0)
