import threading
from dataclasses import replace

import pytest

from storage.errors import Conflict
from storage.models.promotions import Entry, Promotions
from storage.stores.location import Location


@pytest.fixture
def promotions(tmp_path) -> Promotions:
    return Promotions(Location(tmp_path / "promotions"))


def entry(candidate: int, *, passed: bool = True, champion: int | None = None) -> Entry:
    return Entry(
        action="promote",
        candidate=candidate,
        champion=champion,
        passed=passed,
        commit=1,
        details={"rules": [candidate]},
    )


def test_entries_come_back_in_order(promotions):
    for number in (1, 2, 3):
        promotions.append(entry(number, passed=number != 3), promotions.read())
    history = promotions.read()
    assert [row.candidate for row in history.entries] == [1, 2, 3]
    assert history.last_pass.candidate == 2
    assert history.entries[0].details == {"rules": [1]}
    assert history.entries[0].time <= history.entries[2].time


def test_an_empty_history_has_no_champion(promotions):
    assert promotions.read().last_pass is None


def test_who_judged_on_an_older_history_must_judge_again(promotions):
    old = promotions.read()
    promotions.append(entry(1), old)
    with pytest.raises(Conflict):
        promotions.append(entry(2), old)
    assert [row.candidate for row in promotions.read().entries] == [1]


def test_of_many_at_once_one_wins_and_nothing_is_lost(promotions):
    old, won = promotions.read(), []

    def attempt(number: int) -> None:
        try:
            promotions.append(entry(number), old)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [row.candidate for row in promotions.read().entries] == won


def test_the_first_reading_may_race(tmp_path):
    readers = [Promotions(Location(tmp_path / "promotions")) for _ in range(4)]
    found = []
    threads = [threading.Thread(target=lambda r=r: found.append(r.read())) for r in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [history.version for history in found] == [0] * 4


def test_rollbacks_go_back_along_the_succession(promotions):
    def add(candidate: int, action: str = "promote") -> None:
        given = replace(entry(candidate), action=action)
        promotions.append(given, promotions.read())

    for candidate in (1, 2, 3):
        add(candidate)
    assert promotions.read().succession == [1, 2, 3]
    add(2, "rollback")
    add(1, "rollback")
    assert promotions.read().succession == [1]
    add(4)
    assert promotions.read().succession == [1, 4]
    add(5)
    add(1, "rollback")
    assert promotions.read().succession == [1]
