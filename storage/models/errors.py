"""What MLflow raises, as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, UNAUTHENTICATED, ErrorCode

from storage.errors import RegistryError, UnavailableError


@contextmanager
def registry_errors() -> Iterator[None]:
    """Turn what MLflow raises into a RegistryError."""
    try:
        yield
    except MlflowException as error:
        raise refusal_of(error) from error


def missing_run(run: str, error: MlflowException) -> RegistryError:
    """The error of a run that is not there, if that is what MLflow says."""
    if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
        return RegistryError(
            f"no run {run!r}; `hqinet models` lists those that made a model, and the folder `runs` "
            "of the home is named after all of them"
        )
    return refusal_of(error)


def refusal_of(error: MlflowException) -> RegistryError:
    """Whatever else MLflow says."""
    if error.error_code == ErrorCode.Name(UNAUTHENTICATED):
        return RegistryError(
            "MLflow's server refuses the password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD as it knows them"
        )
    return UnavailableError(f"MLflow does not do what was asked: {str(error)[:300]}")
