"""A reader's tasks on patients whose truth is known: who removes noise, who smooths, who erases."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hqinet.quality.evaluation import measure_patient
from hqinet.quality.evidence import Evidence
from hqinet.quality.gate import judge
from hqinet.quality.policy import Policy
from hqinet.quality.reader_study import QUESTIONS, ask_observer
from hqinet.quality.statistics import per_patient
from hqinet.quality.tasks import LESIONS, Tasks, perform_tasks, put_in, smooth_places
from hqinet.restoration.restore import InferenceError, restore_to_file
from hqinet.samples.pairs import VolumePair

CPU = torch.device("cpu")
SPACING = (1.5, 1.5)
SIZE, SLICES = 160, 12
CLEAN = 40.0


def truth() -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    hu = np.where(np.hypot(x, y) < 0.9, CLEAN, -1000.0)
    for centre in (-0.5, 0.5):
        hu[np.hypot(x - centre, y) < 0.2] = 300
    return np.repeat(hu[None], SLICES, 0)


def patient(seed: int) -> VolumePair:
    """Full dose has white noise of 10 HU, low dose of 20: a quarter of the dose."""
    random = np.random.default_rng(seed)
    full = truth() + random.normal(0, 10, (SLICES, SIZE, SIZE))
    low = full + random.normal(0, 300**0.5, full.shape)
    return VolumePair(f"P{seed}", "abdomen", *(x.astype(np.int16) for x in (low, full)), 0.25)


def oracle(hu: Tensor) -> Tensor:
    """Knows the anatomy without lesions, and finds these where they are ten HU or more on average.

    Leaves a quarter of the noise, as the best restorer does.
    """
    middle = hu[:, 1:2]
    anatomy = torch.from_numpy(truth()[:1]).float()[None]
    rest = middle - anatomy
    wide = F.avg_pool2d(rest, 5, 1, 2, count_include_pad=False)
    found = torch.where(wide.abs() > 12, wide, 0.0)
    return anatomy + found + 0.25 * (rest - found)


def eraser(hu: Tensor) -> Tensor:
    """Returns the anatomy without lesions and a quarter of the noise, whatever it sees."""
    anatomy = torch.from_numpy(truth()[:1]).float()[None]
    noise = torch.randn(hu[:, 1:2].shape, generator=torch.Generator().manual_seed(0))
    return anatomy.expand_as(noise) + 5 * noise


def smoother(hu: Tensor) -> Tensor:
    return F.avg_pool2d(hu[:, 1:2], 5, 1, 2, count_include_pad=False)


def gentle(hu: Tensor) -> Tensor:
    """Smooths where neighbours are alike, as a sigma filter does: edges of high contrast stay."""
    middle, mean = hu[:, 1:2], smoother(hu)
    return torch.where((mean - middle).abs() < 90, mean, middle)


def tasks_of(model, tmp_path, seed: int = 0) -> Tasks:
    pair = patient(seed)
    restored = restore_to_file(model, pair.low, tmp_path / f"{seed}.npy")
    return perform_tasks(pair, restored, model, spacing=SPACING, device=CPU)


def test_who_removes_noise_gains_and_keeps_texture_edges_and_structure(tmp_path):
    found = tasks_of(oracle, tmp_path).figures
    assert 0.8 < found.share < 1.1
    assert found.texture == pytest.approx(1, abs=0.1)
    assert found.sharpness["bone"] == pytest.approx(1, abs=0.1)
    assert found.sharpness["lung"] is None, "there is no lung"
    assert found.fidelity["restored"] > found.fidelity["low"]
    assert found.invented < 0.9


def test_who_smooths_gains_in_noise_and_loses_in_texture_and_edges(tmp_path):
    found = tasks_of(smoother, tmp_path).figures
    assert found.texture < 0.7
    assert found.sharpness["bone"] < 0.7


def test_a_smoother_that_gains_in_psnr_is_refused(tmp_path):
    """Better in PSNR, worse for the reader."""
    pairs = [patient(seed) for seed in range(3)]
    slices, performed = [], {}
    for pair in pairs:
        restored = restore_to_file(gentle, pair.low, tmp_path / f"{pair.patient}.npy")
        slices.append(
            measure_patient(pair, restored, spacing=SPACING, device=CPU, batch=4).per_slice
        )
        performed[pair.patient] = perform_tasks(pair, restored, gentle, spacing=SPACING, device=CPU)
    evidence = Evidence(
        per_patient(pd.concat(slices)),
        tasks={name: tasks.figures for name, tasks in performed.items()},
        study=ask_observer(performed.values()),
    )
    wide = Policy(hu_bias={"bone": 500.0, "soft": 50.0})
    verdict = judge(wide, evidence, None, {"commit": "1"})
    words = {outcome.rule: outcome.word for outcome in verdict.outcomes}
    assert words["gain over low dose"] == words["no patient worse than low dose"] == "pass"
    assert words["detection of lesions"] == "refuse"
    assert not verdict.passed


def test_an_observer_sees_what_is_kept_and_not_what_is_erased(tmp_path):
    kept, erased = (
        ask_observer([tasks_of(model, tmp_path, seed) for seed in (0, 1)])
        for model in (oracle, eraser)
    )
    assert (kept.places, kept.patients) == (erased.places, 2)
    assert kept.places >= 100
    assert set(kept.answers) == set(QUESTIONS)
    detection = kept.answers["detection"]
    low, full = detection.index["low"], detection.index["full"]
    assert full.value > low.value > 1
    assert low.low < low.value < low.high
    assert detection.ratio.value > 0.8
    assert erased.answers["detection"].ratio.high < 0.5
    assert erased.human["detection"].ratio.high < 0.5
    # Half of the variance is the second observer's own, and it has fewer channels.
    ours, human = (of["detection"].index["low"].value for of in (kept.answers, kept.human))
    assert 0.4 * ours < human < 0.8 * ours
    assert abs(erased.answers["detection"].index["restored"].value) < 0.5


def test_in_white_noise_the_index_is_that_of_the_closed_form(tmp_path):
    """Of a signal that all channels together hold: its norm over the noise's SD."""
    study = ask_observer([tasks_of(oracle, tmp_path, seed) for seed in (0, 1)])
    side = round(28 / 1.5)
    axis = (np.arange(side) - (side - 1) / 2) * 1.5
    radius = np.hypot(axis[:, None], axis)
    shape = 40 / (1 + np.exp(np.clip((radius - 4) / 0.5, -50, 50)))
    found = study.answers["detection"].index["low"].value
    assert found == pytest.approx(np.sqrt((shape**2).sum()) / 20, rel=0.2)


def test_few_places_are_counted_and_not_judged():
    nothing = ask_observer([])
    assert (nothing.places, nothing.answers) == (0, {})


def test_places_hold_soft_tissue_and_do_not_overlap():
    full = torch.from_numpy(truth()[0]).float()
    places = list(smooth_places(full, 19))
    assert places
    covered = put_in(places, torch.ones(19, 19), (SIZE, SIZE))
    assert covered.max() == 1
    assert (full[covered > 0] == CLEAN).float().mean() > 0.99
    assert list(smooth_places(full, 8)) == [], "too coarse for a lesion"


def test_a_model_that_fails_with_lesions_is_said(tmp_path):
    def fails(hu: Tensor) -> Tensor:
        return hu[:, 1:2] * float("nan")

    pair = patient(0)
    with pytest.raises(InferenceError, match="slice 0 with lesions"):
        perform_tasks(pair, pair.low, fails, spacing=SPACING, device=CPU)


def test_the_first_kind_is_none():
    assert LESIONS["absent"][1] == 0
