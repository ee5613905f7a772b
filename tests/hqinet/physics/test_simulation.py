import numpy as np
import pytest
import torch
from skimage.transform import radon

from hqinet.physics import phantoms
from hqinet.physics.simulation import Scan, acquire, project

SIZE, PIXEL = 96, 4.0


def disc(hu: float = 0.0) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.arange(SIZE) - (SIZE - 1) / 2] * 2, indexing="ij")
    return torch.where(torch.hypot(y, x) < 30, hu, -1000.0)[None]


def image(dose: float, seed: int = 0, photons: float = 1e5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scan = Scan(photons=photons, views=120)
    return acquire(disc(), pixel=PIXEL, dose=dose, scan=scan, generator=generator)


CENTRE = (0, slice(38, 58), slice(38, 58))


def test_line_integrals_match_scikit_image():
    object_ = disc()[0] + 1000
    ours = project(object_[None], torch.tensor([0.0, torch.pi / 3]), 1.0)[0]
    theirs = radon(object_.numpy(), theta=[0, 60], circle=False, preserve_range=True)
    margin = (theirs.shape[0] - SIZE) // 2
    assert ours[0].sum() == pytest.approx(theirs[:, 0].sum(), rel=0.01)
    assert ours[0].numpy() == pytest.approx(theirs[margin : margin + SIZE, 0], abs=2500)


def test_water_reads_zero_hu():
    assert image(1.0, photons=1e9)[CENTRE].mean() == pytest.approx(0, abs=6)


def test_noise_follows_dose_as_its_inverse_root():
    clean = image(1.0, photons=1e9)
    quarter, full = ((image(dose) - clean)[CENTRE].std() for dose in (0.25, 1.0))
    assert quarter / full == pytest.approx(2, rel=0.25)


def test_a_seed_fixes_the_noise():
    assert torch.equal(image(0.5, seed=4), image(0.5, seed=4))
    assert not torch.equal(image(0.5, seed=4), image(0.5, seed=5))


@pytest.mark.parametrize("anatomy", ["chest", "abdomen"])
def test_phantoms_look_like_their_anatomy(anatomy):
    patient = phantoms.make(anatomy, seed=1, slices=4, size=64)
    assert patient.hu.shape == (4, 64, 64)
    assert patient.hu.dtype == np.float32
    share = {
        "lung": ((patient.hu > -950) & (patient.hu < -700)).mean(),
        "soft": (np.abs(patient.hu - 50) < 80).mean(),
        "bone": (patient.hu > 300).mean(),
    }
    assert share["soft"] > 0.05
    assert share["bone"] > 0.003
    assert (share["lung"] > 0.05) == (anatomy == "chest")


def test_phantoms_repeat_by_seed_and_differ_between_patients():
    one, same, other = (phantoms.make("chest", seed=s, slices=2, size=48).hu for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.abs(one - other).mean() > 5


def test_an_unknown_anatomy_is_named():
    with pytest.raises(ValueError, match="knee"):
        phantoms.make("knee", seed=0, slices=1, size=32)
