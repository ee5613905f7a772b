"""Drift is said of a scanner whose series have moved, and of no other."""

import pytest

from hqinet.restoration.drift import CHANGE, FEWEST, RECENT, Observed, drift
from hqinet.restoration.envelope import Envelope, SeriesFacts

FACTS = SeriesFacts(
    vendor="siemens",
    kernel="b30f",
    anatomy="abdomen",
    pixel=0.7,
    increment=3.0,
    matrix=512,
    noise=20.0,
    frequency=0.25,
)
ENVELOPE = Envelope.of([FACTS, FACTS.model_copy(update={"noise": 40.0, "frequency": 0.35})])
USUAL = Observed(scanner="siemens b30f", noise=30.0, frequency=0.3, removed=0.8)


def test_usual_series_have_not_drifted():
    assert drift([USUAL] * 50, ENVELOPE) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"noise": 45.0}, "siemens b30f: input noise 45 HU (median of the latest 20 series) is"),
        ({"noise": 15.0}, "is outside 20 to 40 HU, which was trained on"),
        ({"frequency": 0.4}, "mean frequency of the noise 0.4 1/mm"),
        ({"removed": 0.8 / CHANGE - 0.01}, "63% of the noise is removed from the latest 20 series"),
    ],
)
def test_a_scanner_that_moved_is_named_with_its_figure(change, says):
    other = USUAL.model_copy(update={"scanner": "ge standard"})
    moved = [USUAL.model_copy(update=change)] * RECENT
    (line,) = drift([*[USUAL] * 10, *[other] * 30, *moved], ENVELOPE)
    assert says in line


def test_half_of_the_series_and_a_few_of_them_are_no_drift():
    noisy = USUAL.model_copy(update={"noise": 60.0})
    assert drift([*[USUAL] * 11, *[noisy] * 9], ENVELOPE) == []
    assert drift([noisy] * (FEWEST - 1), ENVELOPE) == []


def test_what_is_not_measured_is_not_judged():
    blind = Observed(scanner="siemens b30f", noise=30.0)
    assert drift([blind] * 50, ENVELOPE) == []
    assert drift([USUAL] * 50, ENVELOPE.model_copy(update={"frequency": None})) == []
