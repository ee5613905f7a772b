"""Whether what scanners send has moved away from what a model was trained on."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from hqinet.restoration.envelope import Envelope

RECENT = 20
"""Latest series of a scanner that are looked at."""
FEWEST = 5
"""With fewer series than this, one odd patient would look like a trend."""
CHANGE = 1.25
"""Factor by which the share of noise that is removed may change, against the series before."""


class Observed(BaseModel):
    """What was measured of one restored series.

    Attributes:
        scanner: vendor and kernel.
        noise: median noise level of the input, HU.
        frequency: mean frequency of the input's noise, 1/mm; None: cannot be measured.
        removed: RMS of what was removed in the body, over the noise level.
    """

    model_config = ConfigDict(frozen=True)

    scanner: str
    noise: float
    frequency: float | None = None
    removed: float | None = None


def drift(series: Iterable[Observed], envelope: Envelope) -> list[str]:
    """What has drifted, one line a scanner and figure; series in the order of their restoration.

    A single series outside of the envelope is warned of when it is restored. Here more than half of
    a scanner's latest series must lie outside of the range that was trained on, without leeway, or
    the share of noise that is removed must have changed.
    """
    by_scanner: dict[str, list[Observed]] = defaultdict(list)
    for one in series:
        by_scanner[one.scanner].append(one)
    found = []
    for scanner, all_of_it in sorted(by_scanner.items()):
        latest, before = all_of_it[-RECENT:], all_of_it[:-RECENT]
        if len(latest) < FEWEST:
            continue
        lines = [
            _outside("input noise", [one.noise for one in latest], envelope.noise, "HU"),
            _outside(
                "mean frequency of the noise",
                [one.frequency for one in latest if one.frequency is not None],
                envelope.frequency,
                "1/mm",
            ),
            _changed([one.removed for one in latest], [one.removed for one in before]),
        ]
        found += [f"{scanner}: {line}" for line in lines if line is not None]
    return found


def _outside(
    what: str, values: Sequence[float], known: tuple[float, float] | None, unit: str
) -> str | None:
    if known is None or len(values) < FEWEST:
        return None
    middle = float(np.median(values))
    if known[0] <= middle <= known[1]:
        return None
    return (
        f"{what} {middle:.3g} {unit} (median of the latest {len(values)} series) is outside "
        f"{known[0]:.3g} to {known[1]:.3g} {unit}, which was trained on"
    )


def _changed(latest: Sequence[float | None], before: Sequence[float | None]) -> str | None:
    now, then = ([value for value in row if value is not None] for row in (latest, before))
    if len(now) < FEWEST or len(then) < FEWEST:
        return None
    ratio = float(np.median(now) / np.median(then))
    if 1 / CHANGE <= ratio <= CHANGE:
        return None
    return (
        f"{np.median(now):.0%} of the noise is removed from the latest {len(now)} series, "
        f"{np.median(then):.0%} before"
    )
