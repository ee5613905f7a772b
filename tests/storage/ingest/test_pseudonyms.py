"""The secret of the pseudonyms stays where the delivery is held; no worker gets it."""

import pickle

import pytest

from storage.errors import PseudonymError
from storage.ingest.cohort import CohortRules
from storage.ingest.pseudonyms import Pseudonyms, pseudonyms

KEY = "a key that only this test knows"


def test_nothing_that_travels_to_a_worker_or_back_holds_the_secret(
    tmp_path, pair, series, dataset, delivery
):
    from storage.ingest.conversion import convert
    from storage.ingest.inventory import take_inventory
    from storage.ingest.planning import plan

    travelled = []

    def run(function, items):
        for item in items:
            there = pickle.dumps((function, item))
            back = pickle.dumps(pickle.loads(there)[0](item))
            travelled.extend((there, back))
            yield item, pickle.loads(back)

    pair(tmp_path / "source", "L001")
    series("L002", "FULL", seed=3).write(tmp_path / "source" / "L002" / "full")
    series("L002", "LOW", seed=3).write(tmp_path / "source" / "L002" / "low")
    rules = CohortRules(pseudonymise=True)
    opened = delivery(tmp_path / "source", rules=rules, names=Pseudonyms(KEY))
    planned = plan(opened, take_inventory(opened, run))
    accepted, refused = sorted(convert(opened, planned, run), key=lambda row: row.status)
    assert accepted.patient == Pseudonyms(KEY).patient("L001")
    assert (refused.code, refused.patient) == ("identical_doses", Pseudonyms(KEY).patient("L002"))
    assert all(file.startswith("path-") for file in refused.files)
    assert len(travelled) == 6
    assert not [content for content in travelled if KEY.encode() in content]


@pytest.mark.parametrize(("secret", "said"), [(None, "not set"), ("short", "only 5 characters")])
def test_a_secret_that_is_no_secret_is_refused(secret, said):
    with pytest.raises(PseudonymError, match=said):
        pseudonyms(pseudonymise=True, secret=secret)
