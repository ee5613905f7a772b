"""The home folder: everything that a run leaves lies under it, other tools' caches included."""

import os
from pathlib import Path

from flows.errors import FlowError

DEFAULT = Path("hqinet-home")


def environment(home: Path) -> dict[str, str]:
    """Variables that keep Prefect, MLflow, Dask, Matplotlib and torch inside `home`, and silent.

    They are read when those packages are imported, so they must stand in the environment before.
    """
    return {
        "HQINET_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # What training says of its feed, precision and resuming stands with the run on its page.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "hqinet",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # The least that Prefect takes, for whatever runs here: silence of a run is its death.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "DASK_CONFIG": str(home / "cache" / "dask"),
        "DASK_TEMPORARY_DIRECTORY": str(home / "scratch"),
        "MPLCONFIGDIR": str(home / "cache" / "matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "cache" / "torch"),
        "TRITON_CACHE_DIR": str(home / "cache" / "triton"),
    }


class HomeError(FlowError):
    """A folder that cannot be the home, or is none; one line that says what to do."""


def enter(home: Path) -> Path:
    """Make `home` the home of this process and its children; returns it as an absolute path.

    Raises:
        HomeError: its path has a sign that means something else in a database's URL.
    """
    home = home.expanduser().absolute()
    for sign in "%?":
        if sign in str(home):
            raise HomeError(f"home {home}: {sign!r} cannot stand in its path; choose another")
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(environment(home))
    return home


def require(home: Path) -> None:
    """Raise HomeError if there is no home here, for a verb that would only find it empty.

    With a dataset or a tracking server elsewhere, a home is a place to work in, and may be new.
    """
    elsewhere = {"HQINET_DATASET", "HQINET_TRACKING_URI"} & os.environ.keys()
    if not home.expanduser().is_dir() and not elsewhere:
        raise HomeError(
            f"there is no home {home.expanduser().absolute()}: check --home and HQINET_HOME; "
            "`hqinet ingest SOURCE` makes a home"
        )


FOLDERS = ("HQINET_DATASET",)
FILES = (
    *("HQINET_INGEST__COHORT_FILE", "HQINET_INGEST__DETECTOR", "HQINET_DENOISE__COHORT_FILE"),
    *("HQINET_RECEIVE__CERTIFICATE", "HQINET_RECEIVE__KEY", "HQINET_RECEIVE__AUTHORITY"),
    *("HQINET_RECEIVE__RULES", "HQINET_SEND__DESTINATIONS", "HQINET_RECIPE", "HQINET_POLICY"),
)
"""Settings that name a path, or a recipe or policy that is known by its name."""


def settle_paths() -> None:
    """Make relative paths in settings absolute: what they start runs in its home, not here."""
    for name in (*FOLDERS, *FILES):
        value = os.environ.get(name, "")
        is_path = "://" not in value if name in FOLDERS else Path(value).is_file()
        if value and is_path:
            os.environ[name] = str(Path(value).expanduser().absolute())


def inherit() -> None:
    """Take the home that the environment names, as a flow run started by a worker must."""
    home = Path(os.environ.get("HQINET_HOME", DEFAULT)).expanduser().absolute()
    for name, value in environment(home).items():
        os.environ.setdefault(name, value)
