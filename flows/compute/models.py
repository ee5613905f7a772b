"""Which model restores a series: resolved by name, brought to this machine, loaded once."""

import hashlib
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread

from flows import lineage, stores
from flows.compute.envelopes import ENVELOPE
from flows.errors import FlowError
from hqinet.devices import pick_device
from hqinet.restoration.envelope import Envelope
from hqinet.restoration.export import load_exported
from hqinet.restoration.restore import HUModel
from hqinet.restoration.starter import required_starter, starter_envelope
from storage.models.registry import CHAMPION
from storage.provenance import code_version

STARTER = "starter"
_LOADED: dict[tuple[str, str, float | None], HUModel] = {}
_LOADING = Lock()


class DenoiseError(FlowError):
    """A restoration that cannot begin; one line that says what to do."""


@dataclass(frozen=True)
class UsedModel:
    """The model of a series, as it was resolved.

    Attributes:
        name: version number, or `starter`.
        identity: digest of its file.
        lineage: the way back to the training data.
    """

    name: str
    file: Path
    identity: str
    envelope: Envelope | None
    lineage: dict[str, str]


class Models:
    """Resolves the model that was asked for, once a series, and keeps what it has loaded."""

    def __init__(self, asked: str, dose: float | None) -> None:
        self._asked, self._dose = asked, dose
        self._used: dict[str, UsedModel] = {}
        self._folder = tempfile.TemporaryDirectory(dir=stores.scratch())

    def resolve(self) -> UsedModel:
        """The model now: an alias may move between two series.

        Raises:
            DenoiseError: there is none of that name.
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
            stated = lineage.lineage_fields(version)
            self._used[name] = UsedModel(name, file, _digest(file), envelope, stated)
        return self._used[name]

    def load(self, used: UsedModel, device: str) -> HUModel:
        """The model as a function from HU to HU; loaded once in this process."""
        key = used.identity, device, self._dose
        with _LOADING:
            if key not in _LOADED:
                _LOADED[key] = load_exported(used.file, pick_device(device), dose=self._dose)
            return _LOADED[key]

    def _starter(self) -> UsedModel:
        file = required_starter()
        if STARTER not in self._used:
            stated = {"model": STARTER, "code_version": code_version()}
            self._used[STARTER] = UsedModel(
                STARTER, file, _digest(file), starter_envelope(), stated
            )
        return self._used[STARTER]


def load_ahead(model: str, dose: float | None, device: str) -> None:
    """Begin to load a model, which takes seconds, in a thread; what prevents it is raised later."""

    def load() -> None:
        models = Models(model, dose)
        with suppress(Exception):
            models.load(models.resolve(), device)

    Thread(target=load).start()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
