"""The model that ships with the package, for whoever has no champion of their own."""

from importlib import resources
from pathlib import Path

from hqinet.restoration.envelope import Envelope

_FOLDER = resources.files("hqinet.restoration").joinpath("starter_model")


def starter_file() -> Path | None:
    """The pt2 archive of the starter; None in a package that was built without it."""
    file = Path(str(_FOLDER.joinpath("starter.pt2")))
    return file if file.is_file() else None


def starter_card() -> str:
    """What the starter was trained on and what it can do, in words."""
    return _FOLDER.joinpath("card.md").read_text("utf-8")


def starter_envelope() -> Envelope:
    """What the starter was trained on."""
    return Envelope.model_validate_json(_FOLDER.joinpath("envelope.json").read_text("utf-8"))
