"""The model that ships: small, without pickled code, and better than what it is given."""

import io
import math
import zipfile

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hqinet.networks.hqinet import build
from hqinet.restoration.export import load_built, load_exported
from hqinet.restoration.starter import (
    RECIPE,
    exported_weights,
    starter_envelope,
    starter_file,
    starter_lineage,
)
from hqinet.training.recipe import load_recipe

LARGEST = 12e6


def slices(softness: float, dose: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft tissue with organs, and noise as a kernel correlates it: low and full dose, HU."""
    random = np.random.default_rng(seed)
    organs = 40 + 60 * (gaussian_filter(random.standard_normal((256, 256)), 12) > 0.01)
    organs = gaussian_filter(organs, 0.8)

    def noise(sd: float) -> np.ndarray:
        drawn = gaussian_filter(random.standard_normal((256, 256)), softness)
        return sd * drawn / drawn.std()

    full = organs + noise(12)
    low = full + noise(12 * math.sqrt(1 / dose - 1))
    return (torch.from_numpy(image).float() for image in (low, full))


@pytest.mark.parametrize("softness", [0.6, 1.0])
@pytest.mark.parametrize("dose", [0.1, 0.25])
def test_an_isolated_slice_comes_closer_to_full_dose(softness: float, dose: float) -> None:
    low, full = slices(softness, dose)
    model = load_built(starter_file(), load_recipe(RECIPE).model, dose=dose)
    restored = model(low.expand(1, 3, -1, -1).contiguous()).detach()[0, 0]
    before, after = (float((image - full).square().mean()) for image in (low, restored))
    assert 10 * math.log10(before / after) > 0.6 * 10 * math.log10(1 / dose)
    assert abs(float((restored - full).mean())) < 1
    # What it takes off of the noise is what full dose has not.
    taken = (low - restored).std() / (low - full).std()
    assert 0.7 < float(taken) < 1.05


def test_the_file_is_small_and_needs_no_pickled_code() -> None:
    file = starter_file()
    assert file.stat().st_size <= LARGEST
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith((".pt", ".pkl")):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def test_what_it_was_trained_on_is_stated() -> None:
    envelope = starter_envelope()
    assert envelope.patients == 17
    assert set(envelope.anatomies) == {"chest", "abdomen", "limb"}
    assert starter_file().with_name("card.md").is_file()


def test_its_network_as_it_is_built_now_gives_the_pixels_of_its_program() -> None:
    built = load_built(starter_file(), load_recipe(RECIPE).model, dose=0.1)
    program = load_exported(starter_file(), dose=0.1)
    windows = 40 + 30 * torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(built(windows), program(windows))


def test_its_weights_are_those_of_the_network_of_its_recipe() -> None:
    recipe = load_recipe(RECIPE)
    network = build(recipe.model, 0)
    network.load_state_dict(exported_weights(starter_file()))
    assert len(starter_lineage().training_patients) == starter_envelope().patients
    assert not set(starter_lineage().training_patients) & set(starter_lineage().validation_patients)
