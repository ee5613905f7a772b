"""Full-dose series without a partner get a simulated one, and what is delivered comes first."""

import os
from dataclasses import replace

import numpy as np
import pytest
import zarr

from storage.dataset import volumes
from storage.dataset.upkeep import verify
from storage.errors import CohortFileError, DatasetError
from storage.ingest.cohort import CohortRules
from storage.ingest.delivery import SimulatedPartner
from storage.ingest.simulation import DetectorRules, SimulationRules, read_detector_file
from storage.refusals import Code, Refusal

RULES = CohortRules(simulate=SimulationRules(dose=0.25, seed=3))


def brighter(hu, pair):
    """A simulator that can be seen through."""
    return SimulatedPartner(
        np.stack([hu + pair.simulation.seed + k for k in range(pair.simulation.realisations)]),
        {"dose": pair.dose_fraction},
        "a quarter",
        "simulated dose",
    )


def test_a_full_dose_series_gets_a_partner(tmp_path, series, dataset, deliver):
    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    done = deliver(dataset, tmp_path / "source", rules=RULES, simulate=brighter)
    (row,) = done.snapshot.patients()
    assert (row.note, row.dose_fraction, row.simulated) == ("simulated dose", 0.25, "a quarter")
    assert done.refused == []
    volume = done.snapshot.volume("L001")
    np.testing.assert_array_equal(volume.low[:], volume.full[:] + 3)
    group = zarr.open_group(f"{dataset.location}/{row.path}", mode="r")
    assert group.attrs["simulated"]["dose"] == 0.25
    again = deliver(dataset, tmp_path / "source", rules=RULES, simulate=brighter)
    assert again.outcome.unchanged == 1


def test_a_delivered_partner_comes_first(tmp_path, series, dataset, deliver):
    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    series("L001", "LOW", seed=1, low=True).write(tmp_path / "source" / "low")
    done = deliver(dataset, tmp_path / "source", rules=RULES, simulate=brighter)
    (row,) = done.snapshot.patients()
    assert (row.note, row.simulated) == (None, None)
    assert "simulated" not in zarr.open_group(f"{dataset.location}/{row.path}", mode="r").attrs


def test_a_damaged_partner_is_not_replaced_by_a_simulated_one(tmp_path, series, dataset, deliver):
    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    folder = series("L001", "LOW", seed=1, low=True).write(tmp_path / "source" / "low")
    sorted(folder.iterdir())[1].unlink()
    done = deliver(dataset, tmp_path / "source", rules=RULES, simulate=brighter)
    assert done.accepted == []
    assert [code for _, code in done.refused] != ["simulation_failed"]


def test_an_anatomy_without_a_dose_has_no_partner(tmp_path, series, dataset, deliver):
    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    rules = CohortRules(simulate=SimulationRules(dose={"chest": 0.1}))
    done = deliver(dataset, tmp_path / "source", rules=rules, simulate=brighter)
    assert done.refused == [("L001", "no_low_dose")]


def test_what_cannot_be_simulated_is_refused_with_the_reason(tmp_path, series, dataset, deliver):
    def failing(hu, pair):
        raise Refusal(Code.SIMULATION_FAILED, "implies 0.5, not the stated 0.25")

    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    done = deliver(dataset, tmp_path / "source", rules=RULES, simulate=failing)
    assert done.refused == [("L001", "simulation_failed")]
    assert "implies 0.5" in done.refusal.reason


@pytest.mark.parametrize(
    "other",
    [
        SimulationRules(dose=0.1, seed=3),
        SimulationRules(dose=0.25, seed=3, version=2),
        SimulationRules(dose=0.25, seed=3, realisations=2),
        SimulationRules(dose=0.25, seed=3, detector=DetectorRules(photons=1e5)),
    ],
)
def test_another_dose_or_simulator_makes_the_partner_anew(
    tmp_path, series, dataset, deliver, other
):
    made = []

    def counting(hu, pair):
        made.append(pair.simulation)
        return brighter(hu, pair)

    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    for rules in (RULES, CohortRules(simulate=other)):
        deliver(dataset, tmp_path / "source", rules=rules, simulate=counting)
    assert made == [RULES.simulate, other]


def test_several_realisations_are_kept_checked_and_read(tmp_path, series, dataset, deliver):
    rules = CohortRules(simulate=SimulationRules(dose=0.25, seed=1, realisations=3))
    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    done = deliver(dataset, tmp_path / "source", rules=rules, simulate=brighter)
    volume = done.snapshot.volume("L001")
    for number, low in enumerate([volume.low, *volume.repeats]):
        np.testing.assert_array_equal(low[:], volume.full[:] + 1 + number)
    assert len(volume.repeats) == 2
    assert verify(done.snapshot, deep=True).problems == []
    again = deliver(dataset, tmp_path / "source", rules=rules, simulate=brighter)
    assert again.outcome.unchanged == 1
    (row,) = done.snapshot.patients()
    lost = tmp_path / "dataset" / row.path / "low_3" / "c" / "0" / "0" / "0"
    content = lost.read_bytes()
    lost.unlink()
    assert [p.patient for p in verify(done.snapshot).problems] == ["L001"]
    lost.write_bytes(content[:-200] + bytes(200))
    assert [p.patient for p in verify(done.snapshot, deep=True).problems] == ["L001"]


def test_partners_made_before_realisations_and_detectors_keep_their_identity():
    assert SimulationRules(dose=0.25, seed=3).made_with() == {"seed": 3, "version": 1}


def test_a_detector_file_says_what_is_wrong_in_it(tmp_path):
    file = tmp_path / "detector.toml"
    file.write_text("photons = 2e5\n[kernels.B30f]\nmtf = [1.0, 0.5]\nstep = 0.1\n")
    assert read_detector_file(file).kernels["B30f"].mtf == (1.0, 0.5)
    file.write_text("fotons = 2e5\n")
    with pytest.raises(CohortFileError, match=r"detector file .*`fotons`: .*known keys: photons"):
        read_detector_file(file)


def test_another_machines_bits_are_the_same_partner_and_another_seeds_are_not(
    tmp_path, series, dataset, deliver
):
    def rounding_up(hu, pair):
        made = brighter(hu, pair)
        return replace(
            made, hu=made.hu + (np.arange(made.hu.size).reshape(made.hu.shape) % 97 == 0)
        )

    def touch():
        for file in (tmp_path / "source").rglob("*.dcm"):
            os.utime(file, (1, 1))

    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    first = deliver(dataset, tmp_path / "source", rules=RULES, simulate=brighter)
    touch()
    elsewhere = deliver(dataset, tmp_path / "source", rules=RULES, simulate=rounding_up)
    assert (elsewhere.outcome.unchanged, elsewhere.outcome.changed) == (1, [])
    assert elsewhere.snapshot.digest == first.snapshot.digest
    assert verify(elsewhere.snapshot, deep=True).problems == []
    other = CohortRules(simulate=SimulationRules(dose=0.25, seed=4))
    anew = deliver(dataset, tmp_path / "source", rules=other, simulate=brighter)
    assert anew.outcome.changed == ["L001"]


def test_a_simulated_dose_that_is_not_what_was_written_is_found(tmp_path, series, dataset, deliver):
    series("L001", "FULL", seed=1).write(tmp_path / "source" / "full")
    done = deliver(dataset, tmp_path / "source", rules=RULES, simulate=brighter)
    (row,) = done.snapshot.patients()
    zarr.open_group(f"{dataset.location}/{row.path}", mode="r+")["low"][0, 0, 0] = 7
    with pytest.raises(DatasetError, match="low dose is not what was written"):
        volumes.digest(dataset.location, row.path)
