"""The evaluation flow: a model version on a split of a commit, patient by patient, to a report."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from flows import lineage, stores
from flows.settings import EvaluateSettings, Settings
from hqinet.devices import pick_device
from hqinet.quality import gate
from hqinet.quality.evaluation import PatientResult, evaluate_patient
from hqinet.quality.statistics import per_patient
from hqinet.report import comparison
from hqinet.report import page as report
from hqinet.restoration.export import load_exported
from hqinet.samples.sampling import VolumePair
from storage.dataset.versions import PatientRow, Snapshot
from storage.errors import StorageError
from storage.ingest.cohort import SYNTHETIC
from storage.models.registry import ModelVersion

DEFAULTS = Settings().evaluate


class EvaluationError(StorageError):
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
    policy: str = "default",
    settings: EvaluateSettings = DEFAULTS,
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
    """
    rules = gate.load_policy(policy)
    version = stores.registry().version(model)
    snapshot = stores.dataset().snapshot(commit)
    patients = check_leakage(version, snapshot, split)
    champion = champion_table(version, snapshot, split, settings)
    with tempfile.TemporaryDirectory(dir=stores.scratch()) as folder:
        file = stores.registry().model_file(version, Path(folder))
        budget = report.BYTES_FOR_IMAGES // len(patients)
        results = [
            measure_patient.with_options(task_run_name=f"measure {row.patient}")(
                snapshot, row, file, settings, budget
            )
            for row in patients
        ]
    verdict = gate.judge(rules, tabulate(results), champion, lineage.lineage_fields(version))
    rival = rival_of(version)
    if rival is not None and champion is None:
        verdict = verdict.refused_by(no_comparison(rival, snapshot, split))
    return write_report(version, snapshot, split, policy, results, champion, verdict)


@task(cache_policy=NO_CACHE)
def check_leakage(version: ModelVersion, snapshot: Snapshot, split: str) -> list[PatientRow]:
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


@task(cache_policy=NO_CACHE)
def measure_patient(
    snapshot: Snapshot, row: PatientRow, file: Path, settings: EvaluateSettings, budget: int
) -> PatientResult:
    """Restore one patient and measure every slice, low dose and restored."""
    volume = snapshot.volume(row.patient)
    device = pick_device(settings.device)
    return evaluate_patient(
        VolumePair(row.patient, row.anatomy, volume.low, volume.full, row.dose_fraction),
        load_exported(file, device, dose=row.dose_fraction),
        spacing=row.spacing[1:],
        device=device,
        batch=settings.batch,
        scratch=stores.scratch(),
        budget=budget,
    )


def champion_table(
    version: ModelVersion, snapshot: Snapshot, split: str, settings: EvaluateSettings
) -> pd.DataFrame | None:
    """The champion's per-patient table on the same patients; None without another champion."""
    champion = rival_of(version)
    if champion is None:
        return None
    table = evaluated(champion, snapshot, split)
    if table is None:
        try:
            evaluate(str(champion.version), snapshot.commit, split, settings=settings)
        except EvaluationError as error:
            get_run_logger().warning("the champion cannot be compared: %s", error)
            return None
        table = evaluated(champion, snapshot, split)
    return table


def rival_of(version: ModelVersion) -> ModelVersion | None:
    """The champion, where it is another version."""
    champion = stores.registry().champion()
    return None if champion is None or champion.version == version.version else champion


def no_comparison(version: ModelVersion, snapshot: Snapshot, split: str) -> gate.Outcome:
    """The rule that fails where a version has no evaluation on a commit, and what to do."""
    commit = snapshot.commit
    leaked = lineage.leaked(version, snapshot.patients(split))
    if leaked:
        reason = (
            f"version {version.version} was trained or chosen on {', '.join(leaked)}, now in the "
            f"{split} split of commit {commit}, so that no fair comparison exists; move them back "
            "with `hqinet dataset splits import`, or judge on an earlier commit (--commit)"
        )
    else:
        reason = (
            f"version {version.version} was not evaluated on commit {commit}; run "
            f"`hqinet evaluate --model {version.version} --commit {commit}`"
        )
    return gate.Outcome(
        rule="report present",
        passed=False,
        figure=None,
        required=f"an evaluation on the {split} split of commit {commit}",
        reason=reason,
    )


def evaluated(version: ModelVersion, snapshot: Snapshot, split: str) -> pd.DataFrame | None:
    """The per-patient table of an evaluation made before on these very rows; None without one."""
    summary = evaluation_summary(version.run, snapshot.commit, split)
    if summary is None or summary["provenance"]["dataset digest"] != snapshot.digest:
        return None
    return report.patients_of(summary)


def evaluation_summary(run: str, commit: int, split: str) -> dict[str, Any] | None:
    """The `summary.json` of an evaluation made before; None where there was none, or half of it."""
    with tempfile.TemporaryDirectory(dir=stores.scratch()) as folder:
        artifact = f"{_artifact(commit, split)}/{report.SUMMARY}"
        path = stores.registry().fetch(run, artifact, Path(folder))
        try:
            return None if path is None else json.loads(path.read_text("utf-8"))
        except ValueError:  # a kill while it was stored
            return None


def tabulate(results: list[PatientResult]) -> pd.DataFrame:
    """The `per_patient` table of an evaluation."""
    return per_patient(pd.concat([result.per_slice for result in results], ignore_index=True))


@task(cache_policy=NO_CACHE)
def write_report(
    version: ModelVersion,
    snapshot: Snapshot,
    split: str,
    policy: str,
    results: list[PatientResult],
    champion: pd.DataFrame | None,
    verdict: gate.Verdict,
) -> EvaluateResult:
    """Write the report's folder, and store it with the run of the model."""
    evaluation = report.Evaluation(
        _provenance(version, snapshot, split, policy),
        acquisition(snapshot, split),
        results,
        champion,
        verdict,
    )
    name = f"model-{version.version}-commit-{snapshot.commit}-{split}"
    folder = Settings().reports / name
    patients = report.write(evaluation, folder)
    registry = stores.registry()
    # The summary goes last: with it the evaluation is complete.
    for file in sorted(folder.iterdir(), key=lambda file: file.name == report.SUMMARY):
        registry.log_file(version.run, file, _artifact(snapshot.commit, split))
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


def _artifact(commit: int, split: str) -> str:
    return f"evaluation/commit-{commit}-{split}"


def acquisition(snapshot: Snapshot, split: str) -> dict[str, str]:
    """Of each patient of a split: vendor, kernel, dose and spacing, which stand beside numbers."""
    accepted = snapshot.rows[snapshot.rows["status"] == "accepted"]
    kernels = accepted.set_index("patient")["kernel"]
    words = {}
    for row in snapshot.patients(split):
        dose = "dose unknown" if row.dose_fraction is None else f"{row.dose_fraction:.0%} dose"
        spacing = " x ".join(f"{length:.3g}" for length in row.spacing)
        words[row.patient] = f"{row.vendor}, kernel {kernels[row.patient]}, {dose}, {spacing} mm"
    return words


def _provenance(
    version: ModelVersion, snapshot: Snapshot, split: str, policy: str
) -> dict[str, str]:
    cohorts = sorted(snapshot.rows["cohort"].dropna().unique())
    return {
        "data": "Synthetic cohort: phantoms with simulated dose, not patients."
        if SYNTHETIC in cohorts
        else "",
        "model version": str(version.version),
        "run": version.run,
        "recipe": version.tags.get("recipe", ""),
        "trained on commit": version.tags.get("commit", ""),
        "split": split,
        "dataset commit": str(snapshot.commit),
        "dataset digest": snapshot.digest,
        "cohorts": ", ".join(cohorts),
        "policy": policy,
        "code version": version.tags.get("code_version", ""),
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
    """Set the reports of two MLflow runs on one commit side by side; returns the page.

    Raises EvaluationError where one of them was not evaluated there.
    """
    number = stores.dataset().snapshot(commit).commit
    summaries = []
    for run in (left, right):
        summary = evaluation_summary(run, number, split)
        if summary is None:
            raise EvaluationError(
                f"run {run} has no report on the {split} split of commit {number}; "
                "`hqinet models` lists runs, `hqinet evaluate` writes their reports"
            )
        summaries.append(summary)
    folder = Settings().reports / f"compare-{left[:8]}-{right[:8]}-commit-{number}-{split}"
    try:
        comparison.write(*summaries, folder)
    except ValueError as error:
        raise EvaluationError(f"runs {left} and {right}: {error}") from error
    return folder / "comparison.html"
