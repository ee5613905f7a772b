"""Where a training begins: the weights of a model that there is, and whom that model has seen."""

import tempfile
from pathlib import Path

from torch import Tensor

from flows import lineage, stores
from hqinet.restoration.starter import (
    RECIPE,
    Lineage,
    exported_weights,
    required_starter,
    starter_lineage,
)


def weights_of(start: str) -> dict[str, Tensor]:
    """The weights of `starter`, or of the version of a number or alias.

    Raises RegistryError where there is no such version.
    """
    if start == RECIPE:
        return exported_weights(required_starter())
    registry = stores.registry()
    with tempfile.TemporaryDirectory(dir=stores.scratch()) as folder:
        return exported_weights(registry.model_file(registry.version(start), Path(folder)))


def seen_by(start: str) -> Lineage:
    """Whom that model was trained on and chosen by."""
    if start == RECIPE:
        return starter_lineage()
    version = stores.registry().version(start)
    return Lineage(
        training_patients=sorted(lineage.patients(version, lineage.PATIENTS) or ()),
        validation_patients=sorted(lineage.patients(version, lineage.CHOSEN_ON) or ()),
    )
