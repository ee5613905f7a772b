"""Recipes: what the paper says, and what is refused with which hint."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from hqinet.training.recipe import LossRecipe, Recipe, RecipeError, load_recipe, recipe_names


def test_recipes_that_come_with_the_project() -> None:
    assert recipe_names() == ["demo", "fast", "paper", "redcnn", "starter"]
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_paper_is_the_papers_table_and_nothing_else() -> None:
    recipe = load_recipe("paper").model_dump()
    assert recipe == {
        "name": "paper",
        "seed": 0,
        "precision": "float32",
        "model": {
            "network": "hqinet",
            "estimates": "full",
            "width": 1.0,
            "stem_strides": (1, 2),
            "scse": "stage",
            "norm": "batch",
            "output": "direct",
            "init": "paper",
        },
        "loss": {
            "l1": 0.85,
            "mse": 0.0,
            "ssim": 0.15,
            "per_noise": False,
            "window": None,
        },
        "optimiser": {"learning_rate": 0.01, "weight_decay": 0.0, "clip": None, "ema": None},
        "schedule": {
            "epochs": 20,
            "steps_per_epoch": None,
            "decay": "constant",
            "warmup_steps": 0,
            "max_minutes": None,
            "validation_slices": None,
        },
        "sampling": {
            "batch": 88,
            "micro_batch": None,
            "patch": None,
            "patches_per_slice": 1,
            "balance": "slices",
            "flips": False,
            "dose": None,
            "mix_noise": False,
            "drop_neighbours": 0.0,
            "zoom": None,
            "kernels": None,
            "lesions": 0,
        },
    }


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("model.widht = 1", r"unknown key 'model.widht': did you mean 'width'\?"),
        ("sampling.batchsize = 8", r"unknown key 'sampling.batchsize': did you mean 'batch'\?"),
        ("shedule.epochs = 8", r"unknown key 'shedule': did you mean 'schedule'\?"),
        ("presicion = 'bf16'", r"unknown key 'presicion': did you mean 'precision'\?"),
        ("max_minutes = 2", r"'max_minutes': did you mean 'schedule.max_minutes'\?"),
        ("loss.epochs = 8", r"'loss.epochs': did you mean 'schedule.epochs'\?"),
        ("model.channels = 8", r"unknown key 'model.channels': did you mean '(?!model\.channels)"),
        ("schedule.epochs = 0", r"schedule.epochs: .*greater than 0 \(got 0\)"),
        ("model.norm = 'layer'", r"model.norm: .*'batch', 'group' or 'none' \(got 'layer'\)"),
        ("model.network = 'unet'", r"model: .*'hqinet', 'redcnn'"),
        ("sampling.micro_batch = 7", "batch must be a multiple of micro_batch"),
        ("sampling.dose = [1.0, 0.5]", "range"),
        ("sampling.kernels = [0.5, 2]", "need a patch"),
        ("loss.window = [40, 0]", "width must be above 1"),
        ("loss = { l1 = 0 }", "at least one of l1, mse and ssim"),
        ("optimiser.learning_rate = ", "not TOML"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(line: str, hint: str) -> None:
    base = "paper"
    lines = ["loss.ssim = 0", "loss.l1 = 0"] if line.startswith("loss = ") else [line]
    with pytest.raises(RecipeError, match=hint) as caught:
        load_recipe(base, *lines)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'fsat': did you mean 'fast'\?"):
        load_recipe("fsat")
    with pytest.raises(RecipeError, match=r"recipe file /nowhere/x.toml: No such file"):
        load_recipe("/nowhere/x.toml")


def test_own_file_is_named_after_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "loss.mse = 1\noptimiser.learning_rate = 0.1\nschedule.epochs = 1\n[sampling]\nbatch = 2\n"
        "[model]\nnetwork = 'redcnn'\n",
        encoding="utf-8",
    )
    recipe = load_recipe(str(file))
    assert (recipe.name, recipe.model.network) == ("mine", "redcnn")
    file.write_text("[model]\nwidth = 2\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"loss: Field required.*schedule: Field required"):
        load_recipe(str(file))


def test_overrides_change_their_key_alone() -> None:
    before = load_recipe("fast").model_dump()
    after = load_recipe("fast", "model.width = 0.25", "schedule.max_minutes = 15").model_dump()
    assert after["model"].pop("width") == 0.25
    assert after["schedule"].pop("max_minutes") == 15
    before["model"].pop("width")
    before["schedule"].pop("max_minutes")
    assert after == before


def test_recipes_survive_json_and_do_not_change() -> None:
    recipe = load_recipe("fast")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValidationError):
        recipe.model.width = 2


def test_window_in_normalised_intensity() -> None:
    low, high = LossRecipe(l1=1, window=(40, 400)).window_normalised()
    assert low * 4095 - 1024 == pytest.approx(-160)
    assert high * 4095 - 1024 == pytest.approx(239)
    assert LossRecipe(l1=1).window_normalised() == (0, 1)


@pytest.mark.parametrize(("recipe", "patch"), [("redcnn", 16), ("paper", 8)])
def test_a_patch_that_the_network_or_loss_cannot_take_is_refused(recipe: str, patch: int) -> None:
    with pytest.raises(RecipeError, match=f"sampling.patch must be .* not {patch}"):
        load_recipe(recipe, f"sampling.patch = {patch}")


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.toml"
    file.write_bytes(b"seed = \xff")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(str(file))
