"""MLflow: runs, registered model versions and their aliases."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import time_ns
from typing import Any

import mlflow
import numpy as np
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import (
    RESOURCE_ALREADY_EXISTS,
    ErrorCode,
)
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types.schema import Schema, TensorSpec

from storage.errors import RegistryError, UnavailableError
from storage.models.errors import missing_run, refusal_of, registry_errors
from storage.models.versions import (
    DATASET,
    LOGGED,
    MODEL,
    ModelVersion,
    Owner,
    model_version,
    require_own,
)
from storage.stores.servers import answers

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 3, -1, -1))]),
    outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 1, -1, -1))]),
)
"""HU in, HU out: three low-dose slices, the restored middle one, for any batch and matrix.

Without names: a server makes a dictionary of named tensors, which MLflow's PyTorch models refuse.
"""


@dataclass(frozen=True)
class DatasetInputs:
    """What a run read: the dataset's address, commit and digest of rows."""

    url: str
    commit: int
    digest: str


class Registry:
    """Runs and models on one tracking server or database.

    A registered model belongs to one dataset: on a server that several share, versions, aliases and
    champions of one are never taken for those of another.

    Public methods raise RegistryError where a run or version does not exist.
    """

    def __init__(
        self,
        tracking_uri: str,
        artifacts: str | None,
        name: str = MODEL,
        owner: Owner | None = None,
    ) -> None:
        """Connect to a tracking server.

        tracking_uri: `sqlite:///...` or a server. artifacts: where a new experiment puts its.
        name: of the registered model. owner: the dataset it is to belong to; None: whichever.
        """
        if tracking_uri.startswith("sqlite:///"):
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        # What matters is raised; the rest would fill the terminal at every run.
        for library in ("alembic", "mlflow"):
            logging.getLogger(library).setLevel(logging.ERROR)
        if tracking_uri.startswith("http"):
            _require_server(tracking_uri)
        mlflow.set_tracking_uri(tracking_uri)
        self._client = mlflow.MlflowClient(tracking_uri)
        self._artifacts = artifacts
        self._uri, self._name, self._owner = tracking_uri, name, owner

    def start(self, name: str, params: Mapping[str, Any], inputs: DatasetInputs) -> str:
        """Open a run and return its id.

        Raises RegistryError where the registered model belongs to another dataset: that is better
        known before a training than after.
        """
        self.versions()
        with registry_errors():
            run = self._client.create_run(self._experiment(), run_name=name)
        entries = [Param(key, str(value)) for key, value in params.items()]
        self._client.log_batch(run.info.run_id, params=entries)
        source = DeltaDatasetSource(path=inputs.url, delta_table_version=inputs.commit)
        dataset = Dataset(
            name=f"commit-{inputs.commit}",
            digest=inputs.digest[:36],
            source_type="delta_table",
            source=source.to_json(),
        )
        context = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(run.info.run_id, [DatasetInput(dataset, context)])
        self.tag_run(run.info.run_id, {"commit": str(inputs.commit), "digest": inputs.digest})
        return run.info.run_id

    def reopen(self, run: str) -> dict[str, str]:
        """Mark a run as running again, for a resumed training; returns its tags."""
        try:
            tags = self._client.get_run(run).data.tags
        except MlflowException as error:
            raise missing_run(run, error) from error
        self._client.update_run(run, status="RUNNING")
        return tags

    def tag_run(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with registry_errors():
            self._client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_metrics(
        self, run: str, rows: Iterable[tuple[int, Mapping[str, float]]], logged: str = ""
    ) -> None:
        """Write many steps' metrics in few requests; values that are not finite are left out.

        logged: of a ModelVersion, whose page then shows them too.
        """
        with registry_errors():
            now = time_ns() // 1_000_000
            metrics = [
                Metric(key, float(value), now, step, model_id=logged or None)
                for step, row in rows
                for key, value in row.items()
                if np.isfinite(value)
            ]
            for start in range(0, len(metrics), 1000):
                self._client.log_batch(run, metrics=metrics[start : start + 1000])

    @contextmanager
    def watch_system(self, run: str) -> Iterator[None]:
        """Log use of CPU, memory, disk and GPU to the run meanwhile."""
        monitor = SystemMetricsMonitor(run, resume_logging=True)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_file(self, run: str, path: Path, folder: str = "") -> None:
        """Store a file with the run."""
        with registry_errors():
            self._client.log_artifact(run, str(path), folder or None)

    def fetch(self, run: str, path: str, into: Path) -> Path | None:
        """Bring an artifact of a run to local disk; None where the run has none of that name."""
        parent = path.rpartition("/")[0] or None
        try:
            if path not in (entry.path for entry in self._client.list_artifacts(run, parent)):
                return None
        except MlflowException as error:
            raise missing_run(run, error) from error
        into.mkdir(parents=True, exist_ok=True)
        return Path(self._client.download_artifacts(run, path, str(into)))

    def finish(self, run: str, status: str = "FINISHED") -> None:
        """Close a run: FINISHED, FAILED or KILLED."""
        with registry_errors():
            self._client.set_terminated(run, status)

    def register(
        self, run: str, model: object, example: np.ndarray, tags: Mapping[str, str]
    ) -> int:
        """Register a torch module in pt2 form as the version of a run; returns its number.

        A run has one version: asked again, only its tags are completed.

        model: in eval mode on the CPU, mapping HU (n, 3, rows, columns) float32 to HU
        (n, 1, rows, columns). example: such an input with n >= 2, from which the graph is traced.
        """
        known = next((row.version for row in self.versions() if row.run == run), None)
        if known is not None:
            # Versions that were made before a tag was asked for get it now.
            self.tag_version(known, tags)
            return known
        from mlflow import pytorch  # noqa: PLC0415 - imports torch, which readers do not need

        with registry_errors(), mlflow.start_run(run_id=run):
            logged = pytorch.log_model(
                model,
                name="model",
                serialization_format="pt2",
                signature=SIGNATURE,
                input_example=example,
                pip_requirements=["torch"],
                # It would load the model and run the example, for seconds, to warn in a log.
                validate_serving_input=False,
            )
        self._create_model()
        # With its tags at once: no kill leaves a version without lineage.
        with registry_errors():
            created = self._client.create_model_version(
                self._name,
                logged.model_uri,
                run,
                tags={LOGGED: logged.model_id, **tags},
                model_id=logged.model_id,
            )
        return int(created.version)

    def versions(self) -> list[ModelVersion]:
        """All versions, newest first."""
        with registry_errors():
            found = self._client.search_model_versions(f"name = '{self._name}'")
        if not found:
            return []
        model = self._client.get_registered_model(self._name)
        aliases = {name: int(at) for name, at in model.aliases.items()}
        rows = [
            model_version(int(row.version), row.run_id, dict(row.tags), aliases) for row in found
        ]
        rows.sort(key=lambda row: -row.version)
        whose = f"{self._name!r} on {self._uri}"
        require_own(self._owner, model.tags, rows[0].tags, whose)
        return rows

    def version(self, which: str | int) -> ModelVersion:
        """The version of a number or alias, or the newest one for "latest"."""
        rows = self.versions()
        if not rows:
            raise RegistryError("no model is registered yet; train one with `hqinet train`")
        for row in rows:
            if which in ("latest", row.version, str(row.version)) or which in row.aliases:
                return row
        numbers = ", ".join(str(row.version) for row in rows)
        raise RegistryError(
            f"no model version {which!r}; there are {numbers} and the aliases of them"
        )

    def model_file(self, version: ModelVersion, into: Path) -> Path:
        """The version's pt2 archive on local disk, for `torch.export.load`."""
        into.mkdir(parents=True, exist_ok=True)
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{self._name}/{version.version}", dst_path=str(into)
        )
        return next(Path(folder).rglob("model.pt2"))

    def tag_version(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        with registry_errors():
            for key, value in tags.items():
                self._client.set_model_version_tag(self._name, str(version), key, value)

    def point(self, alias: str, version: int) -> None:
        """Move an alias to a version."""
        with registry_errors():
            self._client.set_registered_model_alias(self._name, alias, str(version))

    def _create_model(self) -> None:
        """Make the registered model, and let it say whose it is."""
        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise refusal_of(error) from error
            self.versions()
        if self._owner is not None:
            with registry_errors():
                self._client.set_registered_model_tag(self._name, DATASET, self._owner.identity)

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._name)
        if experiment is not None:
            return experiment.experiment_id
        return self._client.create_experiment(self._name, artifact_location=self._artifacts)


@cache
def _require_server(uri: str) -> None:
    """MLflow's own requests would be repeated for minutes, silently."""
    if not answers(uri):
        raise UnavailableError(
            f"no MLflow server answers at {uri}: start it, or see HQINET_TRACKING_URI"
        )
