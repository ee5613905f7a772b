"""Splits are decided once: no arrival order moves an old patient, no split stays empty."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.dataset import splits
from storage.dataset.rows import Accepted
from storage.errors import StorageError
from storage.ingest.delivery import Delivery
from storage.ingest.merge import merge_delivery

ANATOMIES = ["head", "chest", "abdomen"]
VENDORS = ["Siemens", "GE"]

DELIVERY = Delivery(source=Path("/c"), cohort="c", dataset=None, memory=None, scratch=None)

# Cohorts in their order of arrival: patients' numbers, each with a stratum of its own.
arrivals = st.lists(
    st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True), min_size=1, max_size=12
)


def stratum(number: int) -> splits.Stratum:
    return ANATOMIES[number % 3], VENDORS[number % 7 % 2]


def row(number: int) -> Accepted:
    anatomy, vendor = stratum(number)
    return Accepted(
        cohort="c",
        patient=f"P{number}",
        path=f"volumes/P{number}/0",
        digest=str(number),
        slices=10,
        matrix=(8, 9),
        spacing=(3.0, 0.7, 0.7),
        pixels=f"pixels {number}",
        anatomy=anatomy,
        vendor=vendor,
    )


def commit(rows: list[Accepted], numbers: list[int]) -> list[Accepted]:
    decided = merge_delivery(rows, map(row, numbers), frozenset(), DELIVERY)
    return rows if decided.rows is None else decided.rows


@given(arrivals)
def test_no_arrival_moves_an_old_patient_and_three_patients_fill_every_split(cohorts):
    rows: list[Accepted] = []
    for numbers in cohorts:
        before = {r.patient: r.split for r in rows}
        rows = commit(rows, numbers)
        after = {r.patient: r.split for r in rows}
        assert {patient: after[patient] for patient in before} == before
        assert set(after.values()) <= set(splits.SPLITS)
        if len(rows) >= 3:
            assert set(after.values()) == set(splits.SPLITS)


@given(arrivals)
def test_splits_stay_within_two_patients_of_their_targets(cohorts):
    rows: list[Accepted] = []
    for numbers in cohorts:
        rows = commit(rows, numbers)
    count = Counter(r.split for r in rows)
    for split, share in splits.TARGETS.items():
        assert abs(count[split] - share * len(rows)) < 2


@given(st.permutations(range(30)))
def test_within_one_commit_the_order_of_files_decides_nothing(numbers):
    assert commit([], numbers) == commit([], sorted(numbers))


def test_large_strata_are_shared_out_like_the_whole():
    rows = commit([], list(range(300)))
    for stratum_ in {stratum(n) for n in range(300)}:
        inside = [r for r in rows if (r.anatomy, r.vendor) == stratum_]
        count = Counter(r.split for r in inside)
        for split, share in splits.TARGETS.items():
            assert abs(count[split] - share * len(inside)) < 3, (stratum_, count)


def test_one_and_two_patients_can_train_and_be_judged():
    assert [r.split for r in commit([], [1])] == ["train"]
    assert sorted(r.split for r in commit([], [1, 2])) == ["test", "train"]


def test_targets_are_shares_of_their_sum():
    new = {f"P{n}": ("chest", "GE") for n in range(100)}
    chosen = splits.assign([], new, {"train": 6, "validation": 2, "test": 2})
    assert Counter(chosen.values()) == {"train": 60, "validation": 20, "test": 20}


names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


@given(st.dictionaries(names, st.sampled_from(splits.SPLITS)))
def test_csv_comes_back_as_it_went(chosen):
    assert splits.from_csv(splits.to_csv(chosen)) == chosen


def test_a_csv_from_a_spreadsheet_is_read():
    text = "\ufeffsplit,patient,remark\r\ntest , L001,x\r\n"
    assert splits.from_csv(text) == {"L001": "test"}
    with pytest.raises(StorageError, match="line 3"):
        splits.from_csv("patient,split\nA,test\nB,\n")


def test_a_csv_in_another_encoding_says_how_to_save_it(tmp_path):
    file = tmp_path / "splits.csv"
    file.write_bytes("patient,split\nMüller,test\n".encode("latin-1"))
    with pytest.raises(StorageError, match=r"not UTF-8 .*CSV UTF-8"):
        splits.read_csv(file)
