"""The model that ships with the package, for whoever has no champion of their own."""

from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from hqinet.errors import HqinetError
from hqinet.restoration.envelope import Envelope
from hqinet.restoration.export import archived_weights

RECIPE = "starter"
"""Name of the recipe that it was trained by."""


class NoStarterError(HqinetError):
    """The package was built without its starter; one line that says what to do."""


_FOLDER = resources.files("hqinet.restoration").joinpath("starter_model")
CARD = Path(str(_FOLDER.joinpath("card.md")))
"""What it was trained on and what it can do, in words."""


def starter_file() -> Path | None:
    """The pt2 archive of the starter; None in a package that was built without it."""
    file = Path(str(_FOLDER.joinpath("starter.pt2")))
    return file if file.is_file() else None


def required_starter() -> Path:
    """The pt2 archive of the starter. Raises NoStarterError in a package without it."""
    file = starter_file()
    if file is None:
        raise NoStarterError(
            "this package ships no starter model: train one with `hqinet train --recipe starter`"
        )
    return file


class Lineage(BaseModel):
    """Whom the starter has seen, by their IDs in the collections that they are from."""

    model_config = ConfigDict(frozen=True)

    training_patients: list[str]
    validation_patients: list[str]


def starter_lineage() -> Lineage:
    """Whom it was trained on and chosen by."""
    return Lineage.model_validate_json(_FOLDER.joinpath("lineage.json").read_text("utf-8"))


def exported_weights(file: Path) -> dict[str, Tensor]:
    """The weights of the network in a pt2 archive, as `load_state_dict` takes them.

    A network with batch norm was exported with its norms folded, and takes none of them.
    """
    own = "network."
    state = archived_weights(file)
    return {name.removeprefix(own): x for name, x in state.items() if name.startswith(own)}


def starter_card() -> str:
    """What the starter was trained on and what it can do, in words."""
    return CARD.read_text("utf-8")


def starter_envelope() -> Envelope:
    """What the starter was trained on."""
    return Envelope.model_validate_json(_FOLDER.joinpath("envelope.json").read_text("utf-8"))
