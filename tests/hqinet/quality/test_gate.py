import json

import pandas as pd
import pytest

from hqinet.quality import gate
from hqinet.quality.evidence import Evidence
from hqinet.quality.gate import Verdict
from hqinet.quality.policy import Policy, PolicyError, load_policy
from hqinet.quality.reader_study import Answer, Estimate, ReaderStudy
from hqinet.quality.reference import TISSUES
from hqinet.quality.removal import RemovalLimits
from hqinet.quality.tasks import TaskFigures

LINEAGE = {"commit": "1", "digest": "d", "recipe": "fast", "training_patients": '["A"]'}
POLICY = Policy(primary="psnr", margin=0.1, confidence=0.9)


def table(gains: dict[str, float], anatomy: str = "chest", **bias: float) -> pd.DataFrame:
    """Patients at 30 dB low dose, restored with the gains given."""
    rows = []
    for patient, gain in gains.items():
        for image, psnr in (("low", 30.0), ("restored", 30.0 + gain)):
            rows.append(
                {"patient": patient, "anatomy": anatomy, "image": image, "slices": 9, "psnr": psnr}
                | {f"bias_{tissue}": bias.get(tissue, 0.0) for tissue in TISSUES}
            )
    return pd.DataFrame(rows)


def judge(
    policy: Policy,
    challenger: pd.DataFrame | Evidence,
    champion: pd.DataFrame | Evidence | None,
    lineage: dict[str, str],
) -> Verdict:
    """The gate on bare tables."""
    of = [
        Evidence(side) if isinstance(side, pd.DataFrame) else side
        for side in (challenger, champion)
    ]
    return gate.judge(policy, *of, lineage)


def failed(verdict: Verdict) -> set[str]:
    return {outcome.rule for outcome in verdict.outcomes if not outcome.passed}


GOOD = {"A": 2.0, "B": 3.0, "C": 2.5, "D": 2.2}


def plus(gain: float, **other: float) -> dict[str, float]:
    return {patient: value + other.get(patient, gain) for patient, value in GOOD.items()}


def test_a_first_champion_has_low_dose_to_beat():
    assert judge(POLICY, table(GOOD), None, LINEAGE).passed
    idle = judge(POLICY, table(dict.fromkeys(GOOD, 0.0)), None, LINEAGE)
    assert failed(idle) == {"gain over low dose"}
    assert any("gains +0.000" in reason for reason in idle.reasons)


def test_a_better_one_passes():
    assert judge(POLICY, table(plus(0.5)), table(GOOD), LINEAGE).passed


def test_an_equal_one_is_refused():
    assert failed(judge(POLICY, table(GOOD), table(GOOD), LINEAGE)) == {"gain over the champion"}


def test_better_on_average_but_worse_than_low_dose_for_one_is_refused():
    challenger = table({"A": 9.0, "B": 9.0, "C": 9.0, "D": -0.1})
    verdict = judge(POLICY, challenger, table(plus(0, D=-3.0)), LINEAGE)
    assert "no patient worse than low dose" in failed(verdict)
    assert any("D" in reason for reason in verdict.reasons)


def test_better_on_average_but_much_worse_than_the_champion_for_one_is_refused():
    verdict = judge(POLICY, table(plus(2.0, C=-1.0)), table(GOOD), LINEAGE)
    assert "no patient worse than the champion" in failed(verdict)


def test_one_anatomy_may_not_pay_for_another():
    champion = pd.concat([table({"A": 2, "B": 2}), table({"C": 2, "D": 2}, "abdomen")])
    challenger = pd.concat([table({"A": 5, "B": 5}), table({"C": 1.7, "D": 1.8}, "abdomen")])
    assert "no anatomy worse than the champion" in failed(
        judge(POLICY, challenger, champion, LINEAGE)
    )


def test_a_gain_that_hangs_on_one_patient_is_not_sure():
    verdict = judge(POLICY, table(plus(0.0, A=0.7)), table(GOOD), LINEAGE)
    assert failed(verdict) == {"gain over the champion"}


@pytest.mark.parametrize("bias", [16.0, -16.0])
def test_hu_bias_has_bounds_on_both_sides(bias):
    assert failed(judge(POLICY, table(GOOD, lung=bias), None, LINEAGE)) == {"HU bias in lung"}


@pytest.mark.parametrize("missing", sorted(LINEAGE))
def test_lineage_must_be_whole(missing):
    verdict = judge(POLICY, table(GOOD), None, LINEAGE | {missing: ""})
    assert failed(verdict) == {"lineage complete"}
    assert missing in verdict.reasons[0]


def test_an_unmeasured_patient_is_no_pass():
    challenger = table(GOOD)
    challenger.loc[challenger["patient"] == "B", "psnr"] = float("nan")
    assert "no patient worse than low dose" in failed(judge(POLICY, challenger, None, LINEAGE))
    all_failed = failed(judge(POLICY, challenger, table(GOOD), LINEAGE))
    assert "gain over the champion" in all_failed


def test_a_metric_that_should_fall_is_gained_by_falling():
    policy = Policy(primary="rmse", margin=0.1)
    worse, better = table(GOOD), table(GOOD)
    worse["rmse"], better["rmse"] = 20.0, 10.0
    for frame in (worse, better):
        frame.loc[frame["image"] == "low", "rmse"] = 40.0
    assert judge(policy, better, worse, LINEAGE).passed
    assert not judge(policy, worse, better, LINEAGE).passed


def test_policies_are_typed(tmp_path):
    assert load_policy("default").primary == "psnr"
    for text, message in (
        ("margn = 1", "margn"),
        ("primary = 'beauty'", "beauty"),
        ("margin = ", "mine.toml"),
    ):
        file = tmp_path / "mine.toml"
        file.write_text(text)
        with pytest.raises(PolicyError, match=message):
            load_policy(str(file))
    with pytest.raises(PolicyError, match="nowhere"):
        load_policy("nowhere")


def test_biases_of_opposite_sign_do_not_cancel():
    challenger = table(GOOD)
    for patient, sign in zip(GOOD, (1, -1, 1, -1), strict=True):
        challenger.loc[challenger["patient"] == patient, "bias_soft"] = 20.0 * sign
    assert failed(judge(POLICY, challenger, None, LINEAGE)) == {"HU bias in soft"}


def test_a_policy_may_ask_for_more_patients():
    strict = Policy(patients=5)
    assert failed(judge(strict, table(GOOD), None, LINEAGE)) == {"enough patients"}


def test_a_metric_without_a_direction_cannot_decide(tmp_path):
    file = tmp_path / "edges.toml"
    file.write_text("primary = 'edge_sharpness'")
    with pytest.raises(PolicyError, match="edge_sharpness"):
        load_policy(str(file))
    with pytest.raises(PolicyError, match="no policy"):
        load_policy(str(tmp_path.with_suffix(".toml")))


def test_what_nobody_measured_is_refused_with_no_figure():
    challenger = table(GOOD).assign(psnr=float("nan"))
    verdict = judge(POLICY, challenger, table(GOOD), LINEAGE)
    outcomes = {outcome.rule: outcome for outcome in verdict.outcomes}
    assert not verdict.passed
    assert outcomes["no patient worse than low dose"].figure is None
    assert "A, B, C, D" in outcomes["gain over the champion"].reason
    json.dumps(verdict.model_dump(), allow_nan=False)


def unrestored(patient: str, gains: dict[str, float] = GOOD) -> Evidence:
    """A version that could not restore one patient."""
    rows = table(gains)
    lost = (rows["patient"] == patient) & (rows["image"] == "restored")
    rows.loc[lost, ["psnr", *(f"bias_{tissue}" for tissue in TISSUES)]] = float("nan")
    return Evidence(rows, {patient: "the model returned NaN or infinity"})


def test_a_champion_that_cannot_restore_a_new_patient_loses_it_by_name():
    verdict = judge(POLICY, table(plus(0.5)), unrestored("C"), LINEAGE)
    assert verdict.passed
    reasons = {outcome.rule: outcome.reason for outcome in verdict.outcomes}
    assert "C: the model returned NaN" in reasons["patients that the champion cannot restore"]
    assert failed(judge(POLICY, table(plus(0.0)), unrestored("C"), LINEAGE)) == {
        "gain over the champion"
    }


def test_a_champion_that_restores_nobody_leaves_low_dose_to_beat():
    nobody = table(GOOD)
    nobody.loc[nobody["image"] == "restored", "psnr"] = float("nan")
    assert judge(POLICY, table(GOOD), nobody, LINEAGE).passed
    idle = table(dict.fromkeys(GOOD, 0.0))
    assert failed(judge(POLICY, idle, nobody, LINEAGE)) == {"gain over low dose"}


def test_a_challenger_that_cannot_restore_a_patient_is_refused_with_the_reason():
    verdict = judge(POLICY, unrestored("B"), table(GOOD), LINEAGE)
    assert {"no patient worse than low dose", "gain over the champion"} <= failed(verdict)
    assert any("B: the model returned NaN" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("tissue", list(TISSUES))
def test_a_bias_that_cannot_be_measured_is_no_pass(tissue):
    challenger = table(GOOD)
    challenger.loc[challenger["image"] == "restored", f"bias_{tissue}"] = float("nan")
    verdict = judge(POLICY, challenger, None, LINEAGE)
    assert failed(verdict) == {f"HU bias in {tissue}"}
    json.dumps(verdict.model_dump(), allow_nan=False)


def test_a_bias_in_a_tissue_that_nobody_has_is_not_applicable_and_said():
    challenger = table(GOOD).assign(bias_bone=float("nan"))
    verdict = judge(POLICY, challenger, None, LINEAGE)
    assert verdict.passed
    (bone,) = [outcome for outcome in verdict.outcomes if outcome.rule == "HU bias in bone"]
    assert (bone.word, bone.applicable) == ("not applicable", False)


def test_one_patient_promotes_nobody(tmp_path):
    assert load_policy("default").patients == 3
    assert load_policy("demo").patients == 2
    file = tmp_path / "lax.toml"
    file.write_text("patients = 1")
    with pytest.raises(PolicyError, match="patients"):
        load_policy(str(file))
    assert {"enough patients", "gain over low dose"} <= failed(
        judge(Policy(patients=2), table({"A": 9.0}), None, LINEAGE)
    )


def test_a_partial_table_of_biases_keeps_the_other_tissues(tmp_path):
    file = tmp_path / "bone.toml"
    file.write_text("[hu_bias]\nbone = 5.0")
    limits = load_policy(str(file)).hu_bias
    assert (limits.bone, limits.lung, limits.fat, limits.soft) == (5.0, 15.0, 10.0, 10.0)
    file.write_text("[hu_bias]\nliver = 5.0")
    with pytest.raises(PolicyError, match="liver"):
        load_policy(str(file))


def test_a_partial_table_of_what_may_be_removed_keeps_the_other_limits(tmp_path):
    file = tmp_path / "removal.toml"
    file.write_text("[removal]\nstructure = 8.0\n[removal.bias]\nbone = 5.0")
    limits = load_policy(str(file)).removal
    assert (limits.structure, limits.on_edges) == (8.0, RemovalLimits().on_edges)
    assert limits.bias == RemovalLimits().bias | {"bone": 5.0}
    assert load_policy("default").removal == RemovalLimits()
    file.write_text("[removal.bias]\nliver = 5.0")
    with pytest.raises(PolicyError, match="liver"):
        load_policy(str(file))


def test_a_policy_may_ask_for_patients_whose_low_dose_was_delivered():
    evidence = Evidence(table({"A": 1.0, "B": 1.0, "C": 1.0}), simulated=frozenset("BC"))
    rule = "patients with a delivered low dose"

    def outcome(least):
        policy = Policy(delivered_patients=least)
        found = gate.judge(policy, evidence, None, {"commit": "1"}).outcomes
        return next(one for one in found if one.rule == rule)

    assert outcome(1).passed
    refused = outcome(2)
    assert (refused.passed, refused.figure) == (False, 1)
    assert "simulated dose: 2 (B, C)" in refused.reason


def figures(restored: float | None, full: float | None = 0.3) -> TaskFigures:
    """A patient whose noise has these mean frequencies."""
    frequency = {"low": 0.3, "restored": restored, "full": full}
    nothing = dict.fromkeys(("soft", "lung", "bone"))
    fidelity = {"low": 0.2, "restored": 0.3}
    return TaskFigures(
        share=0.7, frequency=frequency, sharpness=nothing, fidelity=fidelity, invented=0.5
    )


def study(**ratios: tuple[float, float]) -> ReaderStudy:
    """The middle and upper end of the restored image's index over the low dose's."""
    index = {name: Estimate(value=3, low=2, high=4) for name in ("low", "restored", "full")}
    answers = {
        question: Answer(index=index, ratio=Estimate(value=value, low=value - 0.1, high=high))
        for question, (value, high) in ratios.items()
    }
    return ReaderStudy(places=240, patients=4, answers=answers)


FAIR = {"detection": (1.0, 1.1), "size": (1.0, 1.1), "contrast": (1.0, 1.1)}


def judged(texture: dict[str, TaskFigures], of: ReaderStudy) -> Verdict:
    evidence = Evidence(table(GOOD), tasks=texture, study=of)
    return gate.judge(POLICY, evidence, None, LINEAGE)


def test_better_in_psnr_and_worse_for_the_reader_is_refused():
    same = dict.fromkeys(GOOD, figures(0.29))
    assert judged(same, study(**FAIR)).passed
    blotchy = judged(dict.fromkeys(GOOD, figures(0.2)), study(**FAIR))
    assert failed(blotchy) == {"texture of the noise left"}
    assert "0.6667 of the mean frequency of full dose's, allowed 0.9 to 1.1" in blotchy.reasons[0]
    blind = judged(same, study(**FAIR | {"detection": (0.8, 0.99)}))
    assert failed(blind) == {"detection of lesions"}
    assert "0.80 of low dose's (0.70 to 0.99) at 240 places of 4 patients" in blind.reasons[0]
    vague = judged(same, study(**FAIR | {"size": (0.7, 0.94), "contrast": (0.9, 0.96)}))
    assert failed(vague) == {"size of lesions"}


def test_a_reader_is_asked_only_where_there_is_something_to_see():
    nothing = judged(dict.fromkeys(GOOD, figures(None, None)), ReaderStudy())
    assert nothing.passed
    words = {outcome.rule: outcome.word for outcome in nothing.outcomes}
    rules = ("texture of the noise left", *(f"{what} of lesions" for what in FAIR))
    assert [words[rule] for rule in rules] == ["not applicable"] * 4
    lost = judged({**dict.fromkeys(GOOD, figures(0.3)), "A": figures(None)}, study(**FAIR))
    assert failed(lost) == {"texture of the noise left"}
    assert "cannot be measured for A" in lost.reasons[0]


def test_one_limit_of_the_reader_leaves_the_others_as_they_are(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("texture = 0.2\n[reader]\nsize = 0.5\n")
    policy = load_policy(str(file))
    assert (policy.reader.detection, policy.reader.size, policy.reader.contrast) == (1.0, 0.5, 0.95)
    assert policy.texture == 0.2
