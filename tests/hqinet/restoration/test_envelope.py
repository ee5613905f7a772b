"""What a model knows, and what lies outside of it: a line a reason."""

import numpy as np
import pytest

from hqinet.restoration.envelope import Envelope, SeriesFacts, measured_noise

KNOWN = SeriesFacts(
    vendor="siemens",
    kernel="b40f",
    anatomy="abdomen",
    pixel=0.7,
    increment=3.0,
    matrix=512,
    noise=30.0,
    frequency=0.25,
    spectrum=(0.2, 0.5, 0.3),
    thickness=3.0,
    highest=800.0,
    kvp=120.0,
    dose=0.25,
)
ENVELOPE = Envelope.of([KNOWN, KNOWN.model_copy(update={"pixel": 0.9, "noise": 60.0})])


def test_what_was_trained_on_is_inside_and_a_little_beyond_it_too():
    assert ENVELOPE.warnings(KNOWN) == []
    assert ENVELOPE.warnings(KNOWN.model_copy(update={"noise": 70.0, "pixel": 0.6})) == []
    assert Envelope.model_validate_json(ENVELOPE.model_dump_json(by_alias=True)) == ENVELOPE


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("vendor", "ge", "vendor 'ge' is not among those trained on (siemens)"),
        ("kernel", "b70f", "kernel 'b70f'"),
        ("anatomy", "head", "anatomy 'head'"),
        ("pixel", 2.0, "pixel size 2 mm is outside 0.7 to 0.9 mm"),
        ("increment", 0.5, "slice increment 0.5 mm"),
        ("matrix", 1024, "matrix 1.02e+03 pixels"),
        ("frequency", 0.5, "mean frequency of the noise 0.5 1/mm is outside 0.25 to 0.25 1/mm"),
        ("spectrum", (0.6, 0.2, 0.2), "40% of the noise lies at other frequencies than in the"),
        ("thickness", 1.0, "slice thickness 1 mm is outside 3 to 3 mm"),
        ("highest", 3000.0, "highest HU 3e+03 HU"),
        ("kvp", 110.0, "tube voltage 110 kV is outside 120 to 120 kV"),
        ("dose", 0.1, "dose 0.1 of full dose is outside 0.25 to 0.25 of full dose"),
        ("noise", 200.0, "noise level 200 HU is outside 30 to 60 HU"),
    ],
)
def test_what_is_outside_is_said_by_name(name, value, says):
    (warning,) = ENVELOPE.warnings(KNOWN.model_copy(update={name: value}))
    assert says in warning


def test_a_spectrum_is_compared_with_the_nearest_one():
    other = KNOWN.model_copy(update={"spectrum": (0.7, 0.2, 0.1)})
    both = Envelope.of([KNOWN, other])
    assert both.warnings(KNOWN) == both.warnings(other) == []
    assert both.warnings(KNOWN.model_copy(update={"spectrum": (0.6, 0.2, 0.2)})) == []


def test_the_noise_of_a_volume_is_measured():
    random = np.random.default_rng(0)
    volume = (40 + random.normal(0, 25, (20, 96, 96))).astype(np.int16)
    assert measured_noise(volume) == pytest.approx(25, rel=0.1)
    assert measured_noise(volume[:1]) == pytest.approx(25, rel=0.15)


def test_what_cannot_be_measured_or_was_not_is_not_judged():
    names = ["slice thickness", "mean frequency of the noise", "highest HU", "tube voltage"]
    names += ["dose", "noise spectrum"]
    fields = ("frequency", "spectrum", "thickness", "highest", "kvp", "dose")
    unknown = KNOWN.model_copy(update=dict.fromkeys(fields))
    assert ENVELOPE.warnings(unknown) == []
    assert ENVELOPE.unjudged(unknown) == names
    assert Envelope.of([unknown]).unjudged(KNOWN) == names
    assert ENVELOPE.unjudged(KNOWN) == []
    assert Envelope.of([unknown]).warnings(KNOWN) == []
    assert SeriesFacts(**KNOWN.model_dump() | {"frequency": float("nan")}).frequency is None


def test_an_envelope_of_schema_1_opens_and_does_not_judge_what_it_lacks():
    lacking = {"kvp", "dose", "thickness", "spectra"}
    old = ENVELOPE.model_dump(by_alias=True, exclude=lacking) | {"schema": 1}
    opened = Envelope.model_validate(old)
    assert opened.warnings(KNOWN.model_copy(update={"kvp": 80.0, "dose": 0.9})) == []
    assert opened.unjudged(KNOWN) == ["slice thickness", "tube voltage", "dose", "noise spectrum"]


def test_doses_that_training_draws_are_known():
    assert Envelope.of([KNOWN], (0.08, 0.5)).dose == (0.08, 0.5)


def test_words_that_say_nothing_are_no_knowledge():
    envelope = Envelope.of([KNOWN, KNOWN.model_copy(update={"vendor": "other"})])
    assert envelope.vendors == ("siemens",)
    assert "vendor 'other'" in envelope.warnings(KNOWN.model_copy(update={"vendor": "other"}))[0]
