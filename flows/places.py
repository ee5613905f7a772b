"""The stores of this machine, as the settings place them."""

from pathlib import Path

from flows.settings import Settings
from storage.dataset import Dataset
from storage.promotions import Promotions
from storage.registry import Registry


def dataset() -> Dataset:
    """The versioned dataset."""
    return Dataset(Settings().dataset_url)


def registry() -> Registry:
    """Runs and models."""
    server = Settings().tracking_uri
    if server:
        # Where a server keeps artifacts is its own business, and the same for all its users.
        return Registry(server, None)
    folder = Settings().home.absolute() / "mlflow"
    return Registry(f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri())


def promotions() -> Promotions:
    """The history of promotions."""
    return Promotions(dataset().location.child("promotions"))


def scratch() -> Path:
    """A folder for what is under construction."""
    folder = Settings().scratch
    folder.mkdir(parents=True, exist_ok=True)
    return folder
