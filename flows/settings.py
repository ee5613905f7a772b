"""One typed settings tree, read from HQINET_* variables; its parts are the flows' parameters.

*Where* things live (home, dataset, tracking server) comes from the environment alone, so that a
scheduled run and a run by hand on one machine meet in the same place. *What* to do is a flow's
parameter, so that Prefect's page shows it as a filled form.
"""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.errors import FlowError
from flows.operations.home import DEFAULT
from storage.dataset.splits import TARGETS, Split
from storage.dicom.limits import Limits

Device = Literal["auto", "cpu", "cuda", "mps"]
OTHER_VARIABLES = ("HQINET_FETCH_ENDPOINT", "HQINET_PSEUDONYM_KEY", "HQINET_REAL_DATA")
"""Read elsewhere: an option of `fetch`, the pseudonyms' secret, and the tests' data."""


class SettingsError(FlowError):
    """A variable HQINET_* that says nothing, or nothing possible; one line that names it."""


class Section(BaseModel):
    """A part of the tree: immutable, and no key is silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestSettings(Section):
    """How a cohort is read, checked and split."""

    cohort_file: Path | None = Field(
        None, description="TOML file that describes a delivery that the defaults do not."
    )
    simulate_dose: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Fraction of the full dose at which series without a low-dose partner get a "
        "simulated one.",
    )
    realisations: Annotated[int, Field(ge=1, le=16)] | None = Field(
        None, description="Simulated low doses of a series, which differ in their noise."
    )
    detector: Path | None = Field(
        None, description="Detector file (TOML) that doses are simulated with."
    )
    limits: Limits = Field(
        Limits(), description="How exact geometry must be, and how little is too little."
    )
    split_targets: dict[Split, Annotated[float, Field(ge=0)]] = Field(
        dict(TARGETS), description="Share of train, validation and test among the patients."
    )

    @field_validator("split_targets")
    @classmethod
    def _whole(cls, targets: dict[Split, float]) -> dict[Split, float]:
        if set(targets) != set(TARGETS) or not sum(targets.values()) > 0:
            raise ValueError(f"give a share to each of {', '.join(TARGETS)}, one above 0 at least")
        return targets

    retries: int = Field(
        2, ge=0, description="How often a pair is read again when a worker fails with it."
    )


class ClusterSettings(Section):
    """Where Dask runs."""

    where: str = Field(
        "local",
        description="`local`; the address of a scheduler, `tcp://...`; or the class of a cluster, "
        "as `dask_jobqueue.SLURMCluster` or `dask_kubernetes.operator.KubeCluster`.",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Worker processes; 0: one a core of this machine. A cluster's class needs 1 "
        "or more.",
    )
    memory: str = Field("2GiB", description="Memory of each local worker.")

    @field_validator("memory")
    @classmethod
    def _bytes(cls, memory: str) -> str:
        TypeAdapter(ByteSize).validate_python(memory)
        return memory

    arguments: dict[str, Any] = Field(
        {}, description="Arguments of the cluster's class, as its own documentation names them."
    )


class TrainSettings(Section):
    """How a training run uses the machine; what it learns is the recipe's business."""

    device: Device = Field("auto", description="Where to compute.")
    processes: int = Field(
        1, ge=1, description="Training processes on this machine; one for each GPU."
    )
    nodes: int = Field(1, ge=1, description="Machines that train together.")
    node: int = Field(0, ge=0, description="Which of them this is; 0, the first, opens the run.")
    rendezvous: str = Field(
        "", description="Where they meet, as `node0:29400`: the first machine, and a free port."
    )
    retries: int = Field(
        2, ge=0, description="How often a failed training task is taken up from its checkpoint."
    )

    @model_validator(mode="after")
    def _meeting(self) -> Self:
        if self.nodes > 1 and not re.fullmatch(r".+:\d+", self.rendezvous):
            raise ValueError("several nodes need a rendezvous, as `node0:29400`")
        if self.node >= self.nodes:
            raise ValueError(f"node {self.node} is none of {self.nodes}, which count from 0")
        return self


class EvaluateSettings(Section):
    """How volumes are restored and measured."""

    device: Device = Field("auto", description="Where to compute.")
    batch: int = Field(8, ge=1, description="Slices restored at once; bounds the memory.")


class DenoiseSettings(Section):
    """Which series are restored, by which model, and how much."""

    model: str = Field("champion", description="`champion`, a version number, or `starter`.")
    strength: float = Field(1.0, ge=0, le=1, description="Share of the change that is made.")
    dose: float | None = Field(
        None, gt=0, lt=1, description="Dose of the source over full dose; default: 0.25."
    )
    series: str | None = Field(
        None, description="Regular expression on SeriesDescription that chooses the series."
    )

    @field_validator("series")
    @classmethod
    def _expression(cls, series: str | None) -> str | None:
        try:
            re.compile(series or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return series

    cohort_file: Path | None = Field(
        None, description="TOML file that says how low and full dose are told apart."
    )
    strict: bool = Field(
        False, description="Refuse a series outside of what the model was trained on."
    )
    compress: Literal["jpeg-ls", "rle"] | None = Field(
        None, description="Lossless compression; default: explicit little endian."
    )
    keep_manufacturer: bool = Field(
        False, description="Leave the scanner's manufacturer, for sites that hang by vendor."
    )
    keep_private: bool = Field(False, description="Leave private attributes.")
    device: Device = Field("auto", description="Where to compute.")
    batch: int = Field(4, ge=1, description="Slices restored at once; bounds the memory.")


class ReceiveSettings(Section):
    """Who may send images, and when a study is complete."""

    enabled: bool = Field(False, description="Whether `hqinet up` starts the receiver, too.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0: all of them.")
    port: int = Field(11112, ge=0, lt=65536, description="TCP port; 0: any that is free.")
    ae_title: str = Field("HQINET", max_length=16, description="By which senders call it.")
    callers: list[str] = Field(
        [], description="AE titles of those who may send; none: anybody, on loopback only."
    )
    certificate: Path | None = Field(
        None, description="PEM file of the receiver's certificate; with it, DICOM comes by TLS."
    )
    key: Path | None = Field(None, description="PEM file of its key.")
    authority: Path | None = Field(
        None, description="PEM file of who must have signed the callers' certificates."
    )
    rules: Path | None = Field(None, description="TOML file: which series goes where.")
    quiet: float = Field(
        30, ge=0, description="Seconds without an image after which a study is complete."
    )


class SendSettings(Section):
    """Where restored series are sent."""

    destinations: Path | None = Field(
        None, description="TOML file: a table for each destination, a DICOM node or a web service."
    )
    restored: list[str] = Field(
        [], description="Names of the destinations of what the denoise inbox restores."
    )


class ServicesSettings(Section):
    """The services that `hqinet up` keeps running on one machine."""

    prefect_port: int = Field(
        4200, gt=0, lt=65536, description="Of Prefect's server; the next free one if it is taken."
    )
    mlflow_port: int = Field(
        5000, gt=0, lt=65536, description="Of MLflow's server; the next free one if it is taken."
    )
    lost_after: float = Field(
        75, ge=40, description="Seconds without a heartbeat after which a run is called crashed."
    )
    webhook: str = Field(
        "", description="URL that is told of failed, crashed, late and refused runs."
    )


class Settings(BaseSettings):
    """The whole tree. `HQINET_HOME=/data/ct HQINET_TRAIN__DEVICE=cpu` sets two of its leaves."""

    model_config = SettingsConfigDict(
        env_prefix="HQINET_", env_nested_delimiter="__", extra="ignore", frozen=True
    )

    home: Path = Field(DEFAULT, description="Everything that a run leaves lies under here.")
    dataset: str = Field("", description="Folder or object-store URL; default: HOME/dataset.")
    tracking_uri: str = Field("", description="MLflow server; default: a database under HOME.")
    model: str = Field("hqinet", description="Name of the registered model in MLflow.")
    recipe: str = Field("fast", description="Name or TOML file of the recipe that is trained.")
    policy: str = Field("default", description="Name or TOML file of the policy that judges.")
    ingest: IngestSettings = IngestSettings()
    cluster: ClusterSettings = ClusterSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    denoise: DenoiseSettings = DenoiseSettings()
    receive: ReceiveSettings = ReceiveSettings()
    send: SendSettings = SendSettings()
    services: ServicesSettings = ServicesSettings()

    @model_validator(mode="wrap")
    @classmethod
    def _by_variable(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - pydantic's own
        """Name the variable of each mistake, and refuse variables that no setting reads."""
        require_known_variables(os.environ)
        try:
            return handler(data)
        except ValidationError as error:
            problems = "; ".join(
                f"{variable(*row['loc'])}: {row['msg']} (got {row['input']!r})"
                for row in error.errors()
            )
            raise SettingsError(problems) from error

    @property
    def dataset_url(self) -> str:
        """Where the dataset lives."""
        return self.dataset or str(self.home.absolute() / "dataset")

    @property
    def runs(self) -> Path:
        """Training runs: one folder each, with checkpoint and curves."""
        return self.home.absolute() / "runs"

    @property
    def reports(self) -> Path:
        """Evaluation reports: one folder each."""
        return self.home.absolute() / "reports"

    @property
    def scratch(self) -> Path:
        """Volumes under construction and Dask's spill; safe to delete when nothing runs."""
        return self.home.absolute() / "scratch"


def variable(*path: str | int) -> str:
    """The variable of a setting: `train`, `device` is HQINET_TRAIN__DEVICE."""
    return "HQINET_" + "__".join(str(part).upper() for part in path)


def variables(section: type[BaseModel] = Settings, *path: str) -> Iterator[tuple[str, bool]]:
    """All variables that the settings read, and whether each is a table with keys of its own."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        yield variable(*path, name), get_origin(kind) is dict
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from variables(kind, *path, name)


def require_known_variables(environment: Mapping[str, str]) -> None:
    """Raise SettingsError for a variable HQINET_* that nothing reads, naming the nearest one."""
    known = {*(name for name, _ in variables()), *OTHER_VARIABLES}
    tables = tuple(f"{name}__" for name, table in variables() if table)
    for name in sorted(environment):
        if name.startswith("HQINET_") and name not in known and not name.startswith(tables):
            near = get_close_matches(name, known, n=1, cutoff=0.0)
            raise SettingsError(
                f"{name} is no setting: did you mean {near[0]}? (flows/settings.py has them all)"
            )
