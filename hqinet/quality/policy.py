"""What a challenger must show, and what a restoration may remove, as typed TOML.

`default`, `demo`, or a file of one's own.
"""

import tomllib
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hqinet.errors import HqinetError
from hqinet.quality.metrics import METRICS
from hqinet.quality.removal import RemovalLimits


class PolicyError(HqinetError):
    """A policy that cannot be read; the message is one line that says what to mend."""


class BiasLimits(BaseModel):
    """Largest mean HU bias of each tissue, either sign."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lung: float = Field(15.0, ge=0)
    fat: float = Field(10.0, ge=0)
    soft: float = Field(10.0, ge=0)
    bone: float = Field(30.0, ge=0)


class ReaderLimits(BaseModel):
    """Least share of what an observer makes of low dose (`hqinet.quality.reader_study`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    detection: float = Field(1.0, ge=0)
    size: float = Field(0.95, ge=0)
    contrast: float = Field(0.95, ge=0)

    def of(self, question: str) -> float:
        """The limit of one of QUESTIONS."""
        return getattr(self, question)


class Policy(BaseModel):
    """What must be shown before an image is used. Differences are signed so that more is better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patients: int = Field(
        3,
        ge=2,
        description="Least number of patients to judge on; of one there is no confidence.",
    )
    delivered_patients: int = Field(
        0,
        ge=0,
        description="Least number of them whose low dose was delivered and not simulated here.",
    )
    primary: str = Field(
        "psnr", description="Metric that decides; a name in hqinet.quality.metrics.METRICS."
    )
    margin: float = Field(
        0.1,
        description="Least mean gain over the champion, or over low dose where there is none, in "
        "its unit.",
    )
    confidence: float = Field(
        0.9,
        gt=0.5,
        lt=1,
        description="That the true mean gain reaches the margin, by a bootstrap over patients.",
    )
    anatomy_loss: float = Field(
        0.1, ge=0, description="Most that the mean of any one anatomy may lose to the champion."
    )
    patient_loss: float = Field(
        0.5, ge=0, description="Most that any one patient may lose to the champion."
    )
    hu_bias: BiasLimits = Field(
        BiasLimits(),
        description="Largest mean HU bias of each tissue in any anatomy, either sign; a tissue "
        "that is not named keeps its default.",
    )

    texture: float = Field(
        0.1,
        ge=0,
        description="Most that the mean frequency of the noise left may differ from full dose's, "
        "as a fraction of it, on average over the patients of any anatomy.",
    )
    reader: ReaderLimits = Field(
        ReaderLimits(),
        description="Least index of an observer over that in low dose: refused where even the "
        "upper end of its 95 % interval stays below.",
    )
    removal: RemovalLimits = Field(
        RemovalLimits(),
        description="How much of what is removed from a series may differ from noise; it is "
        "quarantined where more does. A limit that is not named keeps its default.",
    )


def load_policy(name_or_path: str) -> Policy:
    """Read a policy: a name in hqinet/quality/policies or a TOML file. Raises PolicyError."""
    file = Path(name_or_path)
    if file.suffix != ".toml":
        file = Path(str(resources.files("hqinet.quality"))) / "policies" / f"{name_or_path}.toml"
    try:
        policy = Policy(**tomllib.loads(file.read_text()))
    except OSError:
        raise PolicyError(f"no policy {name_or_path!r}; give a name or a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise PolicyError(f"policy {file.name}: {' '.join(str(error).split())}") from None
    usable = [name for name, metric in METRICS.items() if metric.target in ("high", "low")]
    if policy.primary not in usable:
        raise PolicyError(f"policy {file.name}: primary {policy.primary!r} is none of {usable}")
    return policy
