"""The report of an evaluation: tables, figures and one self-contained page for people who look.

A report is a folder: `per_slice.parquet`, `per_patient.csv`, `summary.json` (docs/report.md) and
`report.html`, which needs no network.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from hqinet.quality import statistics
from hqinet.quality.evaluation import Measured
from hqinet.quality.gate import Verdict
from hqinet.quality.metrics import METRICS
from hqinet.quality.reader_study import ReaderStudy
from hqinet.quality.reference import WINDOWS, window_of
from hqinet.quality.tasks import Tasks
from hqinet.report.balance import balance
from hqinet.report.figures import distributions, edge_curves, lesion_pictures, noise_power
from hqinet.report.key_slices import LEVELS, View
from hqinet.report.summary import Summary, records

PAPER = {
    "l1": {"low": "0.043", "restored": "0.021"},
    "nmse": {"low": "0.062", "restored": "0.012"},
    "psnr": {"low": "25.81 ± 5.86", "restored": "31.30 ± 2.69"},
    "mi": {"low": "1.01", "restored": "1.30"},
}
"""Table I of Lu et al. 2021, low dose and HQINet."""

SUMMARY = "summary.json"
BYTES_FOR_IMAGES = 18_000_000
"""Of PNG in one report, so that with base64 and tables a report stays under 30 MB."""


@dataclass(frozen=True)
class PatientResult:
    """What a report shows of one patient.

    views: slices to look at. failure: why the patient could not be restored; None who was.
    tasks: what a reader can do with the restored slices; None of who could not be restored.
    """

    patient: str
    anatomy: str
    measured: Measured
    views: list[View]
    failure: str | None = None
    tasks: Tasks | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that a report is made of.

    provenance: what was evaluated with what, in the order to be shown.
    acquisition: of each patient, in words: vendor, kernel, dose, spacing.
    simulated: of patients whose low dose was simulated from the full dose: what it was made with.
    study: what an observer makes of lesions.
    champion: `per_patient` frame of the champion on the same patients, if there is one.
    verdict: what the gate says of it, if it was asked.
    """

    provenance: dict[str, str]
    acquisition: dict[str, str]
    simulated: dict[str, str]
    patients: list[PatientResult]
    study: ReaderStudy
    champion: pd.DataFrame | None
    verdict: Verdict | None

    @property
    def per_slice(self) -> pd.DataFrame:
        """All slices of all patients, low and restored."""
        return pd.concat([result.measured.per_slice for result in self.patients], ignore_index=True)

    @property
    def tasks(self) -> dict[str, Tasks]:
        """Of each patient who could be restored."""
        return {r.patient: r.tasks for r in self.patients if r.tasks is not None}


def write(evaluation: Evaluation, folder: Path) -> pd.DataFrame:
    """Write the report into `folder` and return its `per_patient` table."""
    folder.mkdir(parents=True, exist_ok=True)
    per_slice = evaluation.per_slice
    patients = statistics.per_patient(per_slice)
    summary = summarise(evaluation, patients)
    per_slice.to_parquet(folder / "per_slice.parquet", index=False)
    patients.to_csv(folder / "per_patient.csv", index=False)
    (folder / SUMMARY).write_text(summary.to_json(), "utf-8")
    (folder / "report.html").write_text(_page(evaluation, patients, summary), encoding="utf-8")
    return patients


def summarise(evaluation: Evaluation, patients: pd.DataFrame) -> Summary:
    """The content of `summary.json`."""
    low, restored = (patients[patients["image"] == image] for image in ("low", "restored"))
    champion = evaluation.champion
    against_champion = (
        None
        if champion is None
        else records(
            statistics.paired_tests(
                statistics.differences(restored, champion[champion["image"] == "restored"])
            )
        )
    )
    return Summary(
        dataset=evaluation.provenance["dataset"],
        evaluated_by=evaluation.provenance["evaluated by code"],
        dataset_digest=evaluation.provenance["dataset digest"],
        provenance=evaluation.provenance,
        acquisition=evaluation.acquisition,
        simulated=evaluation.simulated,
        patients=records(patients),
        failures={r.patient: r.failure for r in evaluation.patients if r.failure is not None},
        summary=records(statistics.summarise(patients)),
        restored_less_low=records(statistics.paired_tests(statistics.differences(restored, low))),
        restored_less_champion=against_champion,
        left_out=records(statistics.left_out(evaluation.per_slice)),
        tasks={patient: tasks.figures for patient, tasks in evaluation.tasks.items()},
        study=evaluation.study,
        noise_power={
            result.patient: {name: asdict(power) for name, power in result.measured.noise.items()}
            for result in evaluation.patients
        },
        verdict=evaluation.verdict,
    )


def page_template(name: str) -> jinja2.Template:
    """A page's template; what is not defined is an error, what is text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hqinet.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["figure"] = _figure
    return environment.get_template(name)


def _page(evaluation: Evaluation, patients: pd.DataFrame, summary: Summary) -> str:
    return page_template("report.html.j2").render(
        provenance=evaluation.provenance,
        simulated=evaluation.simulated,
        low_dose=_low_dose(evaluation),
        verdict=summary.verdict,
        paper=PAPER,
        metrics=METRICS,
        summary={(row["anatomy"], row["image"], row["metric"]): row for row in summary.summary},
        anatomies=sorted(patients["anatomy"].unique()),
        change={(row["anatomy"], row["metric"]): row for row in summary.restored_less_low},
        rows=_patient_rows(evaluation, patients),
        left_out=summary.left_out,
        failures=summary.failures,
        tasks=summary.tasks,
        study=summary.study,
        balance=balance(summary.tasks, summary.study),
        edges=edge_curves(evaluation.tasks),
        lesions=lesion_pictures(evaluation.tasks),
        distributions=distributions(patients),
        noise_power=noise_power([(r.anatomy, r.measured.noise) for r in evaluation.patients]),
        viewer=json.dumps(_viewer(evaluation)),
    )


def _low_dose(evaluation: Evaluation) -> str:
    """What a figure over all patients calls their low dose."""
    simulated = len(evaluation.simulated)
    if not simulated:
        return "low dose"
    if simulated == len(evaluation.patients):
        return "simulated low dose"
    return f"low dose ({simulated} of {len(evaluation.patients)} patients: simulated dose)"


def _patient_rows(evaluation: Evaluation, patients: pd.DataFrame) -> list[dict[str, Any]]:
    table = patients.set_index(["patient", "image"])
    champion = evaluation.champion
    before = (
        None
        if champion is None
        else champion[champion["image"] == "restored"].set_index("patient")["psnr"]
    )
    return [
        {
            "patient": result.patient,
            "anatomy": result.anatomy,
            "acquisition": evaluation.acquisition[result.patient],
            "low": table.loc[(result.patient, "low")],
            "restored": table.loc[(result.patient, "restored")],
            "champion": None if before is None else before[result.patient],
        }
        for result in evaluation.patients
    ]


def _viewer(evaluation: Evaluation) -> dict[str, Any]:
    presets = {
        name: {"level": window.level, "width": window.width} for name, window in WINDOWS.items()
    }
    return {
        "levels": LEVELS.tolist(),
        "presets": presets | {"bone": {"level": 400, "width": 1800}},
        "patients": [
            {
                "patient": result.patient,
                "low": "simulated low dose"
                if result.patient in evaluation.simulated
                else "low dose",
                "window": {
                    "level": window_of(result.anatomy).level,
                    "width": window_of(result.anatomy).width,
                },
                "slices": [
                    {
                        "index": view.index,
                        "label": view.label,
                        **{
                            name: base64.b64encode(png).decode()
                            for name, png in view.images.items()
                        },
                    }
                    for view in result.views
                ],
            }
            for result in evaluation.patients
            if result.views
        ],
    }


def _figure(value: float | None, *, signed: bool = False) -> str:
    """Four significant digits: metrics differ in size by four orders."""
    if value is None or pd.isna(value):
        return "n/a"
    return f"{value:{'+' if signed else ''}.4g}"


def _number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    if value is None or pd.isna(value):
        return "n/a"
    return f"{value:{'+' if signed else ''}.{digits}f}"
