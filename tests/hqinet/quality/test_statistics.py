import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hqinet.quality import statistics


def slices(patient: str, anatomy: str, image: str, psnr: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient": patient,
            "anatomy": anatomy,
            "image": image,
            "slice": range(len(psnr)),
            "psnr": psnr,
        }
    )


def test_the_patient_is_the_unit_not_the_slice():
    table = pd.concat(
        [slices("A", "chest", "low", [10.0] * 100), slices("B", "chest", "low", [20.0])]
    )
    summary = statistics.summarise(statistics.per_patient(table))
    row = summary[summary["anatomy"] == "chest"].iloc[0]
    assert row["mean"] == 15
    assert row["patients"] == 2


def test_infinities_are_never_averaged_and_are_counted_by_reason():
    table = slices("A", "chest", "low", [10.0, np.inf, np.nan, 20.0])
    assert statistics.per_patient(table)["psnr"].item() == 15
    counted = statistics.left_out(table).set_index("reason")["slices"]
    assert counted.to_dict() == {"perfect": 1, "undefined": 1}


def test_anatomies_are_stated_apart_and_pooled():
    patients = statistics.per_patient(
        pd.concat([slices("A", "chest", "low", [10.0]), slices("B", "abdomen", "low", [30.0])])
    )
    summary = statistics.summarise(patients).set_index("anatomy")["mean"]
    assert summary.to_dict() == {"abdomen": 30, "all": 20, "chest": 10}


def test_a_single_patient_has_no_interval():
    summary = statistics.summarise(statistics.per_patient(slices("A", "chest", "low", [1.0])))
    assert summary[["sd", "low", "high"]].isna().all(axis=None)


def test_differences_refuse_other_patients():
    ours = statistics.per_patient(slices("A", "chest", "restored", [1.0]))
    theirs = statistics.per_patient(slices("B", "chest", "restored", [1.0]))
    with pytest.raises(ValueError, match="A, B"):
        statistics.differences(ours, theirs)


def test_paired_test_is_scipys_and_corrected_by_holm():
    random = np.random.default_rng(0)
    paired = pd.DataFrame(
        {
            "psnr": random.normal(1, 1, 12),
            "rmse": random.normal(0, 1, 12),
            "anatomy": "chest",
        }
    )
    result = statistics.paired_tests(paired)
    chest = result[result["anatomy"] == "chest"].set_index("metric")
    for name in ("psnr", "rmse"):
        assert chest.loc[name, "p"] == pytest.approx(stats.wilcoxon(paired[name]).pvalue)
    smaller, larger = sorted(chest["p"])
    assert sorted(chest["p_holm"]) == pytest.approx([min(2 * smaller, 1), max(larger, 2 * smaller)])


def test_the_interval_of_a_mean_covers_it():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        low, high = statistics.mean_interval(random.normal(5, 2, 25))
        covered += low <= 5 <= high
    assert 34 < covered <= 40


def test_an_interval_needs_two_patients_and_is_a_point_where_all_agree():
    assert np.isnan(statistics.mean_interval(np.array([3.0]))).all()
    assert statistics.mean_interval(np.array([3.0, 3.0, 3.0])) == (3.0, 3.0)


@settings(max_examples=15)
@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=8))
def test_a_lower_bound_lies_among_the_patients_and_falls_with_confidence(values):
    sure, surer = (statistics.lower_bound(np.array(values), level) for level in (0.8, 0.95))
    assert min(values) - 1e-9 <= surer <= sure + 1e-9 <= max(values) + 1e-8


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(values):
    p = np.array(values)
    corrected = statistics.holm(p)
    assert (corrected >= p - 1e-12).all()
    assert (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(p)]) >= -1e-12).all()
