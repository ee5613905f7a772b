"""The evaluation flow: a model version on a split of a commit, patient by patient, to a report."""

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from flows import events, lineage, stores
from flows.compute.measurement import Measurement
from flows.compute.models import Models, UsedModel
from flows.compute.pairs import pair_of
from flows.compute.progress import announce
from flows.compute.workers import on_devices
from flows.errors import FlowError
from flows.evaluations import artifact, champion, counting, judge, stored_summary
from flows.retries import TRIED_AGAIN
from flows.settings import ClusterSettings, EvaluateSettings, Settings
from hqinet.quality import gate
from hqinet.quality.evidence import Evidence
from hqinet.quality.policy import load_policy
from hqinet.quality.reader_study import ReaderStudy, ask_observer
from hqinet.quality.statistics import per_patient
from hqinet.report import comparison
from hqinet.report import page as report
from storage.dataset.rows import Accepted
from storage.dataset.versions import Snapshot
from storage.ingest.cohort import SYNTHETIC
from storage.models.versions import ModelVersion
from storage.provenance import code_version

DEFAULTS = Settings()


class EvaluationError(FlowError):
    """An evaluation that must not be made; one line that says why."""


class EvaluateResult(BaseModel):
    """What `hqinet evaluate --json` prints."""

    report: str
    model: int
    commit: int
    split: str
    patients: list[dict[str, Any]]


@flow(name="evaluate")
def evaluate(
    model: str = "latest",
    commit: int | None = None,
    split: str = "test",
    policy: str = DEFAULTS.policy,
    settings: EvaluateSettings = DEFAULTS.evaluate,
    cluster: ClusterSettings = DEFAULTS.cluster,
) -> EvaluateResult:
    """Restore and measure every patient of a split, and write the report.

    The champion is evaluated on the same commit first, where that has not been done, so that the
    report can set the two side by side.

    Args:
        model: A version number, "champion", or "latest".
        commit: Of the dataset; the latest if empty.
        split: train, validation or test.
        policy: Promotion policy that the report's verdict is made by.
        settings: How volumes are restored.
        cluster: Where Dask runs; without one, patients are measured in this process.
    """
    rules = load_policy(policy)
    version = stores.registry().version(model)
    snapshot = stores.dataset().snapshot(commit)
    patients = check_leakage(version, snapshot, split)
    standing = champion()
    is_champion = standing is not None and standing.version == version.version
    rival = None if is_champion else standing
    if rival is not None:
        evaluate_rival(rival, snapshot, split, settings, cluster)
    with closing(Models(str(version.version))) as models:
        results = measure(snapshot, patients, models.resolve(), settings, cluster)
    study = ask_observer([result.tasks for result in results if result.tasks is not None])
    evidence = evidence_of(results, frozenset(simulated(snapshot, split)), study)
    verdict = judge(rules, version, evidence, rival, snapshot)
    theirs = None if rival is None else counting(rival, snapshot, split)
    table = None if theirs is None else theirs.table()
    result = write_report(version, snapshot, split, policy, results, study, table, verdict)
    events.evaluation_written(
        version.version,
        snapshot.commit,
        split,
        passed=verdict.passed,
        of_champion=is_champion,
    )
    return result


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def check_leakage(version: ModelVersion, snapshot: Snapshot, split: str) -> list[Accepted]:
    """The patients to evaluate; raises EvaluationError if the model was trained on one of them."""
    patients = snapshot.patients(split)
    if not patients:
        raise EvaluationError(
            f"commit {snapshot.commit} has no patient in the {split} split; ingest more patients"
        )
    names = (lineage.PATIENTS, lineage.CHOSEN_ON)
    if any(lineage.patients(version, name) is None for name in names):
        raise EvaluationError(
            f"model version {version.version} does not say which patients it has seen; "
            f"`hqinet train --resume {version.run}` completes its tags"
        )
    leaked = lineage.leaked(version, patients)
    if leaked:
        raise EvaluationError(
            f"model version {version.version} was trained or chosen on {', '.join(leaked)} of the "
            f"{split} split of commit {snapshot.commit}; evaluate it on patients it has not seen"
        )
    return patients


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def measure(
    snapshot: Snapshot,
    patients: list[Accepted],
    used: UsedModel,
    settings: EvaluateSettings,
    cluster: ClusterSettings,
) -> list[report.PatientResult]:
    """Restore and measure every patient, in the order of the patients."""
    budget = report.BYTES_FOR_IMAGES // len(patients)
    measurement = Measurement(used, settings, stores.scratch(), budget)
    asked = ((row, pair_of(snapshot, row)) for row in patients)
    results: dict[str, report.PatientResult] = {}
    for (row, _), result in on_devices(
        measurement,
        asked,
        cluster,
        measurement.scratch,
        settings.device,
        lambda patient: patient[0].patient,
    ):
        results[row.patient] = result
        became = result.failure or "restored and measured"
        announce(f"{row.patient}: {became} ({row.slices} slices)")
    return [results[row.patient] for row in patients]


def evaluate_rival(
    rival: ModelVersion,
    snapshot: Snapshot,
    split: str,
    settings: EvaluateSettings,
    cluster: ClusterSettings,
) -> None:
    """Evaluate the champion on the same patients, unless an evaluation of it counts already."""
    if counting(rival, snapshot, split) is not None:
        return
    try:
        evaluate(str(rival.version), snapshot.commit, split, settings=settings, cluster=cluster)
    except EvaluationError as error:
        get_run_logger().warning("the champion cannot be compared: %s", error)


def evidence_of(
    results: list[report.PatientResult], simulated_doses: frozenset[str], study: ReaderStudy
) -> Evidence:
    """What the gate judges an evaluation by."""
    slices = pd.concat([result.measured.per_slice for result in results], ignore_index=True)
    failures = {r.patient: r.failure for r in results if r.failure is not None}
    tasks = {r.patient: r.tasks.figures for r in results if r.tasks is not None}
    return Evidence(per_patient(slices), failures, simulated_doses, tasks, study)


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def write_report(
    version: ModelVersion,
    snapshot: Snapshot,
    split: str,
    policy: str,
    results: list[report.PatientResult],
    study: ReaderStudy,
    theirs: pd.DataFrame | None,
    verdict: gate.Verdict,
) -> EvaluateResult:
    """Write the report's folder, and store it with the run of the model."""
    evaluation = report.Evaluation(
        _provenance(version, snapshot, split, policy),
        acquisition(snapshot, split),
        simulated(snapshot, split),
        results,
        study,
        theirs,
        verdict,
    )
    name = f"model-{version.version}-commit-{snapshot.commit}-{split}"
    folder = Settings().reports / name
    patients = report.write(evaluation, folder)
    registry = stores.registry()
    # The summary goes last: with it the evaluation is complete.
    for file in sorted(folder.iterdir(), key=lambda file: file.name == report.SUMMARY):
        registry.log_file(version.run, file, artifact(snapshot.commit, split))
    numbers = _means(patients, split)
    registry.log_metrics(version.run, [(snapshot.commit, numbers)], version.logged)
    registry.tag_version(version.version, {f"evaluated_{split}": str(snapshot.commit)})
    rows = _rows(patients)
    create_markdown_artifact(
        key="evaluation", markdown=_markdown(rows), description=f"{name}: {folder}"
    )
    get_run_logger().info("report of model version %d: %s", version.version, name)
    return EvaluateResult(
        report=str(folder),
        model=version.version,
        commit=snapshot.commit,
        split=split,
        patients=rows,
    )


def acquisition(snapshot: Snapshot, split: str) -> dict[str, str]:
    """Of each patient of a split: vendor, kernel, dose and spacing, which stand beside numbers."""
    words = {}
    for row in snapshot.patients(split):
        dose = "dose unknown" if row.dose_fraction is None else f"{row.dose_fraction:.0%} dose"
        dose += "" if row.implied_dose is None else f" ({row.implied_dose:.0%} by its noise)"
        dose = f"simulated {dose}" if row.simulated else dose
        spacing = " x ".join(f"{length:.3g}" for length in row.spacing)
        words[row.patient] = f"{row.vendor}, kernel {row.kernel}, {dose}, {spacing} mm"
    return words


def simulated(snapshot: Snapshot, split: str) -> dict[str, str]:
    """Of the patients of a split whose low dose was simulated: what it was made with."""
    return {row.patient: row.simulated for row in snapshot.patients(split) if row.simulated}


def _provenance(
    version: ModelVersion, snapshot: Snapshot, split: str, policy: str
) -> dict[str, str]:
    cohorts = snapshot.cohorts
    return {
        "data": "Synthetic cohort: phantoms with simulated dose, not patients."
        if SYNTHETIC in cohorts
        else "",
        "model version": str(version.version),
        "run": version.run,
        "recipe": version.tags.get("recipe", ""),
        "trained on commit": version.tags.get("commit", ""),
        "split": split,
        "dataset": snapshot.identity,
        "dataset commit": str(snapshot.commit),
        "dataset digest": snapshot.digest,
        "cohorts": ", ".join(cohorts),
        "policy": policy,
        "trained by code": version.tags.get("code_version", ""),
        "evaluated by code": code_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _means(patients: pd.DataFrame, split: str) -> dict[str, float]:
    """Means of the restored image over patients: of each anatomy, and pooled beside them."""
    restored = patients[patients["image"] == "restored"]
    groups = {"": restored} | {f".{name}": group for name, group in restored.groupby("anatomy")}
    return {
        f"{split}_{metric}{anatomy}": value
        for anatomy, group in groups.items()
        for metric, value in group.mean(numeric_only=True).items()
    }


def _rows(patients: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry a patient: patient, anatomy, slices, and the metrics of "low" and "restored"."""
    rows = []
    for (patient, anatomy), group in patients.groupby(["patient", "anatomy"]):
        images = json.loads(
            group.set_index("image").drop(columns=["patient", "anatomy"]).to_json(orient="index")
        )
        slices = {name: values.pop("slices") for name, values in images.items()}
        rows.append({"patient": patient, "anatomy": anatomy, "slices": slices["low"], **images})
    return rows


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| patient | anatomy | PSNR low | PSNR | SSIM low | SSIM |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        numbers = [
            "" if row[image][name] is None else f"{row[image][name]:.{digits}f}"
            for name, digits in (("psnr", 2), ("ssim_window", 3))
            for image in ("low", "restored")
        ]
        lines.append(f"| {row['patient']} | {row['anatomy']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def compare(left: str, right: str, commit: int | None = None, split: str = "test") -> Path:
    """Set the reports of two model versions on one commit side by side; returns the page.

    left, right: version numbers or aliases. Raises EvaluationError where one of them was not
    evaluated there.
    """
    number = stores.dataset().snapshot(commit).commit
    versions = [stores.registry().version(which) for which in (left, right)]
    summaries = []
    for version in versions:
        summary = stored_summary(version.run, number, split)
        if summary is None:
            raise EvaluationError(
                f"model version {version.version} has no report on the {split} split of commit "
                f"{number}; `hqinet evaluate --model {version.version} --commit {number}` writes it"
            )
        summaries.append(summary)
    names = "-".join(str(version.version) for version in versions)
    folder = Settings().reports / f"compare-{names}-commit-{number}-{split}"
    try:
        comparison.write(*summaries, folder)
    except ValueError as error:
        raise EvaluationError(f"model versions {left} and {right}: {error}") from error
    return folder / "comparison.html"
