"""The gate: whether a challenger may take the champion's place, rule by rule.

A pure judgement of per-patient tables against a typed policy; who asks, and what follows, is the
business of the flows. Every rule is always judged, so that a refusal names all of its reasons.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hqinet.errors import HqinetError
from hqinet.quality.metrics import METRICS
from hqinet.quality.statistics import bootstrap_means, differences


class PolicyError(HqinetError):
    """A policy that cannot be read; the message is one line that says what to mend."""


class Policy(BaseModel):
    """What a challenger must show. Differences are signed so that more is better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patients: int = Field(1, ge=1, description="Least number of patients to judge on.")
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
        description="Share of bootstrap samples of patients that gain the margin.",
    )
    anatomy_loss: float = Field(
        0.1, ge=0, description="Most that the mean of any one anatomy may lose to the champion."
    )
    patient_loss: float = Field(
        0.5, ge=0, description="Most that any one patient may lose to the champion."
    )
    hu_bias: dict[Literal["lung", "fat", "soft", "bone"], float] = Field(
        {"lung": 15.0, "fat": 10.0, "soft": 10.0, "bone": 30.0},
        description="Largest mean HU bias of each tissue in any anatomy, either sign.",
    )


class Outcome(BaseModel):
    """One rule's figure, what was required, and whether it passed."""

    model_config = ConfigDict(frozen=True)

    rule: str
    passed: bool
    figure: float | None
    """None where it is not defined."""
    required: str
    reason: str

    @field_validator("figure")
    @classmethod
    def _finite(cls, figure: float | None) -> float | None:
        return figure if figure is not None and np.isfinite(figure) else None


class Verdict(BaseModel):
    """The judgement of all rules; `passed` only if each one passed."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    outcomes: list[Outcome]

    def refused_by(self, outcome: Outcome) -> "Verdict":
        """This verdict with one more rule, which failed."""
        return Verdict(passed=False, outcomes=[*self.outcomes, outcome])

    @property
    def judged(self) -> bool:
        """Whether there was anything to judge; False where an evaluation is missing."""
        return len(self.outcomes) > 1

    @property
    def reasons(self) -> list[str]:
        """Why it was refused; empty for a pass."""
        return [outcome.reason for outcome in self.outcomes if not outcome.passed]


def load_policy(name_or_path: str) -> Policy:
    """Read a policy: a name in hqinet/policies or a TOML file. Raises PolicyError."""
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


def judge(
    policy: Policy,
    challenger: pd.DataFrame,
    champion: pd.DataFrame | None,
    lineage: dict[str, Any],
) -> Verdict:
    """Judge a challenger.

    challenger, champion: `per_patient` frames with the images "low" and "restored", of the same
    patients on the same commit; no champion: the gain is judged over low dose.
    lineage: what the version says of its making; an empty value counts as missing.
    """
    outcomes = [
        _lineage(lineage),
        _enough(policy, challenger),
        _against_low(policy, challenger),
        *_bias(policy, challenger),
        *(
            _against_champion(policy, challenger, champion)
            if champion is not None
            else [_first(policy, challenger)]
        ),
    ]
    return Verdict(passed=all(outcome.passed for outcome in outcomes), outcomes=outcomes)


def _lineage(lineage: dict[str, Any]) -> Outcome:
    missing = sorted(name for name, value in lineage.items() if value in ("", None, []))
    return Outcome(
        rule="lineage complete",
        passed=not missing,
        figure=len(missing),
        required="0 missing",
        reason=f"lineage lacks {', '.join(missing)}" if missing else "every tag is there",
    )


def _enough(policy: Policy, challenger: pd.DataFrame) -> Outcome:
    count = challenger["patient"].nunique()
    return Outcome(
        rule="enough patients",
        passed=count >= policy.patients,
        figure=count,
        required=f">= {policy.patients}",
        reason=f"judged on {count} patients, required {policy.patients}",
    )


def _gain(policy: Policy, ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Difference in the primary metric, more is better: patient index, anatomy and gain."""
    paired = differences(ours, theirs)
    target = METRICS[policy.primary].target
    sign = 1 if target == "high" else -1
    return pd.DataFrame({"anatomy": paired["anatomy"], "gain": sign * paired[policy.primary]})


def _gain_over_low(policy: Policy, challenger: pd.DataFrame) -> pd.Series:
    return _gain(policy, _images(challenger, "restored"), _images(challenger, "low"))["gain"]


def _images(table: pd.DataFrame, image: str) -> pd.DataFrame:
    return table[table["image"] == image]


def _against_low(policy: Policy, challenger: pd.DataFrame) -> Outcome:
    rule, required = "no patient worse than low dose", ">= 0"
    gain = _gain_over_low(policy, challenger)
    if gain.isna().any():
        return _unmeasured(policy, gain, rule, required)
    worst = gain.idxmin()
    return Outcome(
        rule=rule,
        passed=bool(gain[worst] >= 0),
        figure=gain[worst],
        required=required,
        reason=f"worst is {worst}: {policy.primary} {gain[worst]:+.3f} against low dose",
    )


def _unmeasured(policy: Policy, gain: pd.Series, rule: str, required: str) -> Outcome:
    patients = ", ".join(sorted(gain.index[gain.isna()]))
    reason = f"{policy.primary} cannot be measured for {patients}"
    return Outcome(rule=rule, passed=False, figure=None, required=required, reason=reason)


def _bias(policy: Policy, challenger: pd.DataFrame) -> list[Outcome]:
    restored = _images(challenger, "restored").groupby("anatomy")
    outcomes = []
    for tissue, allowed in policy.hu_bias.items():
        bias = restored[f"bias_{tissue}"].apply(lambda patients: patients.abs().mean()).dropna()
        if bias.empty:
            continue
        worst = bias.idxmax()
        outcomes.append(
            Outcome(
                rule=f"HU bias in {tissue}",
                passed=bool(bias[worst] <= allowed),
                figure=bias[worst],
                required=f"<= {allowed:g} HU",
                reason=f"bias in {tissue} of the {worst} is {bias[worst]:.1f} HU either way, "
                f"allowed {allowed:g}",
            )
        )
    return outcomes


def _first(policy: Policy, challenger: pd.DataFrame) -> Outcome:
    """Who has no champion to beat must still do something: low dose is its rival."""
    return _surely_gains(policy, _gain_over_low(policy, challenger), "low dose")


def _surely_gains(policy: Policy, gain: pd.Series, rival: str) -> Outcome:
    rule = f"gain over {rival}"
    required = f">= {policy.margin:g} at confidence {policy.confidence:g}"
    if gain.isna().any():
        return _unmeasured(policy, gain, rule, required)
    sure = float(np.quantile(bootstrap_means(gain.to_numpy()), 1 - policy.confidence))
    return Outcome(
        rule=rule,
        passed=sure >= policy.margin,
        figure=sure,
        required=required,
        reason=f"{policy.primary} gains {gain.mean():+.3f} on average over {len(gain)} patients, "
        f"{sure:+.3f} at confidence {policy.confidence:g}, required {policy.margin:+g}",
    )


def _against_champion(
    policy: Policy, challenger: pd.DataFrame, champion: pd.DataFrame
) -> list[Outcome]:
    gain = _gain(policy, _images(challenger, "restored"), _images(champion, "restored"))
    surely = _surely_gains(policy, gain["gain"], "the champion")
    if surely.figure is None:
        return [surely]
    anatomies = gain.groupby("anatomy")["gain"].mean()
    anatomy, patient = anatomies.idxmin(), gain["gain"].idxmin()
    return [
        surely,
        Outcome(
            rule="no anatomy worse than the champion",
            passed=bool(anatomies[anatomy] >= -policy.anatomy_loss),
            figure=anatomies[anatomy],
            required=f">= {-policy.anatomy_loss:g}",
            reason=f"the {anatomy} changes by {anatomies[anatomy]:+.3f} in {policy.primary}, "
            f"allowed {-policy.anatomy_loss:g}",
        ),
        Outcome(
            rule="no patient worse than the champion",
            passed=bool(gain["gain"][patient] >= -policy.patient_loss),
            figure=gain["gain"][patient],
            required=f">= {-policy.patient_loss:g}",
            reason=f"{patient} changes by {gain['gain'][patient]:+.3f} in {policy.primary}, "
            f"allowed {-policy.patient_loss:g}",
        ),
    ]
