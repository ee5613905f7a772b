"""The model that ships with the package, as a challenger in a registry."""

import hashlib
import shutil

from pydantic import BaseModel

from flows import stores
from flows.lineage import CHOSEN_ON, PATIENTS, patient_tags
from hqinet.networks.hqinet import build
from hqinet.restoration.export import deployable, example_windows
from hqinet.restoration.starter import (
    RECIPE,
    exported_weights,
    required_starter,
    starter_envelope,
    starter_lineage,
)
from hqinet.training.recipe import load_recipe
from storage.models.registry import DatasetInputs
from storage.provenance import code_version


class AddedModel(BaseModel):
    """What `hqinet models add --json` prints."""

    model: int
    run: str


def add_starter() -> AddedModel:
    """Register the starter as a version, to be evaluated and judged as any other challenger.

    Its commit and digest are those of its file, for it was trained on no commit of this dataset.
    """
    file = required_starter()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    recipe = load_recipe(RECIPE)
    network = build(recipe.model, recipe.seed)
    network.load_state_dict(exported_weights(file))
    seen = starter_lineage()
    tags = {
        "commit": f"shipped-{digest[:12]}",
        "digest": digest,
        "recipe": RECIPE,
        "code_version": code_version(),
        **patient_tags(PATIENTS, seen.training_patients),
        **patient_tags(CHOSEN_ON, seen.validation_patients),
    }
    registry = stores.registry()
    run = registry.start(RECIPE, {}, DatasetInputs("the starter that ships with hqinet", 0, digest))
    folder = stores.scratch() / f"starter-{run}"
    folder.mkdir()
    try:
        envelope = folder / "envelope.json"
        envelope.write_text(starter_envelope().model_dump_json(by_alias=True, indent=1), "utf-8")
        registry.log_file(run, envelope)
    finally:
        shutil.rmtree(folder)
    version = registry.register(
        run, deployable(network, recipe.model), example_windows().numpy(), tags
    )
    registry.finish(run)
    return AddedModel(model=version, run=run)
