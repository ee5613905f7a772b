import numpy as np
from PIL import Image

from hqinet.report.pictures import CAPTION, panel, save_curves


def test_curves_stay_small_however_many_patients_validate(tmp_path):
    history = [
        {"epoch": float(epoch), "train_loss": 1 / epoch, "val_psnr": 30.0 + epoch}
        | {f"val_gain.P{number}": 1.0 for number in range(200)}
        for epoch in (1, 2, 3)
    ]
    save_curves(history, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (800, 300)


def test_without_a_full_dose_a_panel_shows_what_was_removed():
    low = np.full((20, 30), 50, np.int16)
    page = np.asarray(panel(low, low - 100, None, "abdomen"))
    assert page.shape == (20 + CAPTION, 3 * 30)
    assert (page[CAPTION:, 60:] == 0).all()


def test_a_panel_shows_the_window_and_grey_where_nothing_differs():
    full = np.full((20, 30), 50.0)
    full[5:9] = 3000
    page = np.asarray(panel(full - 500, full, full, "abdomen"))
    assert page.shape == (20 + CAPTION, 4 * 30)
    low, restored, shown, difference = (page[CAPTION:, i * 30 : (i + 1) * 30] for i in range(4))
    assert (low[0] == 0).all()
    assert (restored == shown).all()
    assert (shown[5:9] == 255).all()
    assert 0 < shown[0, 0] < 255
    assert (difference == 127).all()
