"""The report: numbers that add up, bounded size, and a page that works in a real browser.

In one file, for its tests share one report and one browser.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from playwright.sync_api import Page, sync_playwright

from hqinet.quality import gate, statistics
from hqinet.quality.evaluation import measure_patient, measure_unrestored
from hqinet.quality.evidence import Evidence
from hqinet.quality.policy import load_policy
from hqinet.quality.reader_study import ask_observer
from hqinet.quality.tasks import perform_tasks
from hqinet.report import page as report
from hqinet.report.key_slices import CHOSEN_BY, LEVELS, choose_slices, keep_views
from hqinet.report.summary import load_summary
from hqinet.restoration.restore import restore_to_file
from hqinet.samples.pairs import VolumePair

SIZE, SLICES, BATCH = 64, 10, 4


def smoothed(hu: torch.Tensor) -> torch.Tensor:
    """A restorer that every reader can check by hand."""
    middle = hu[:, 1:2]
    return 0.5 * middle + 0.5 * F.avg_pool2d(F.pad(middle, (1, 1, 1, 1), mode="replicate"), 3, 1)


def patient(number: int, anatomy: str, size: int = SIZE, slices: int = SLICES) -> VolumePair:
    random = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    hu = np.where(np.hypot(x, y) < 0.8, 40.0, -1000.0) + np.zeros((slices, 1, 1))
    hu[:, np.hypot(x - 0.3, y) < 0.2] = -850
    full = hu + random.normal(0, 3, hu.shape)
    low = full + random.normal(0, 40 + 5 * np.arange(slices)[:, None, None], hu.shape)
    return VolumePair(f"P{number}", anatomy, low.astype(np.int16), full.astype(np.int16))


CPU = torch.device("cpu")


def result(pair: VolumePair, folder: Path, batch: int = BATCH) -> report.PatientResult:
    restored = restore_to_file(smoothed, pair.low, folder / f"{pair.patient}.npy", batch=batch)
    measured = measure_patient(pair, restored, spacing=(0.7, 0.7), device=CPU, batch=batch)
    slices = measured.per_slice
    quality = slices[slices["image"] == "restored"][CHOSEN_BY].to_numpy()
    views = keep_views(pair, restored, choose_slices(quality), 400_000)
    tasks = perform_tasks(pair, restored, smoothed, spacing=(1.4, 1.4), device=CPU)
    return report.PatientResult(pair.patient, pair.anatomy, measured, views, tasks=tasks)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> report.Evaluation:
    results = [
        result(patient(number, anatomy), tmp_path_factory.mktemp("scratch"))
        for number, anatomy in enumerate(["chest", "abdomen", "chest"])
    ]
    table = statistics.per_patient(pd.concat([r.measured.per_slice for r in results]))
    champion = table.assign(psnr=table["psnr"] - 0.25)
    lineage = {"commit": "4", "recipe": "<script>alert(1)</script>"}
    evidence = Evidence(table), Evidence(champion)
    verdict = gate.judge(load_policy("default"), *evidence, lineage)
    provenance = {
        "data": "",
        "model version": "7",
        "recipe": "<script>alert(1)</script>",
        "split": "test",
        "dataset commit": "4",
        "dataset": "7c9e6679",
        "dataset digest": "0123abcd",
        "evaluated by code": "0.1.0",
    }
    acquired = {result.patient: "GE, kernel soft, 10% dose" for result in results}
    made = {"P1": "0.25 of the full dose, seed 0"}
    study = ask_observer([result.tasks for result in results])
    return report.Evaluation(provenance, acquired, made, results, study, champion, verdict)


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(evaluation, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder) -> Page:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "install Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.messages, page.requested = [], []
        page.on("console", lambda m: m.type == "error" and page.messages.append(m.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(f"file://{folder}/report.html")
        page.wait_for_selector("body[data-drawn]")
        yield page
        browser.close()


def drawn(page: Page) -> list[str]:
    page.wait_for_timeout(80)
    return page.get_attribute("body", "data-drawn").split("/")


def pixels(page: Page, view: str) -> np.ndarray:
    values = page.evaluate(
        """id => { const c = document.getElementById(id);
        return [c.width, ...c.getContext("2d").getImageData(0, 0, c.width, c.height).data] }""",
        view,
    )
    return np.array(values[1:], np.uint8).reshape(-1, values[0], 4)[..., 0]


def test_tables_agree_with_one_another(folder, evaluation):
    slices = pd.read_parquet(folder / "per_slice.parquet")
    patients = pd.read_csv(folder / "per_patient.csv")
    summary = json.loads((folder / "summary.json").read_text())
    assert len(slices) == 3 * 2 * SLICES
    means = slices.groupby(["patient", "image"])["l1"].mean()
    for row in patients.itertuples():
        assert row.l1 == pytest.approx(means[row.patient, row.image])
    chest = [
        row["mean"]
        for row in summary["summary"]
        if (row["anatomy"], row["image"], row["metric"]) == ("chest", "low", "psnr")
    ]
    mask = (patients["anatomy"] == "chest") & (patients["image"] == "low")
    assert chest == [pytest.approx(patients[mask]["psnr"].mean())]
    against = {row["metric"]: row for row in summary["restored_less_champion"]}
    assert against["psnr"]["mean"] == pytest.approx(0.25)
    assert summary["verdict"]["passed"] is evaluation.verdict.passed


def test_the_papers_figures_stand_beside_ours_with_a_warning(folder):
    page = (folder / "report.html").read_text()
    assert page.index("for orientation, not for comparison") < page.index("25.81")


def test_a_summary_is_read_again_as_it_was_written(folder, evaluation):
    text = (folder / "summary.json").read_text()
    summary = load_summary(text)
    table = statistics.per_patient(evaluation.per_slice)
    pd.testing.assert_frame_equal(summary.table(), table, check_dtype=False)
    assert summary.evidence().failures == {}
    assert summary.verdict == evaluation.verdict
    assert summary.to_json() == text


@pytest.mark.parametrize(
    "spoil",
    [lambda text: text[:-200], lambda text: text.replace('"schema": 3', '"schema": 2')],
)
def test_half_a_summary_or_one_of_another_schema_is_none(folder, spoil):
    assert load_summary(spoil((folder / "summary.json").read_text())) is None


def test_who_could_not_be_restored_is_named_with_the_reason(evaluation, tmp_path):
    pair = patient(5, "chest")
    measured = measure_unrestored(pair, spacing=(0.7, 0.7), device=CPU, batch=BATCH)
    lost = report.PatientResult("P5", "chest", measured, [], "the model returned NaN")
    provenance, acquired = evaluation.provenance, evaluation.acquisition | {"P5": "GE"}
    whole = report.Evaluation(
        provenance, acquired, {}, [*evaluation.patients, lost], evaluation.study, None, None
    )
    patients = report.write(whole, tmp_path)
    row = patients[patients["patient"] == "P5"].set_index("image")["psnr"]
    assert np.isfinite(row["low"])
    assert np.isnan(row["restored"])
    summary = load_summary((tmp_path / "summary.json").read_text())
    assert summary.failures == {"P5": "the model returned NaN"}
    assert "could not be restored" in (tmp_path / "report.html").read_text()


def test_memory_bounded_pieces_give_the_numbers_of_the_whole(evaluation, tmp_path):
    whole = result(patient(0, "chest"), tmp_path, SLICES).measured
    parts = evaluation.patients[0].measured
    pieces = parts.per_slice.sort_values(["image", "slice"], ignore_index=True)
    together = whole.per_slice.sort_values(["image", "slice"], ignore_index=True)
    pd.testing.assert_frame_equal(pieces, together, rtol=1e-4)
    assert whole.noise["low"].power == pytest.approx(parts.noise["low"].power)


def test_views_are_chosen_by_number(evaluation):
    result = evaluation.patients[0]
    slices = result.measured.per_slice
    restored = slices[slices["image"] == "restored"]
    quality = restored.set_index("slice")["psnr_window"]
    labels = {view.label: view.index for view in result.views if view.label}
    assert labels["best"] == quality.idxmax()
    assert labels["worst"] == quality.idxmin()


def test_twenty_patients_stay_under_30_mb(tmp_path):
    noisy = patient(1, "chest", size=512, slices=30)
    budget = report.BYTES_FOR_IMAGES // 20
    views = keep_views(noisy, noisy.low, {0: "best", 15: "median", 29: "worst"}, budget)
    size = sum(len(png) for view in views for png in view.images.values())
    assert size * 20 * 4 / 3 < 28e6
    assert len(views) >= 7


def test_the_slider_moves_the_slice(page):
    before = pixels(page, "view-low")
    page.fill("#slice", "0")
    assert drawn(page)[1] == "0"
    assert not np.array_equal(before, pixels(page, "view-low"))


def test_a_preset_changes_the_window(page):
    page.click("[data-preset=abdomen]")
    assert drawn(page)[2:] == ["50", "400"]
    abdomen = pixels(page, "view-full")
    page.click("[data-preset=chest]")
    assert drawn(page)[2:] == ["-600", "1500"]
    assert not np.array_equal(abdomen, pixels(page, "view-full"))


def test_shown_greys_are_the_hu_in_the_window(page, evaluation):
    page.click("[data-preset=chest]")
    name, index, _, _ = drawn(page)
    result = next(r for r in evaluation.patients if r.patient == name)
    full = patient(int(name[1:]), result.anatomy).full[int(index)].astype(float)
    expected = np.clip(255 * ((full + 600.5) / 1499 + 0.5), 0, 255)
    step = 255 * np.abs(np.diff(LEVELS))[: np.searchsorted(LEVELS, 200)].max() / 1499
    assert np.abs(pixels(page, "view-full") - expected).max() < step + 1


def test_dragging_moves_level_and_width(page):
    page.click("[data-preset=abdomen]")
    box = page.locator("#view-low").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 80, box["y"] + 20)
    page.mouse.up()
    level, width = map(int, drawn(page)[2:])
    assert level > 50
    assert width > 400


def test_keys_move_slice_patient_and_window(page):
    page.evaluate("document.activeElement.blur()")
    first = drawn(page)
    page.keyboard.press("ArrowDown")
    assert drawn(page)[1] != first[1]
    page.keyboard.press("ArrowRight")
    assert drawn(page)[0] == "P1"
    page.keyboard.press("2")
    assert drawn(page)[2:] == ["50", "400"]


def test_swipe_shows_two_images_with_a_border(page):
    page.click("#mode")
    assert page.is_visible("#view-swipe")
    assert not page.is_visible("#view-low")
    swipe, low, restored = (pixels(page, f"view-{name}") for name in ("swipe", "low", "restored"))
    half = SIZE // 2
    assert np.array_equal(swipe[:, : half - 1], low[:, : half - 1])
    assert np.array_equal(swipe[:, half + 2 :], restored[:, half + 2 :])
    page.click("#mode")
    assert page.is_visible("#view-low")


def test_the_best_median_and_worst_are_one_click_away(page, evaluation):
    name = drawn(page)[0]
    result = next(r for r in evaluation.patients if r.patient == name)
    for view in result.views:
        if view.label:
            page.click(f"[data-jump={view.label}]")
            assert drawn(page)[1] == str(view.index)


def test_the_table_sorts_both_ways(page):
    column = "#patients tbody tr td:nth-child(5)"
    orders = []
    for _ in range(2):
        page.click("#patients th:nth-child(5)")
        orders.append([float(value) for value in page.locator(column).all_inner_texts()])
    assert orders[0] == sorted(orders[0])
    assert orders[1] == sorted(orders[0], reverse=True)


def test_it_prints_without_its_controls(page):
    page.emulate_media(media="print")
    assert not page.is_visible("#mode")
    assert page.is_visible("#view-full")
    assert "slice" in page.inner_text("#shown")
    page.set_viewport_size({"width": 1030, "height": 728})
    wide = page.eval_on_selector_all(
        "table", "tables => tables.filter(t => t.getBoundingClientRect().right > innerWidth).length"
    )
    page.set_viewport_size({"width": 1300, "height": 900})
    page.emulate_media(media="screen")
    assert wide == 0


def test_the_sheet_shows_every_patient_and_leads_to_the_viewer(page, evaluation):
    page.wait_for_selector("body[data-sheet]")
    figures = page.locator("#sheet figure")
    assert figures.count() == len(evaluation.patients)
    figures.nth(2).click()
    page.wait_for_selector("body[data-drawn^='P2/']")
    assert page.locator("#sheet canvas").count() == 3 * len(evaluation.patients)
    page.select_option("#patient", "0")
    page.wait_for_selector("body[data-drawn^='P0/']")


def test_text_from_elsewhere_is_text(page, folder):
    assert "&lt;script&gt;alert(1)" in (folder / "report.html").read_text()
    assert "alert(1)" in page.locator("dl").last.inner_text()


def test_no_console_error_and_nothing_from_a_network(page, folder):
    assert page.messages == []
    assert {re.split(r"[:/]", url)[0] for url in page.requested} <= {"file", "data"}
    assert len([url for url in page.requested if url.startswith("file")]) == 1


@pytest.mark.parametrize("width", [1280, 800, 420])
def test_nothing_is_cut_off_on_a_narrow_screen(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    beyond = page.evaluate(
        """() => [...document.querySelectorAll(".verdict td, .verdict th, #patients td")]
        .filter(cell => cell.getBoundingClientRect().right > innerWidth + 1)
        .map(cell => cell.innerText)"""
    )
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.set_viewport_size({"width": 1300, "height": 900})
    assert beyond == []
    assert overflow <= 0


def test_a_simulated_dose_is_said_at_the_head_and_of_each_figure(page, folder, evaluation):
    assert load_summary((folder / report.SUMMARY).read_text()).simulated == evaluation.simulated
    head = page.inner_text("section.synthetic")
    for words in ("Simulated dose.", "1 of 3 patients", "0.25 of the full dose, seed 0"):
        assert words in head
    assert page.inner_text("main").count("low dose (1 of 3 patients: simulated dose)") == 5
    captions = page.locator("#sheet figcaption").all_inner_texts()
    assert ["simulated low dose" in caption for caption in captions] == [False, True, False]
    page.select_option("#patient", "1")
    assert drawn(page)[0] == "P1"
    assert page.inner_text("#low-name") == "simulated low dose"
