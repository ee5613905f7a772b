"""The stores of this machine, as the settings place them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flows.operations import services
from flows.settings import Settings
from storage.dataset.versions import Dataset
from storage.errors import DatasetError
from storage.models.promotions import Promotions

if TYPE_CHECKING:
    from storage.dicom.index import SeriesIndex
    from storage.models.registry import Registry
    from storage.models.versions import ModelVersion, Owner


def dataset() -> Dataset:
    """The versioned dataset."""
    return Dataset(Settings().dataset_url)


def registry() -> "Registry":
    """Runs and models."""
    # MLflow takes seconds to import, which ingest and the dataset's commands need not wait for.
    from storage.models.registry import Registry  # noqa: PLC0415

    settings = Settings()
    uri = settings.tracking_uri or f"sqlite:///{settings.home.absolute()}/mlflow/mlflow.db"
    # Where a server keeps artifacts is its own business, and the same for all its users. Those of
    # a database lie beside it: MLflow would put them into the folder that it happens to run in.
    database = uri.removeprefix("sqlite:///")
    beside = None if database == uri else (Path(database).absolute().parent / "artifacts").as_uri()
    return Registry(uri, beside, settings.model, owner())


def versions() -> "list[ModelVersion]":
    """All model versions, newest first; where a server has them, in half the time of `registry`."""
    # httpx takes as long to import as all that `dataset show` needs.
    from storage.models.versions import served_versions  # noqa: PLC0415

    server = _tracking_server()
    served = None if server is None else served_versions(server, Settings().model, owner())
    return registry().versions() if served is None else served


def owner() -> "Owner | None":
    """The dataset whose models these are; None where there is none yet."""
    from storage.models.versions import Owner  # noqa: PLC0415 - as above

    ours = dataset()

    def knows(tags: Mapping[str, str]) -> bool:
        try:
            return ours.snapshot(int(tags["commit"])).digest == tags["digest"]
        except (DatasetError, KeyError, ValueError):
            return False

    try:
        return Owner(ours.identity, knows)
    except DatasetError:
        return None


def _tracking_server() -> str | None:
    """The MLflow server that the settings name, or that `hqinet up` keeps running."""
    settings = Settings()
    if settings.tracking_uri:
        return settings.tracking_uri if settings.tracking_uri.startswith("http") else None
    running = services.read(settings.home)
    return running.mlflow or None if running is not None and running.is_up else None


def promotions() -> Promotions:
    """The history of promotions."""
    return Promotions(dataset().location.child("promotions"))


def restored() -> "SeriesIndex":
    """The derived series that this home has made."""
    # pydicom takes half a second to import, which few commands need.
    from storage.dicom.index import SeriesIndex  # noqa: PLC0415

    return SeriesIndex(Settings().home.absolute() / "restored")


def refused() -> "SeriesIndex":
    """What was measured of series that were not restored, since no model of ours knows such."""
    from storage.dicom.index import SeriesIndex  # noqa: PLC0415 - as above

    return SeriesIndex(Settings().home.absolute() / "refused")


def memory() -> Path:
    """The folder for what ingest remembers between two deliveries."""
    return Settings().home.absolute() / "scan"


def precisions() -> Path:
    """The folder for what was measured of models on machines."""
    return Settings().home.absolute() / "precision"


def announced() -> Path:
    """The folder for what was told of datasets."""
    return Settings().home.absolute() / "announced"


def scratch() -> Path:
    """A folder for what is under construction."""
    folder = Settings().scratch
    folder.mkdir(parents=True, exist_ok=True)
    return folder
