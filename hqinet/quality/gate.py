"""The gate: whether a challenger may take the champion's place, rule by rule.

A pure judgement of per-patient tables against a typed policy; who asks, and what follows, is the
business of the flows. Every rule is always judged, so that a refusal names all of its reasons.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, field_validator

from hqinet.quality.evidence import Evidence
from hqinet.quality.metrics import METRICS
from hqinet.quality.policy import Policy
from hqinet.quality.reader_study import QUESTIONS
from hqinet.quality.statistics import FEWEST, differences, lower_bound


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
        _texture(policy, challenger),
        *(_observed(policy, question, challenger) for question in QUESTIONS),
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
        reason=f"patients judged on: {count}, required {policy.patients}",
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


def _texture(policy: Policy, challenger: Evidence) -> Outcome:
    """Noise that is left is to look like full dose's; blotches have a lower mean frequency."""
    rule, required = "texture of the noise left", f"within {policy.texture:.0%} of full dose's"
    measured = {
        patient: figures.texture
        for patient, figures in challenger.tasks.items()
        if figures.frequency["full"] is not None
    }
    if not measured:
        return Outcome(
            rule=rule,
            passed=True,
            figure=None,
            required=required,
            reason="no patient has neighbouring slices with a body to read noise from",
            applicable=False,
        )
    ratios = pd.Series(measured, dtype=float)
    if ratios.isna().any():
        return _unmeasured("the texture", challenger, ratios, rule, required)
    anatomy = challenger.image("restored").set_index("patient")["anatomy"]
    means = ratios.groupby(anatomy.reindex(ratios.index)).mean()
    worst = (means - 1).abs().idxmax()
    return Outcome(
        rule=rule,
        passed=bool(abs(means[worst] - 1) <= policy.texture),
        figure=means[worst],
        required=required,
        reason=f"the noise left in the {worst} has {means[worst]:.4f} of the mean frequency of "
        f"full dose's, allowed {1 - policy.texture:.2g} to {1 + policy.texture:.2g}",
    )


def _observed(policy: Policy, question: str, challenger: Evidence) -> Outcome:
    """Whether an observer is served no worse than by low dose, as far as places can tell."""
    least, study = policy.reader.of(question), challenger.study
    rule, required = f"{question} of lesions", f">= {least:g} of low dose's within 95 %"
    if question not in study.answers:
        return Outcome(
            rule=rule,
            passed=True,
            figure=None,
            required=required,
            reason=f"{study.places} places of soft tissue are too few for the observer",
            applicable=False,
        )
    ratio = study.answers[question].ratio
    if ratio.value is None or ratio.low is None or ratio.high is None:
        reason = f"{question} of lesions cannot be measured: the observer's index is not finite"
        return Outcome(rule=rule, passed=False, figure=None, required=required, reason=reason)
    return Outcome(
        rule=rule,
        passed=ratio.high >= least,
        figure=ratio.value,
        required=required,
        reason=f"{question} index is {ratio.value:.2f} of low dose's ({ratio.low:.2f} to "
        f"{ratio.high:.2f}) at {study.places} places of {study.patients} patients, required "
        f"{least:g}",
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
        reason = f"patients: {len(gain)}, too few for a confidence, which needs {FEWEST} or more"
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
