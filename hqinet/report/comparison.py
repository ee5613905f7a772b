"""Two evaluations of the same patients, side by side on one page."""

from pathlib import Path
from typing import Any

import pandas as pd

from hqinet.quality import statistics
from hqinet.quality.metrics import METRICS
from hqinet.report.page import page_template
from hqinet.report.summary import Summary

SHOWN = ("psnr", "psnr_window", "ssim_window", "rmse", "noise_removed", "edge_sharpness")


def write(left: Summary, right: Summary, folder: Path) -> pd.DataFrame:
    """Set two `summary.json` contents side by side in `folder`; returns the paired tests.

    Writes `comparison.html` and `comparison.csv`. Differences are right less left, of restored
    images. Raises ValueError unless both are of the same patients.
    """
    tables = [_restored(side) for side in (left, right)]
    paired = statistics.differences(tables[1], tables[0])
    tests = statistics.paired_tests(paired)
    folder.mkdir(parents=True, exist_ok=True)
    tests.to_csv(folder / "comparison.csv", index=False)
    means = [
        {
            (row["anatomy"], row["metric"]): row["mean"]
            for row in side.summary
            if row["image"] == "restored"
        }
        for side in (left, right)
    ]
    page = page_template("comparison.html.j2").render(
        left=left.provenance,
        right=right.provenance,
        names=list(left.provenance),
        shown=SHOWN,
        rows=_rows(*tables),
        tests=tests.to_dict("records"),
        means=means,
        metrics=METRICS,
    )
    (folder / "comparison.html").write_text(page, encoding="utf-8")
    return tests


def _restored(summary: Summary) -> pd.DataFrame:
    table = summary.table()
    return table[table["image"] == "restored"]


def _rows(left: pd.DataFrame, right: pd.DataFrame) -> list[dict[str, Any]]:
    sides = [table.set_index("patient").sort_index() for table in (left, right)]
    return [
        {"patient": patient, "left": sides[0].loc[patient], "right": sides[1].loc[patient]}
        for patient in sides[0].index
    ]
