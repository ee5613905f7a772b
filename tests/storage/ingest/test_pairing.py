"""Low and full dose of one patient on one grid: stated rules for every other case."""

import shutil
from dataclasses import replace

import pydicom
import pytest

from storage.ingest.cohort import CohortRules, PatientRule
from storage.ingest.inventory import take_inventory
from storage.ingest.planning import plan


def write(series, root, **of):
    """Both doses, with keyword arguments `low` and `full` of their own."""
    series("L001", "FULL", seed=1, **of.get("full", {})).write(root / "full")
    series("L001", "LOW", seed=1, low=True, **of.get("low", {})).write(root / "low")
    return root


def test_both_doses_arrive_whole_and_where_they_lie(tmp_path, series, dataset, deliver):
    done = deliver(dataset, write(series, tmp_path / "source"))
    volume = done.snapshot.volume("L001")
    assert (volume.full[:] == series(seed=1).values()).all()
    assert (volume.low[:] == series(seed=1, low=True).values()).all()
    assert volume.spacing == (3.0, 0.7, 0.8)
    assert volume.positions == tuple(-50.0 + 3 * i for i in range(10))
    assert volume.anatomy == "abdomen"
    (row,) = done.snapshot.patients()
    assert (row.slices, row.matrix, row.vendor, row.dose_fraction) == (
        10,
        (16, 20),
        "Siemens",
        0.25,
    )


def test_fingerprints_are_those_of_the_datasets_that_exist(tmp_path, series, delivery, here):
    """Another one makes every ingest after an upgrade read all pixels again."""
    opened = delivery(write(series, tmp_path / "source"))
    found = take_inventory(opened, here)
    records = tuple(
        replace(
            record,
            header=replace(
                record.header,
                instance=str(record.header.frames[0].position),
                series=record.role,
                size=1000,
                mtime_ns=5,
            ),
        )
        for record in found.records
    )
    (pair,) = plan(opened, replace(found, records=records)).pairs
    assert pair.fingerprint == "3eeca92bb1221e7dc2ad835029ec513f94464d3bda8c4abb6e8942248971bccf"


@pytest.mark.parametrize(
    ("low", "quoted"),
    [
        ({"matrix": (16, 24)}, ["(16, 24)", "(16, 20)"]),
        ({"spacing": (0.7, 0.9)}, ["0.9", "0.8"]),
        ({"increment": 1.5, "slices": 20}, ["1.5", "3"]),
        ({"start": -49.0}, ["-49", "-50", "0 slices in common"]),
        ({"start": -50.0 + 9, "slices": 10}, ["7 slices in common", "8 or more"]),
        (
            {"attributes": {"ImageOrientationPatient": [0.995, 0.0998, 0, -0.0998, 0.995, 0]}},
            ["0.995"],
        ),
    ],
    ids=["matrix", "spacing", "increment", "offset", "too little overlap", "orientation"],
)
def test_different_grids_are_refused_with_both_values(
    tmp_path, series, dataset, deliver, low, quoted
):
    done = deliver(dataset, write(series, tmp_path / "source", low=low))
    assert done.refused == [("L001", "different_grids")]
    assert all(value in done.refusal.reason for value in quoted), done.refusal.reason


def test_another_origin_in_the_plane_is_another_grid(tmp_path, series, dataset, deliver):
    def aside(i, image):
        image.ImagePositionPatient = [-95, -120, -50 + 3 * i]
        return image

    done = deliver(dataset, write(series, tmp_path / "source", low={"change": aside}))
    assert done.refused == [("L001", "different_grids")]


def test_a_partial_overlap_is_cropped_and_said(tmp_path, series, dataset, deliver):
    done = deliver(
        dataset,
        write(series, tmp_path / "source", low={"slices": 12, "start": -50.0 + 6}),
    )
    assert done.accepted == ["L001"]
    volume = done.snapshot.volume("L001")
    assert volume.positions == tuple(-44.0 + 3 * i for i in range(8))
    assert (volume.full[:] == series(seed=1).values()[2:]).all()
    assert (volume.low[:] == series(seed=1, low=True, slices=12).values()[:8]).all()
    assert "cropped to 8 common slices" in done.outcome.accepted[0].note


def test_a_cropped_tilted_pair_keeps_its_line(tmp_path, series, dataset, deliver):
    def tilted(first):
        def change(i, image):
            z = first + i
            image.ImagePositionPatient = [-100, -120 + z * 0.64, z * 3]
            return image

        return change

    done = deliver(
        dataset,
        write(series, tmp_path / "s", low={"change": tilted(2)}, full={"change": tilted(0)}),
    )
    assert done.accepted == ["L001"]
    assert done.outcome.accepted[0].slices == 8


def test_of_several_reconstructions_the_pair_with_most_slices_is_chosen(
    tmp_path, series, dataset, deliver
):
    source = tmp_path / "source"
    for mm, slices in (("1mm", 30), ("3mm", 10)):
        geometry = {"increment": float(mm[0]), "slices": slices}
        series("L001", f"full {mm}", seed=1, **geometry).write(source / f"full_{mm}")
        series("L001", f"quarter {mm}", seed=1, low=True, **geometry).write(
            source / f"quarter_{mm}"
        )
    done = deliver(dataset, source)
    assert done.accepted == ["L001"]
    assert done.outcome.accepted[0].slices == 30
    assert "chosen among 4 series" in done.outcome.accepted[0].note
    assert [code for _, code in done.refused] == ["not_chosen", "not_chosen"]


ALIKE = {
    "kernel": ("ConvolutionKernel", ["B30f", "B50f"]),
    "unknown kernel": ("ConvolutionKernel", ["Qr40d", "Qr60d"]),
    "thickness": ("SliceThickness", [1, 5]),
}


@pytest.mark.parametrize("chosen", [0, 1])
@pytest.mark.parametrize("what", ALIKE)
def test_of_several_reconstructions_both_doses_have_one(
    tmp_path, series, dataset, deliver, what, chosen
):
    source = tmp_path / "source"
    keyword, values = ALIKE[what]
    for seed, value in enumerate(values):
        about = {"attributes": {keyword: value}}
        series("L001", f"full {seed}", seed=seed, **about).write(source / f"full_{seed}")
    low = series("L001", "low", low=True, attributes={keyword: values[chosen]})
    low.write(source / "low")
    done = deliver(dataset, source)
    assert (done.snapshot.volume("L001").full[:] == series(seed=chosen).values()).all()
    assert "differ" not in done.outcome.accepted[0].note


def test_a_pair_of_two_reconstructions_is_accepted_and_said(tmp_path, series, dataset, deliver):
    low = {"attributes": {"ConvolutionKernel": "B30f", "SliceThickness": 1}}
    full = {"attributes": {"ConvolutionKernel": "B60f", "SliceThickness": 5}}
    done = deliver(dataset, write(series, tmp_path / "source", low=low, full=full))
    (row,) = done.snapshot.patients()
    assert "kernels differ: low dose B30f, full dose B60f" in row.note
    assert "slice thickness differs: low dose 1 mm, full dose 5 mm" in row.note


def test_a_series_of_several_reconstructions_has_none_and_it_is_said(
    tmp_path, series, dataset, deliver
):
    about = {"attributes": {"ConvolutionKernel": "B30f", "SliceThickness": 3}}
    source = write(series, tmp_path / "source", low=about, full=about)
    first, second, *_ = sorted((source / "full").iterdir())
    image = pydicom.dcmread(first)
    # What is absent is no other reconstruction.
    del image.ConvolutionKernel, image.SliceThickness
    image.save_as(first)
    (row,) = deliver(dataset, source).outcome.accepted
    assert (row.kernel, row.note) == ("B30f", None)
    image = pydicom.dcmread(second)
    image.ConvolutionKernel, image.SliceThickness = "B60f", 7
    image.save_as(second)
    (row,) = deliver(dataset, source).outcome.accepted
    assert row.kernel == "other"
    assert row.note == "full dose: slices differ in kernel and slice thickness"


def test_a_pair_with_a_stray_slice_is_no_worse_than_one_of_two_kernels(
    tmp_path, series, dataset, deliver
):
    low = series("L001", "low", low=True, slices=12, attributes={"ConvolutionKernel": "B30f"})
    low.write(tmp_path / "source" / "low")
    for seed, (kernel, slices) in enumerate((("B30f", 12), ("B60f", 11))):
        about = {"attributes": {"ConvolutionKernel": kernel}, "slices": slices}
        series("L001", f"full {seed}", seed=seed, **about).write(tmp_path / "source" / f"f{seed}")
    file = sorted((tmp_path / "source" / "f0").iterdir())[4]
    image = pydicom.dcmread(file)
    image.ConvolutionKernel = "B60f"
    image.save_as(file)
    (row,) = deliver(dataset, tmp_path / "source").outcome.accepted
    assert (row.slices, row.note.split(";")[0]) == (12, "full dose: slices differ in kernel")


def test_of_two_studies_both_doses_are_of_one(tmp_path, series, dataset, deliver):
    patients = [f"L00{number}" for number in range(4)]
    for patient in patients:
        for seed in (1, 2):
            study = {"StudyInstanceUID": f"1.2.{seed}"}
            folder = tmp_path / "source" / patient / f"study {seed}"
            for name, low in (("FULL", False), ("LOW", True)):
                one = series(patient, name, seed=seed + 10 * int(patient[1:]), attributes=study)
                one.low = low
                one.write(folder / f"{name} {seed}")
    done = deliver(dataset, tmp_path / "source")
    assert done.accepted == patients
    for patient in patients:
        volume = done.snapshot.volume(patient)
        seed = next(
            seed
            for seed in (1 + 10 * int(patient[1:]), 2 + 10 * int(patient[1:]))
            if (volume.full[:] == series(seed=seed).values()).all()
        )
        assert (volume.low[:] == series(seed=seed, low=True).values()).all()


def test_increments_that_drift_apart_are_refused(tmp_path, series, dataset, deliver):
    full, low = {"slices": 101, "increment": 0.625}, {"slices": 101, "increment": 0.6}
    done = deliver(dataset, write(series, tmp_path / "source", full=full, low=low))
    assert done.refused == [("L001", "different_grids")]
    assert "drift apart" in done.refusal.reason


def test_a_broken_candidate_does_not_spoil_the_whole_one(tmp_path, series, dataset, deliver):
    source = write(series, tmp_path / "source")
    gap = series("L001", "full B50", change=lambda i, image: None if i == 4 else image)
    gap.write(source / "full_B50")
    done = deliver(dataset, source)
    assert done.accepted == ["L001"]
    assert [code for _, code in done.refused] == ["missing_slices"]


LAYOUTS = {
    "TCIA": ("LDCT/L067/01-01-2022-NA-NA-1/1.0-Full dose images-2", "1-{}.dcm"),
    "IDC": ("{uid}", "{uid}-{}.dcm"),
    "AAPM-2016": ("Training/L067/full_3mm", "L067_FD_3_1.CT.0001.{}.2015.12.22.IMA"),
    "heap": (".", "{role}{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_leads_to_the_same_volume(tmp_path, series, dataset, deliver, layout):
    folder, name = LAYOUTS[layout]
    aapm = layout == "AAPM-2016"
    source = tmp_path / "source"
    for role, low in (("full", False), ("low", True)):
        where, what = folder, name
        if low:
            where = where.replace("Full", "Low").replace("full", "quarter")
            what = what.replace("_FD_", "_QD_")
        uid = f"0000-{role}"

        def rename(i, image, what=what, role=role, uid=uid):
            image.file_name = what.format(f"{i * 7 % 10}", role=role, uid=uid)
            if aapm:
                del image.SeriesDescription
            return image

        description = {"heap": "LOW" if low else "FULL"}.get(layout, f"{role} dose images")
        patient = "Anonymous" if aapm else "L067"
        one = series(patient, description, seed=4, low=low, change=rename)
        one.write(source / where.format(uid=uid))
    (source / "metadata.csv").write_text("stray")
    (source / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (source / "._1-001.dcm").write_bytes(b"AppleDouble")
    done = deliver(dataset, source)
    assert done.accepted == ["L067"], done.outcome.refused
    assert (done.snapshot.volume("L067").full[:] == series(seed=4).values()).all()
    assert not done.refused


def test_links_end_and_do_not_leave_the_source(tmp_path, series, dataset, deliver):
    source = write(series, tmp_path / "source")
    shutil.move(source / "low", tmp_path / "outside")
    (source / "low").symlink_to(tmp_path / "outside")
    (source / "full" / "loop").symlink_to(source)
    assert deliver(dataset, source).refused == [("L001", "no_low_dose")]


def test_a_cohort_file_describes_what_the_defaults_do_not(tmp_path, series, dataset, deliver):
    source = tmp_path / "source"
    for role, low in (("Dosis B", False), ("Dosis A", True)):
        series("12", f"Serie {role}", seed=2, low=low).write(source / "P-0815" / role)
    series("12", "Kontrast").write(source / "P-0815" / "left")
    assert deliver(dataset, source).refused == [("12", "unknown_role")]
    rules = CohortRules(
        low=["dosis a"],
        full=["dosis b"],
        ignore=["kontrast"],
        patient=PatientRule(source="path", pattern=r"P-(?P<key>\d+)", prefix="KSA-"),
        anatomy="head",
        dose_fraction={"head": 0.5},
    )
    done = deliver(dataset, source, rules=rules)
    (row,) = done.snapshot.patients()
    assert (row.patient, row.anatomy, row.dose_fraction) == ("KSA-0815", "head", 0.5)
