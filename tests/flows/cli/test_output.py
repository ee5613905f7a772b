"""What the command prints for people: sentences and tables, without the work that they tell of."""

import pytest

from flows.cli import collections, output
from flows.errors import FlowError


@pytest.fixture
def printed(capsys):
    """What `show(result)` prints."""

    def run(show, *results) -> str:
        show(*results)
        return capsys.readouterr().out

    return run


def refusal(patient: str, code: str) -> dict:
    return {
        "source": f"{patient}/Full Dose Images",
        "patient": patient,
        "code": code,
        "reason": "no low-dose series",
        "files": [],
    }


def test_refusals_are_counted_by_code_before_they_are_listed(printed):
    rows = [refusal(f"L{n:03}", "no_low_dose") for n in range(12)] + [refusal("C001", "geometry")]
    text = printed(output.print_refused, rows)
    assert text.splitlines()[0] == "13 refused: 12 no_low_dose, 1 geometry"
    assert text.count("no_low_dose") == 13
    assert printed(output.print_refused, []) == ""


def test_a_verdict_and_the_list_of_models_name_the_policy(printed):
    verdict = {"rules": [], "verdict": "refused", "policy": "strict", "model": 3, "commit": 2}
    verdict["shadow"] = None
    assert printed(output.print_verdict, verdict) == (
        "model version 3: refused by the policy strict\n"
    )
    version = {"version": 3, "aliases": [], "verdict": "refused", "verdict_policy": "strict"}
    assert "strict" in printed(output.print_models, {"models": [version]})


def test_what_was_left_aside_is_named(printed):
    result = {
        "accepted": [],
        "refused": [],
        "notes": {},
        "unchanged": 1,
        "changed": [],
        "commit": 4,
        "skipped": {"other": 3},
        "skipped_files": {"other": ["metadata.csv"]},
    }
    assert "files left aside: 3 other (metadata.csv, ...)" in printed(output.print_ingest, result)


def test_gigabytes_are_not_downloaded_unasked_where_nobody_answers(tmp_path):
    with pytest.raises(FlowError, match=r"3378 files, 1\.78 GB: .* say --yes"):
        collections.fetch("ldct_and_projection_data", tmp_path, anatomy="chest", limit=5)
