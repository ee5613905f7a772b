import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import mutual_info_score

from hqinet.quality import metrics
from hqinet.quality.metrics import METRICS, Comparison, measure
from hqinet.quality.reference import WINDOWS, Reference, find_body, prepare_reference, window

SIZE = 96


def body(seed: int = 0, slices: int = 3) -> torch.Tensor:
    """A disc of muscle with lung, fat and bone in it, float32 HU."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    hu = np.where(np.hypot(y, x) < 40, 50.0, -1000.0)
    for centre, value in (((-15, -15), -850), ((15, -15), -90), ((-15, 15), 700)):
        hu[np.hypot(y - centre[0], x - centre[1]) < 11] = value
    return torch.tensor(hu + random.normal(0, 5, (slices, SIZE, SIZE)), dtype=torch.float32)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, Reference]:
    full = body()
    low = full + torch.randn(full.shape, generator=torch.Generator().manual_seed(1)) * 60
    return low, prepare_reference(full, low, "abdomen")


@pytest.fixture(scope="module")
def restored(pair) -> torch.Tensor:
    low, _ = pair
    return torch.from_numpy(ndimage.gaussian_filter(low.numpy(), (0, 0.8, 0.8)))


def unit(hu: torch.Tensor) -> np.ndarray:
    return (hu.double().numpy() + 1024) / 4095


def test_the_papers_metrics_match_plain_loops(pair, restored):
    _, reference = pair
    values = measure(restored, reference)
    for index in range(len(restored)):
        x, y = unit(restored[index]), unit(reference.full[index])
        assert values["l1"][index] == pytest.approx(np.abs(x - y).mean(), rel=1e-5)
        assert values["nmse"][index] == pytest.approx(((x - y) ** 2).sum() / (y**2).sum(), rel=1e-4)
        expected = peak_signal_noise_ratio(y, x, data_range=y.max())
        assert values["psnr"][index] == pytest.approx(expected, abs=1e-3)
        codes = [np.clip((z * 256).astype(int), 0, 255).ravel() for z in (x, y)]
        assert values["mi"][index] == pytest.approx(mutual_info_score(*codes), abs=2e-3)


@pytest.mark.parametrize("anatomy", ["chest", "abdomen", "head"])
def test_windowed_metrics_match_scikit_image(pair, restored, anatomy):
    low, _ = pair
    reference = prepare_reference(body(), low, anatomy)
    values = measure(restored, reference)
    level, width = WINDOWS[anatomy].level, WINDOWS[anatomy].width
    for index in range(len(restored)):
        x, y = (
            np.clip((z[index].double().numpy() - (level - 0.5)) / (width - 1) + 0.5, 0, 1)
            for z in (restored, reference.full)
        )
        mean, full = structural_similarity(y, x, data_range=1.0, full=True)
        assert values["ssim_window"][index] == pytest.approx(mean, abs=1e-4)
        inside = reference.regions["body"][index].numpy()[3:-3, 3:-3]
        assert values["ssim_window_body"][index] == pytest.approx(
            full[3:-3, 3:-3][inside].mean(), abs=1e-4
        )
        psnr = peak_signal_noise_ratio(y, x, data_range=1.0)
        assert values["psnr_window"][index] == pytest.approx(psnr, abs=1e-3)


def test_rmse_is_in_hu_and_holds_extremes(pair):
    _, reference = pair
    shifted = reference.full + 10
    shifted[:, 0, 0] = 30000
    expected = np.sqrt(
        (100 * (SIZE**2 - 1) + (1900 - reference.full[0, 0, 0].item()) ** 2) / SIZE**2
    )
    assert measure(shifted, reference)["rmse"][0] == pytest.approx(expected, rel=1e-3)
    assert measure(reference.full + 10, reference)["rmse_body"][0] == pytest.approx(10, rel=1e-3)


def test_bias_and_sd_of_each_tissue(pair):
    _, reference = pair
    image = reference.full.clone()
    offsets = {"lung": 20.0, "fat": -15.0, "soft": 5.0, "bone": -40.0}
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)) * 7
    for tissue, offset in offsets.items():
        assert reference.regions[tissue].any()
        image = torch.where(reference.regions[tissue], reference.full + offset + noise, image)
    values = measure(image, reference)
    for tissue, offset in offsets.items():
        assert values[f"bias_{tissue}"].numpy() == pytest.approx(offset, abs=2.0)
        assert values[f"sd_{tissue}"].numpy() == pytest.approx(7, rel=0.2)


def test_tissue_bins_do_not_feign_a_bias_from_noise():
    truth = body(slices=1) * 0 + 50
    generator = torch.Generator().manual_seed(3)
    full, low = (truth + torch.randn(truth.shape, generator=generator) * 30 for _ in range(2))
    assert abs(measure(low, prepare_reference(full, low, "abdomen"))["bias_soft"].item()) < 1.5


def test_noise_removed_and_its_likeness(pair):
    low, reference = pair
    half = (low + reference.full) / 2
    values = measure(half, reference)
    assert values["noise_removed"].numpy() == pytest.approx(0.75, abs=1e-4)
    assert values["noise_likeness"].numpy() == pytest.approx(1, abs=1e-4)
    assert measure(low, reference)["noise_removed"].numpy() == pytest.approx(0, abs=1e-6)


def test_blur_loses_edges_and_the_reference_keeps_them(pair):
    _, reference = pair
    blurred = torch.from_numpy(ndimage.gaussian_filter(reference.full.numpy(), (0, 2, 2)))
    assert measure(reference.full, reference)["edge_sharpness"].numpy() == pytest.approx(
        1, abs=1e-5
    )
    assert (measure(blurred, reference)["edge_sharpness"] < 0.7).all()


def test_a_perfect_slice_has_a_stated_result(pair):
    _, reference = pair
    values = measure(reference.full, reference)
    for name, metric in METRICS.items():
        if name.startswith("psnr"):
            assert torch.isposinf(values[name]).all(), name
        elif metric.target in ("low", "zero"):
            assert values[name].numpy() == pytest.approx(0, abs=1e-6), name
    assert values["ssim_window"].numpy() == pytest.approx(1, abs=1e-6)
    assert values["noise_removed"].numpy() == pytest.approx(1)


def test_an_empty_slice_is_undefined_and_never_infinite_elsewhere():
    air = torch.full((1, SIZE, SIZE), -1024.0)
    values = measure(air + 3, prepare_reference(air, air + 6, "chest"))
    for name in ("nmse", "rmse_body", "bias_lung", "sd_bone", "noise_removed", "edge_sharpness"):
        assert torch.isnan(values[name]).all(), name
    assert not any(torch.isinf(value).any() for name, value in values.items() if "psnr" not in name)


def test_a_nan_pixel_shows_in_the_slice_it_is_in(pair):
    low, reference = pair
    broken = low.clone()
    broken[1, 48, 48] = torch.nan
    assert torch.isnan(measure(broken, reference)["rmse"]).tolist() == [False, True, False]
    assert torch.isnan(measure(broken, reference)["mi"]).tolist() == [False, True, False]


def test_slices_do_not_touch_one_another(pair, restored):
    low, reference = pair
    together = measure(restored, reference)
    alone = measure(restored[1:2], prepare_reference(reference.full[1:2], low[1:2], "abdomen"))
    for name, value in alone.items():
        assert torch.allclose(value, together[name][1:2], atol=1e-5, equal_nan=True), name


def test_display_window_follows_dicom():
    hu = torch.tensor([-150.5, -150.0, 49.5, 249.0, 400.0])
    shown = window(hu, WINDOWS["abdomen"])
    assert shown.tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=2e-3)


def test_the_table_says_what_each_metric_is():
    for name, metric in METRICS.items():
        assert metric.unit
        assert metric.range
        assert metric.source
        assert callable(metric.function), name
    assert Comparison.__doc__
    assert metrics.__doc__


def test_air_as_reference_has_no_psnr():
    air = torch.full((1, SIZE, SIZE), -1024.0)
    assert torch.isnan(measure(air + 3, prepare_reference(air, air + 6, "chest"))["psnr"]).all()


def test_the_body_is_both_legs_and_no_table():
    y, x = np.mgrid[:SIZE, :SIZE]
    hu = np.full((1, SIZE, SIZE), -1000.0)
    left, right = (np.hypot(y - 40, x - column) < radius for column, radius in ((25, 18), (70, 14)))
    table = (y > 75) & (y < 82) & (x > 10)
    hu[0][left | right], hu[0][table] = 40, -80
    body = find_body(torch.tensor(hu, dtype=torch.float32))[0].numpy()
    assert (body & left).sum() > 0.9 * left.sum()
    assert (body & right).sum() > 0.9 * right.sum()
    assert not (body & table).any()


def test_a_fatty_leg_is_body_for_the_muscle_in_it():
    y, x = np.mgrid[:SIZE, :SIZE]
    hu = np.full((1, SIZE, SIZE), -1000.0)
    leg, fatty = (np.hypot(y - 40, x - column) < radius for column, radius in ((25, 18), (70, 14)))
    muscle = np.hypot(y - 40, x - 70) < 9
    hu[0][leg], hu[0][fatty], hu[0][muscle] = 40, -100, 50
    body = find_body(torch.tensor(hu, dtype=torch.float32))[0].numpy()
    assert (body & fatty).sum() > 0.9 * fatty.sum()


def test_foam_of_a_couch_is_no_lung():
    y, x = np.mgrid[:SIZE, :SIZE]
    hu = np.full((1, SIZE, SIZE), -1000.0)
    body = np.hypot(y - 35, x - 48) < 30
    lung = np.hypot(y - 35, x - 48) < 15
    foam = (y > 72) & (y < 92)
    hu[0][body], hu[0][lung], hu[0][foam] = 40, -800, -850
    full = torch.tensor(hu, dtype=torch.float32)
    found = prepare_reference(full, full, "chest").regions["lung"][0].numpy()
    assert found.sum() > 0.3 * lung.sum()
    assert not (found & foam).any()
