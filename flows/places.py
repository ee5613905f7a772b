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
    places = Settings().home.absolute() / "mlflow"
    uri = Settings().tracking_uri or f"sqlite:///{places}/mlflow.db"
    return Registry(uri, (places / "artifacts").as_uri())


def promotions() -> Promotions:
    """The history of promotions."""
    return Promotions(dataset().location.child("promotions"))


def scratch() -> Path:
    """A folder for what is under construction."""
    folder = Settings().scratch
    folder.mkdir(parents=True, exist_ok=True)
    return folder
