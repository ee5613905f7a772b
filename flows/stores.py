"""The stores of this machine, as the settings place them."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.settings import Settings
from storage.dataset.versions import Dataset
from storage.models.promotions import Promotions

if TYPE_CHECKING:
    from storage.models.registry import Registry


def dataset() -> Dataset:
    """The versioned dataset."""
    return Dataset(Settings().dataset_url)


def registry() -> "Registry":
    """Runs and models."""
    # MLflow takes seconds to import, which ingest and the dataset's commands need not wait for.
    from storage.models.registry import Registry  # noqa: PLC0415

    server = Settings().tracking_uri
    if server:
        # Where a server keeps artifacts is its own business, and the same for all its users.
        return Registry(server, None)
    folder = Settings().home.absolute() / "mlflow"
    return Registry(f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri())


def promotions() -> Promotions:
    """The history of promotions."""
    return Promotions(dataset().location.child("promotions"))


def memory() -> Path:
    """The folder for what ingest remembers between two deliveries."""
    return Settings().home.absolute() / "scan"


def scratch() -> Path:
    """A folder for what is under construction."""
    folder = Settings().scratch
    folder.mkdir(parents=True, exist_ok=True)
    return folder
