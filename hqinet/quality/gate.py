"""The gate: whether a challenger may take the champion's place, rule by rule.

A pure judgement of per-patient tables against a typed policy; who asks, and what follows, is the
business of the flows. Every rule is always judged, so that a refusal names all of its reasons.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hqinet.errors import HqinetError
from hqinet.quality.metrics import METRICS
from hqinet.quality.statistics import FEWEST, differences, lower_bound


class PolicyError(HqinetError):
    """A policy that cannot be read; the message is one line that says what to mend."""


class BiasLimits(BaseModel):
    """Largest mean HU bias of each tissue, either sign."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lung: float = Field(15.0, ge=0)
    fat: float = Field(10.0, ge=0)
    soft: float = Field(10.0, ge=0)
    bone: float = Field(30.0, ge=0)


class Policy(BaseModel):
    """What a challenger must show. Differences are signed so that more is better."""

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


class Outcome(BaseModel):
    """One rule's figure, what was required, and whether it passed."""

    model_config = ConfigDict(frozen=True)

    rule: str
    passed: bool
    figure: float | None
    """None where it is not defined."""
    required: str
    reason: str
    applicable: bool = True
    """False where the patients have nothing that the rule could be about; it then passes."""

    @property
    def word(self) -> str:
        """How people read it: pass, refuse, or not applicable."""
        if not self.applicable:
            return "not applicable"
        return "pass" if self.passed else "refuse"

    @field_validator("figure")
    @classmethod
    def _finite(cls, figure: float | None) -> float | None:
        return figure if figure is not None and np.isfinite(figure) else None


class Verdict(BaseModel):
    """The judgement of all rules; `passed` only if each one passed."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    outcomes: list[Outcome]
    judged: bool = True
    """False where an evaluation that it needs is missing."""

    def refused_for_want_of(self, evaluation: Outcome) -> "Verdict":
        """This verdict, refused because an evaluation that it needs is missing."""
        return Verdict(passed=False, outcomes=[*self.outcomes, evaluation], judged=False)

    @property
    def reasons(self) -> list[str]:
        """Why it was refused; empty for a pass."""
        return [outcome.reason for outcome in self.outcomes if not outcome.passed]


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


@dataclass(frozen=True)
class Evidence:
    """What an evaluation says of a version.

    patients: a `per_patient` frame with the images "low" and "restored".
    failures: why a patient could not be restored, by patient; the metrics are NaN there.
    simulated: patients whose low dose was simulated from the full dose.
    """

    patients: pd.DataFrame
    failures: Mapping[str, str] = field(default_factory=dict)
    simulated: frozenset[str] = frozenset()

    def image(self, name: str) -> pd.DataFrame:
        """The rows of one image."""
        return self.patients[self.patients["image"] == name]

    def why(self, patient: str) -> str:
        """Why a patient has no figure."""
        return self.failures.get(patient, "the metric is not defined there")


def judge(
    policy: Policy, challenger: Evidence, champion: Evidence | None, lineage: Mapping[str, Any]
) -> Verdict:
    """Judge a challenger.

    challenger, champion: of the same patients on the same commit; no champion: the gain is judged
    over low dose. A patient that the champion cannot restore is one that it loses.
    lineage: what the version says of its making; an empty value counts as missing.
    """
    outcomes = [
        _lineage(lineage),
        _enough(policy, challenger),
        _delivered(policy, challenger),
        _against_low(policy, challenger),
        *_bias(policy, challenger),
        *(
            [_first(policy, challenger)]
            if champion is None
            else _against_champion(policy, challenger, champion)
        ),
    ]
    return Verdict(passed=all(outcome.passed for outcome in outcomes), outcomes=outcomes)


def _lineage(lineage: Mapping[str, Any]) -> Outcome:
    missing = sorted(name for name, value in lineage.items() if value in ("", None, []))
    return Outcome(
        rule="lineage complete",
        passed=not missing,
        figure=len(missing),
        required="0 missing",
        reason=f"lineage lacks {', '.join(missing)}" if missing else "every tag is there",
    )


def _enough(policy: Policy, challenger: Evidence) -> Outcome:
    count = challenger.patients["patient"].nunique()
    return Outcome(
        rule="enough patients",
        passed=count >= policy.patients,
        figure=count,
        required=f">= {policy.patients}",
        reason=f"judged on {count} patients, required {policy.patients}",
    )


def _delivered(policy: Policy, challenger: Evidence) -> Outcome:
    """What noise a simulator makes is known to a model that was trained on it."""
    patients = set(challenger.patients["patient"])
    simulated = sorted(patients & challenger.simulated)
    count = len(patients) - len(simulated)
    word = "none" if not simulated else f"{len(simulated)} ({', '.join(simulated)})"
    return Outcome(
        rule="patients with a delivered low dose",
        passed=count >= policy.delivered_patients,
        figure=count,
        required=f">= {policy.delivered_patients}",
        reason=f"{count} patients with a low dose that was delivered; simulated dose: {word}",
    )


def _gain(policy: Policy, ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Difference in the primary metric, more is better: patient index, anatomy and gain."""
    paired = differences(ours, theirs)
    sign = 1 if METRICS[policy.primary].target == "high" else -1
    return pd.DataFrame({"anatomy": paired["anatomy"], "gain": sign * paired[policy.primary]})


def _gain_over_low(policy: Policy, challenger: Evidence) -> pd.Series:
    return _gain(policy, challenger.image("restored"), challenger.image("low"))["gain"]


def _against_low(policy: Policy, challenger: Evidence) -> Outcome:
    rule, required = "no patient worse than low dose", ">= 0"
    gain = _gain_over_low(policy, challenger)
    if gain.isna().any():
        return _unmeasured(policy.primary, challenger, gain, rule, required)
    worst = gain.idxmin()
    return Outcome(
        rule=rule,
        passed=bool(gain[worst] >= 0),
        figure=gain[worst],
        required=required,
        reason=f"worst is {worst}: {policy.primary} {gain[worst]:+.3f} against low dose",
    )


def _unmeasured(
    metric: str, evidence: Evidence, values: pd.Series, rule: str, required: str
) -> Outcome:
    """The outcome of a rule whose figure is not a number for some patients: it failed."""
    patients = sorted(values.index[values.isna()])
    reason = f"{metric} cannot be measured for {', '.join(patients)}: {evidence.why(patients[0])}"
    return Outcome(rule=rule, passed=False, figure=None, required=required, reason=reason)


def _bias(policy: Policy, challenger: Evidence) -> list[Outcome]:
    return [
        _bias_in(tissue, allowed, challenger)
        for tissue, allowed in policy.hu_bias.model_dump().items()
    ]


def _bias_in(tissue: str, allowed: float, challenger: Evidence) -> Outcome:
    """The rule of one tissue; not applicable only where no reference has any of it.

    The low-dose image of a patient has a figure exactly where the reference has the tissue.
    """
    rule, required, metric = f"HU bias in {tissue}", f"<= {allowed:g} HU", f"bias_{tissue}"
    low, restored = (challenger.image(name).set_index("patient") for name in ("low", "restored"))
    there = low.index[low[metric].notna()]
    if there.empty:
        return Outcome(
            rule=rule,
            passed=True,
            figure=None,
            required=required,
            reason=f"no patient's full dose has {tissue} to measure",
            applicable=False,
        )
    bias = restored.loc[there, metric].abs()
    if bias.isna().any():
        return _unmeasured(metric, challenger, bias, rule, required)
    of_anatomy = bias.groupby(restored.loc[there, "anatomy"]).mean()
    worst = of_anatomy.idxmax()
    return Outcome(
        rule=rule,
        passed=bool(of_anatomy[worst] <= allowed),
        figure=of_anatomy[worst],
        required=required,
        reason=f"bias in {tissue} of the {worst} is {of_anatomy[worst]:.1f} HU either way, "
        f"allowed {allowed:g}",
    )


def _first(policy: Policy, challenger: Evidence) -> Outcome:
    """Who has no champion to beat must still do something: low dose is its rival."""
    return _surely_gains(policy, challenger, _gain_over_low(policy, challenger), "low dose")


def _surely_gains(policy: Policy, evidence: Evidence, gain: pd.Series, rival: str) -> Outcome:
    rule = f"gain over {rival}"
    required = f">= {policy.margin:g} at confidence {policy.confidence:g}"
    if gain.isna().any():
        return _unmeasured(policy.primary, evidence, gain, rule, required)
    if len(gain) < FEWEST:
        reason = f"{len(gain)} patients are too few for a confidence: {FEWEST} or more are needed"
        return Outcome(rule=rule, passed=False, figure=None, required=required, reason=reason)
    sure = lower_bound(gain.to_numpy(), policy.confidence)
    return Outcome(
        rule=rule,
        passed=sure >= policy.margin,
        figure=sure,
        required=required,
        reason=f"{policy.primary} gains {gain.mean():+.3f} on average over {len(gain)} patients, "
        f"{sure:+.3f} at confidence {policy.confidence:g}, required {policy.margin:+g}",
    )


def _against_champion(policy: Policy, challenger: Evidence, champion: Evidence) -> list[Outcome]:
    """The rules of the rivalry, over the patients that the champion can restore."""
    gain = _gain(policy, challenger.image("restored"), champion.image("restored"))
    theirs = champion.image("restored").set_index("patient")[policy.primary]
    lost = sorted(theirs.index[theirs.isna()])
    beaten = [_beaten(champion, lost)] if lost else []
    gain = gain.drop(index=lost)
    if gain.empty:
        # There is nothing left to compare: who restores them at all is judged as the first one is.
        return [*beaten, _first(policy, challenger)]
    surely = _surely_gains(policy, challenger, gain["gain"], "the champion")
    if surely.figure is None:
        return [*beaten, surely]
    return [*beaten, surely, _worst_anatomy(policy, gain), _worst_patient(policy, gain)]


def _beaten(champion: Evidence, lost: list[str]) -> Outcome:
    return Outcome(
        rule="patients that the champion cannot restore",
        passed=True,
        figure=len(lost),
        required="counted for the challenger",
        reason=f"the champion loses on {', '.join(lost)}: {champion.why(lost[0])}",
    )


def _worst_anatomy(policy: Policy, gain: pd.DataFrame) -> Outcome:
    anatomies = gain.groupby("anatomy")["gain"].mean()
    anatomy = anatomies.idxmin()
    return Outcome(
        rule="no anatomy worse than the champion",
        passed=bool(anatomies[anatomy] >= -policy.anatomy_loss),
        figure=anatomies[anatomy],
        required=f">= {-policy.anatomy_loss:g}",
        reason=f"the {anatomy} changes by {anatomies[anatomy]:+.3f} in {policy.primary}, "
        f"allowed {-policy.anatomy_loss:g}",
    )


def _worst_patient(policy: Policy, gain: pd.DataFrame) -> Outcome:
    patient = gain["gain"].idxmin()
    return Outcome(
        rule="no patient worse than the champion",
        passed=bool(gain["gain"][patient] >= -policy.patient_loss),
        figure=gain["gain"][patient],
        required=f">= {-policy.patient_loss:g}",
        reason=f"{patient} changes by {gain['gain'][patient]:+.3f} in {policy.primary}, "
        f"allowed {-policy.patient_loss:g}",
    )
