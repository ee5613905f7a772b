"""Which model restores a series: resolved by name, brought to this machine, loaded once."""

import hashlib
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING

import torch

from flows import lineage, stores
from flows.compute.envelopes import ENVELOPE
from hqinet.devices import pick_device
from hqinet.networks.recipe import ModelRecipe
from hqinet.restoration.envelope import Envelope
from hqinet.restoration.export import load_built, load_exported
from hqinet.restoration.precision import Precision, mixed
from hqinet.restoration.restore import HUModel
from hqinet.restoration.starter import CARD, RECIPE, required_starter, starter_envelope
from hqinet.training.recipe import Recipe, load_recipe
from storage.models.versions import CHAMPION
from storage.provenance import code_version, is_exact

if TYPE_CHECKING:
    from storage.models.registry import Registry
    from storage.models.versions import ModelVersion

STARTER = "starter"
JOB = "run.json"
"""Artifact of a run that `hqinet train` made: what was trained, and by which recipe."""
_LOADED: dict[tuple[str, str, float | None, Precision], HUModel] = {}
_KEPT = 4
"""Of them: more than a run needs at once. An evaluation may have a dose for each patient."""
_LOADING = Lock()


@dataclass(frozen=True)
class UsedModel:
    """The model of a series, as it was resolved.

    Attributes:
        name: version number, or `starter`.
        identity: digest of its file.
        lineage: the way back to the training data.
        network: how this version of the project builds its network; None where another one made it.
    """

    name: str
    file: Path
    identity: str
    envelope: Envelope | None
    lineage: dict[str, str]
    network: ModelRecipe | None = None


class Models:
    """Resolves the model that was asked for, once a series, and brings its file to this machine.

    The file is there until `close`, and no longer than this object.
    """

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._used: dict[str, UsedModel] = {}
        self._folder = tempfile.TemporaryDirectory(dir=stores.scratch())

    def resolve(self) -> UsedModel:
        """The model now: an alias may move between two series.

        Raises:
            StorageError: there is none of that name, or the registry does not answer.
        """
        if self._asked == STARTER:
            return self._starter()
        registry = stores.registry()
        versions = registry.versions()
        if self._asked == CHAMPION and not any(CHAMPION in row.aliases for row in versions):
            return self._starter()
        version = registry.version(self._asked)
        name = str(version.version)
        if name not in self._used:
            folder = Path(self._folder.name) / name
            file = registry.model_file(version, folder)
            path = registry.fetch(version.run, ENVELOPE, folder)
            envelope = None if path is None else Envelope.model_validate_json(path.read_text())
            recipe = _recipe_of(registry, version, folder)
            self._used[name] = UsedModel(
                name,
                file,
                _digest(file),
                envelope,
                lineage.lineage_fields(version) | _digests(recipe, path),
                recipe.model if recipe and _is_of_this_code(version) else None,
            )
        return self._used[name]

    def close(self) -> None:
        """Remove the files that were brought here."""
        self._folder.cleanup()

    def _starter(self) -> UsedModel:
        file = required_starter()
        if STARTER not in self._used:
            recipe = load_recipe(RECIPE)
            stated = {"model": STARTER, "code_version": code_version()}
            stated |= _digests(recipe, CARD)
            self._used[STARTER] = UsedModel(
                STARTER, file, _digest(file), starter_envelope(), stated, recipe.model
            )
        return self._used[STARTER]


def _recipe_of(registry: "Registry", version: "ModelVersion", folder: Path) -> Recipe | None:
    """The recipe of a version; None where it was not trained here, or cannot be read any more."""
    file = registry.fetch(version.run, JOB, folder)
    if file is None:
        return None
    with suppress(ValueError, KeyError):
        return Recipe.model_validate(json.loads(file.read_text("utf-8"))["recipe"])
    return None


def _is_of_this_code(version: "ModelVersion") -> bool:
    """Whether the code that exported a version is the present one."""
    return version.tags.get("code_version") == code_version() and is_exact(code_version())


def _digests(recipe: Recipe | None, card: Path | None) -> dict[str, str]:
    """Of how a model was trained, and of what it says that it knows: its card, or its envelope."""
    found = {}
    if recipe is not None:
        found["recipe_digest"] = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
    if card is not None:
        found["card_digest"] = _digest(card)
    return found


def load(
    used: UsedModel, dose: float | None, device: str, precision: Precision = "float32"
) -> HUModel:
    """The model as a function from HU to HU; the latest stay loaded in this process."""
    key = used.identity, device, dose, precision
    with _LOADING:
        if key not in _LOADED:
            _LOADED[key] = _read(used, dose, pick_device(device), precision)
        loaded = _LOADED[key]
        while len(_LOADED) > _KEPT:
            del _LOADED[next(iter(_LOADED))]
        return loaded


def _read(
    used: UsedModel, dose: float | None, device: torch.device, precision: Precision
) -> HUModel:
    """The model from its file; in float32 where there is no other way of it."""
    built = None
    if used.network is not None:
        built = load_built(used.file, used.network, device, dose=dose)
    if built is None:
        return load_exported(used.file, device, dose=dose)
    return (mixed(built) if precision == "mixed" else None) or built


def load_ahead(model: str, dose: float | None, device: str) -> Thread:
    """Begin to load a model, which takes seconds, in a thread; what prevents it is raised later."""

    def prepare() -> None:
        models = Models(model)
        with suppress(Exception):
            load(models.resolve(), dose, device)

    thread = Thread(target=prepare)
    thread.start()
    return thread


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
