"""Promotion with models whose quality is known: they average more or fewer neighbours."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flows import evaluations, events, lineage, stores
from flows.evaluate import EvaluationError, compare, evaluate
from flows.evaluations import PromotionError
from flows.ingest import ingest
from flows.promote import promote, repair, rollback_promotion
from flows.settings import ClusterSettings, IngestSettings, Settings
from flows.shadow import shadow
from storage.dataset.upkeep import import_splits
from storage.models.registry import DatasetInputs


class Smoother(nn.Module):
    """Mixes the middle slice with its 5 x 5 mean, which takes noise and leaves the mean."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        middle = hu[:, 1:2]
        mean = F.avg_pool2d(F.pad(middle, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        return middle + self.share * (mean - middle)


class Fragile(Smoother):
    """Returns NaN for slices whose first pixel is above 900 HU."""

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        restored = super().forward(hu)
        return torch.where(hu[:, 1:2, :1, :1] > 900, torch.nan, restored)


@pytest.fixture(scope="module")
def cohort(home, tmp_path_factory, series):
    """Eight patients of fine stripes and noise: some smoothing helps, much of it harms."""
    root = tmp_path_factory.mktemp("water")
    for number in range(8):
        random = np.random.default_rng(number)
        stripes = 60 * np.sin(np.arange(64) * np.pi / 3)
        full = 40 + stripes + random.normal(0, 2, (3, 64, 64))
        low = full + random.normal(0, 30, full.shape)
        for name, hu in (("Full Dose Images", full), ("Low Dose Images", low)):
            series(f"L20{number}", name, hu=hu.round().astype(np.int16)).write(
                root / f"L20{number}" / name
            )
    half = {"train": 0.25, "validation": 0.25, "test": 0.5}
    return ingest(str(root), "water", IngestSettings(split_targets=half))


def register(
    share: float, patients: list[str] | None = None, kind: type[Smoother] = Smoother, **tags: str
) -> int:
    registry = stores.registry()
    snapshot = stores.dataset().snapshot()
    run = registry.start("smoother", {"share": share}, DatasetInputs("x", 1, snapshot.digest))
    lineage = {
        "commit": "1",
        "digest": snapshot.digest,
        "recipe": "smoother",
        "training_patients": json.dumps(patients or ["L999"]),
        "validation_patients": "[]",
        "code_version": "1",
    }
    example = np.zeros((2, 3, 40, 48), np.float32)
    version = registry.register(run, kind(share).eval(), example, lineage | tags)
    registry.finish(run)
    return version


@pytest.fixture(scope="module")
def champion(cohort) -> int:
    version = register(0.2)
    evaluate(str(version))
    assert promote(version).verdict == "promoted"
    return version


def test_who_was_not_evaluated_here_is_refused_and_told_how(champion):
    version = register(0.5)
    result = promote(version)
    assert result.verdict == "refused"
    assert f"hqinet evaluate --model {version}" in result.reasons[0]
    assert evaluations.champion().version == champion


def test_workers_measure_what_one_process_measures(champion, dask_cluster):
    here, cluster = evaluate(str(champion)), ClusterSettings(where=dask_cluster.scheduler_address)
    folder = Path(here.report)
    before = {
        name: (folder / name).read_bytes() for name in ("per_slice.parquet", "per_patient.csv")
    }
    there = evaluate(str(champion), cluster=cluster)
    assert there == here
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_an_evaluation_that_was_killed_while_its_summary_was_stored_counts_as_none(champion):
    version = register(0.2)
    evaluate(str(version))
    run = stores.registry().version(version).run
    (stored,) = Path(Settings().home).rglob(f"{run}/artifacts/evaluation/*/summary.json")
    stored.write_bytes(stored.read_bytes()[:1000])
    assert f"hqinet evaluate --model {version}" in promote(version).reasons[0]
    evaluate(str(version))
    judged = promote(version).reasons
    assert "gains +0.000" in str(judged)
    # Asked where it was not evaluated, it keeps its verdict.
    assert promote(version, commit=0).verdict == "refused"
    assert stores.registry().version(version).tags["verdict_reasons"] == "; ".join(judged)


def test_an_equal_one_is_refused(champion):
    version = register(0.2)
    evaluate(str(version))
    result = promote(version)
    assert result.verdict == "refused"
    assert any("gains +0.000" in reason for reason in result.reasons)
    assert stores.registry().version(version).tags["verdict"] == "refused"


def test_a_worse_one_is_refused_and_a_better_one_takes_its_place(champion):
    worse = register(0.05)
    evaluate(str(worse))
    assert promote(worse).verdict == "refused"
    better = register(0.35)
    evaluate(str(better))
    result = promote(better)
    assert result.verdict == "promoted", result.reasons
    assert evaluations.champion().version == better
    assert stores.registry().version("previous").version == champion
    assert stores.registry().version(better).tags["rule_gain_over_the_champion"].startswith("pass")

    back = rollback_promotion()
    assert back.model == champion
    assert evaluations.champion().version == champion
    history = stores.promotions().read().entries
    assert [row.action for row in history[-2:]] == ["promote", "rollback"]


def test_a_flow_run_that_is_started_again_makes_no_second_entry(champion, monkeypatch):
    better = register(0.35)
    evaluate(str(better))
    monkeypatch.setattr("flows.promote.runtime", SimpleNamespace(flow_run=SimpleNamespace(id="a")))
    first = promote(better)
    assert promote(better) == first
    assert evaluations.champion().version == better
    monkeypatch.setattr("flows.promote.runtime", SimpleNamespace(flow_run=SimpleNamespace(id="b")))
    back = rollback_promotion()
    assert rollback_promotion() == back
    assert evaluations.champion().version == champion
    history = stores.promotions().read().entries
    assert [row.action for row in history[-2:]] == ["promote", "rollback"]


def test_events_name_version_commit_and_verdict(champion, monkeypatch):
    heard: list[dict] = []
    monkeypatch.setattr(events, "emit_event", lambda **event: heard.append(event))
    better = register(0.35)
    evaluate(str(better))
    promote(better)
    rollback_promotion()
    payloads = [(row["event"].removeprefix("hqinet."), row["payload"]) for row in heard]
    assert payloads == [
        (
            "evaluation.written",
            {"version": better, "commit": 1, "split": "test", "verdict": "passed"},
        ),
        (
            "champion.changed",
            {"version": better, "before": champion, "commit": 1, "verdict": "promoted"},
        ),
        (
            "champion.changed",
            {"version": champion, "before": better, "commit": None, "verdict": "rolled back"},
        ),
    ]


def test_a_blur_that_loses_a_patient_is_refused(champion):
    version = register(1.0)
    evaluate(str(version))
    result = promote(version)
    assert result.verdict == "refused"
    assert any("worse" in row["rule"] and not row["passed"] for row in result.rules)


def test_a_model_trained_on_a_test_patient_cannot_be_evaluated(champion):
    tested = stores.dataset().snapshot().patients("test")[0].patient
    version = register(0.3, [tested])
    with pytest.raises(Exception, match=tested):
        evaluate(str(version))


def test_lineage_must_be_whole(champion):
    version = register(0.4, recipe="")
    evaluate(str(version))
    assert promote(version).reasons == ["lineage lacks recipe"]


def test_of_two_promotions_at_once_the_second_is_judged_against_the_first(champion):
    rivals = [register(0.30), register(0.31)]
    for version in rivals:
        evaluate(str(version))
    verdicts = {}
    threads = [
        threading.Thread(target=lambda v=v: verdicts.update({v: promote(v).verdict}))
        for v in rivals
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(verdicts.values()) == ["promoted", "refused"]
    (winner,) = [version for version, verdict in verdicts.items() if verdict == "promoted"]
    assert evaluations.champion().version == winner


def test_an_alias_that_a_killed_promotion_did_not_move_is_moved_by_the_next(champion):
    registry, now = stores.registry(), evaluations.champion().version
    last = stores.promotions().read().last_pass
    assert last.candidate == now
    registry.point("champion", last.champion)
    repair()
    assert registry.version("champion").version == now


def test_a_verdict_whose_tags_a_killed_promotion_did_not_write_is_written_by_the_next(champion):
    registry = stores.registry()
    last = stores.promotions().read().entries[-1]
    before = registry.version(last.candidate).tags
    registry._client.delete_model_version_tag("hqinet", str(last.candidate), "verdict")
    assert "verdict" not in registry.version(last.candidate).tags
    repair()
    assert registry.version(last.candidate).tags == before


def test_an_evaluation_by_other_code_or_of_another_definition_is_made_anew(champion, monkeypatch):
    version = register(0.22)
    evaluate(str(version))
    snapshot, row = stores.dataset().snapshot(), stores.registry().version(version)
    assert evaluations.counting(row, snapshot, "test") is not None
    for name, value in (("DEFINITION", 99), ("code_version", lambda: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(evaluations, name, value)
            assert evaluations.counting(row, snapshot, "test") is None
            assert f"hqinet evaluate --model {version}" in promote(version).reasons[0]


def test_the_champion_is_no_challenger(champion):
    with pytest.raises(PromotionError, match="champion already"):
        promote(evaluations.champion().version)


def test_two_reports_stand_side_by_side(champion):
    registry = stores.registry()
    version = register(0.25)
    evaluate(str(version))
    page = compare(str(champion), str(version))
    tests = pd.read_csv(page.with_name("comparison.csv")).set_index(["anatomy", "metric"])
    runs = [registry.version(number).run for number in (champion, version)]
    tables = [evaluations.stored_summary(run, 1, "test").table() for run in runs]
    means = [t[t["image"] == "restored"]["psnr"].mean() for t in tables]
    assert tests.loc[("all", "psnr"), "mean"] == pytest.approx(means[1] - means[0], abs=1e-6)
    assert f"model {version}" in page.read_text()
    with pytest.raises(EvaluationError, match="validation split"):
        compare(str(champion), str(version), split="validation")


@pytest.mark.parametrize("tag", ["training_patients", "validation_patients"])
def test_a_version_that_does_not_say_whom_it_has_seen_is_not_evaluated(champion, tag):
    version = register(0.25)
    stores.registry()._client.delete_model_version_tag("hqinet", str(version), tag)
    with pytest.raises(EvaluationError, match="does not say which patients it has seen"):
        evaluate(str(version))


def test_a_champion_trained_on_what_is_now_a_test_patient_is_named_as_the_reason(champion):
    dataset, registry = stores.dataset(), stores.registry()
    moved = dataset.snapshot().patients("train")[0].patient
    tags = lineage.patient_tags(lineage.PATIENTS, [moved])
    registry.tag_version(evaluations.champion().version, tags)
    import_splits(dataset, f"patient,split\n{moved},test\n")
    version = register(0.33)
    evaluate(str(version))
    result = promote(version)
    assert result.verdict == "refused"
    assert f"was trained or chosen on {moved}" in result.reasons[0]
    assert "splits import" in result.reasons[0]


def test_a_lost_alias_opens_no_gate(champion):
    registry = stores.registry()
    now = evaluations.champion().version
    registry._client.delete_registered_model_alias("hqinet", "champion")
    worse = register(0.01)
    evaluate(str(worse))
    result = promote(worse)
    assert (result.verdict, result.champion) == ("refused", now)
    assert registry.version("champion").version == now


def test_a_deleted_champion_is_named_and_rollback_passes_over_deleted_ones(champion):
    registry = stores.registry()
    line = stores.promotions().read().succession
    assert len(line) > 1
    registry._client.delete_model_version("hqinet", str(line[-1]))
    with pytest.raises(PromotionError, match=f"version {line[-1]}, champion by the history"):
        promote(register(0.36))
    back = rollback_promotion()
    assert back.model == line[-2]
    assert evaluations.champion().version == line[-2]
    assert registry.version("champion").version == line[-2]


def test_a_champion_that_cannot_restore_a_new_patient_loses_it_by_name(champion, tmp_path, series):
    lenient = tmp_path / "lenient.toml"
    lenient.write_text("margin = -9.0\npatient_loss = 9.0\nanatomy_loss = 9.0\n")
    fragile = register(0.36, kind=Fragile)
    evaluate(str(fragile))
    assert promote(fragile, policy=str(lenient)).verdict == "promoted"

    hu = np.random.default_rng(99).normal(40, 30, (2, 3, 64, 64)).round().astype(np.int16)
    hu[:, :, 0, 0] = 1000
    for name, values in zip(("Full Dose Images", "Low Dose Images"), hu, strict=True):
        series("L300", name, hu=values).write(tmp_path / "more" / name)
    dataset = stores.dataset()
    ingest(str(tmp_path / "more"), "more")
    import_splits(dataset, "patient,split\nL300,test\n")
    version = register(0.3)
    report = evaluate(str(version))
    summary = evaluations.counting(stores.registry().version(fragile), dataset.snapshot(), "test")
    assert "NaN" in summary.failures["L300"]
    page = Path(report.report, "report.html").read_text()
    assert "loses on L300" in page
    result = promote(version, policy=str(lenient))
    outcomes = {row["rule"]: row["reason"] for row in result.rules}
    assert "L300" in outcomes["patients that the champion cannot restore"]
    assert evaluations.champion().version == (version if result.verdict == "promoted" else fragile)
    assert all("L300" not in reason for reason in result.reasons if "worse than the ch" in reason)


def test_what_a_challenger_did_in_the_shadow_stands_in_its_verdict_and_decides_nothing(
    champion, home, series, monkeypatch
):
    hu = np.random.default_rng(5).normal(40, 30, (4, 64, 64))
    study = home / "live" / "study"
    series("L300", "Low Dose Images", hu=hu.round().astype(np.int16)).write(study)
    heard: list[dict] = []
    monkeypatch.setattr(events, "emit_event", lambda **event: heard.append(event))
    version = register(0.5)
    before = promote(version)
    assert before.shadow is None
    done = shadow(str(home / "live"), quiet=0)
    assert done.version == version
    assert sum(done.outcomes.values()) == 1
    after = promote(version)
    assert (after.verdict, after.reasons) == (before.verdict, before.reasons)
    assert after.shadow["restored"] + after.shadow["quarantined"] == 1
    # Half of the noise that a mean of 25 pixels takes.
    assert after.shadow["removed"] == pytest.approx(0.49, rel=0.25)
    assert after.shadow["outside"] == 1
    assert "1 outside of the training data" in after.shadow["said"]
    # Nothing is sent, nobody is told, and the same study is not restored again.
    assert not (home / "outbox").exists()
    assert [event["event"] for event in heard if "series" in event["event"]] == []
    assert shadow(str(home / "live"), quiet=0).outcomes == {}
