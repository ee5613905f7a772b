"""From slices to patients to cohorts: the patient is the unit of every number.

Tables are pandas frames. `per_slice` has one row a slice and image ("low" or "restored") with the
columns patient, anatomy, slice, image and one column a metric. A value that is not finite is left
out of every mean, and counted by reason in `left_out`.
"""

import numpy as np
import pandas as pd
from scipy import stats

KEYS = ["patient", "anatomy", "image"]
FEWEST = 2
"""Patients of which a mean has an interval."""
DRAWS = 5000
"""Samples of a bootstrap."""
POOLED = "all"
"""The row that pools patients of every anatomy; it never stands alone."""


def per_patient(per_slice: pd.DataFrame) -> pd.DataFrame:
    """Mean over each patient's finite slices: one row a patient and image, with its slice count."""
    finite = per_slice.replace([np.inf, -np.inf], np.nan)
    means = finite.drop(columns="slice").groupby(KEYS, sort=True).mean()
    counts = per_slice.groupby(KEYS, sort=True).size().rename("slices")
    return means.assign(slices=counts).reset_index()


def left_out(per_slice: pd.DataFrame) -> pd.DataFrame:
    """Slices that no mean holds: patient, image, metric, reason ("perfect" or "undefined"), slices.

    Perfect: the image equals the reference (PSNR is infinite). Undefined: nothing to measure.
    """
    long = per_slice.melt(id_vars=[*KEYS, "slice"], var_name="metric", value_name="value")
    long = long[~np.isfinite(long["value"])]
    reason = np.where(np.isposinf(long["value"]), "perfect", "undefined")
    keys = ["patient", "image", "metric", "reason"]
    return long.assign(reason=reason).groupby(keys).size().rename("slices").reset_index()


def summarise(patients: pd.DataFrame) -> pd.DataFrame:
    """Over patients, for each anatomy and pooled: mean, SD and 95 % bootstrap interval.

    Columns: anatomy, image, metric, patients, mean, sd, low, high. SD and interval are NaN for a
    single patient, who has neither.
    """
    long = patients.melt(id_vars=[*KEYS, "slices"], var_name="metric", value_name="value")
    long = pd.concat([long, long.assign(anatomy=POOLED)]).dropna(subset="value")
    rows = [
        {"anatomy": anatomy, "image": image, "metric": metric, **_describe(group)}
        for (anatomy, image, metric), group in long.groupby(["anatomy", "image", "metric"])["value"]
    ]
    return pd.DataFrame(
        rows, columns=["anatomy", "image", "metric", "patients", "mean", "sd", "low", "high"]
    )


def differences(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Patient by patient, ours less theirs: a frame indexed by patient with anatomy and metrics.

    Both are `per_patient` frames of one image each. Raises ValueError unless both hold the same
    patients, for means over different patients say nothing.
    """
    ours, theirs = (frame.set_index("patient").sort_index() for frame in (ours, theirs))
    if not ours.index.equals(theirs.index):
        odd = sorted(set(ours.index) ^ set(theirs.index))
        raise ValueError(
            f"patients on one side only: {', '.join(odd)}; evaluate both on one commit"
        )
    metrics = ours.columns.intersection(theirs.columns).drop(["anatomy", "image", "slices"])
    return (ours[metrics] - theirs[metrics]).assign(anatomy=ours["anatomy"])


def paired_tests(paired: pd.DataFrame) -> pd.DataFrame:
    """Paired tests over patients, for each anatomy and pooled: one row a metric.

    Columns: anatomy, metric, patients, mean, sd, low, high (95 % bootstrap of the mean), p
    (Wilcoxon signed rank, two-sided) and p_holm (Holm over the metrics of one anatomy).
    """
    tables = [
        _test_group(anatomy, group.drop(columns="anatomy"))
        for anatomy, group in [(POOLED, paired), *paired.groupby("anatomy")]
    ]
    return pd.concat(tables, ignore_index=True)


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean by a bootstrap over patients (BCa; Efron 1987).

    values: (n,) one a patient; NaN for fewer than FEWEST, the value itself where all are equal.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < FEWEST:
        return np.nan, np.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=DRAWS,
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def lower_bound(values: np.ndarray, confidence: float) -> float:
    """What the mean reaches or exceeds at a confidence in (0.5, 1), one-sided."""
    return mean_interval(values, 2 * confidence - 1)[0]


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p values; NaN stays NaN and is not counted as a test."""
    corrected = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    scaled = p[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def _describe(values: pd.Series) -> dict[str, float]:
    low, high = mean_interval(values.to_numpy())
    return {
        "patients": len(values),
        "mean": values.mean(),
        "sd": values.std(),
        "low": low,
        "high": high,
    }


def _test_group(anatomy: str, group: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for metric in group.columns:
        values = group[metric].dropna()
        if len(values):
            p = stats.wilcoxon(values).pvalue if values.any() else 1.0
            # One patient is no sample.
            p = p if len(values) > 1 else np.nan
            rows.append({"anatomy": anatomy, "metric": metric, **_describe(values), "p": p})
    table = pd.DataFrame(
        rows, columns=["anatomy", "metric", "patients", "mean", "sd", "low", "high", "p"]
    )
    return table.assign(p_holm=holm(table["p"].to_numpy(dtype=float)))
