"""The demonstration cohort: synthetic patients, written as a TCIA download would lie on disk."""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from flows import stores
from flows.errors import FlowError
from flows.pipeline import PipelineResult, pipeline
from flows.settings import Settings
from hqinet.physics import phantoms
from hqinet.physics.acquisition import Scan, acquire
from storage.dicom.writing import SeriesIdentity, write_series
from storage.errors import StorageError
from storage.ingest.cohort import SYNTHETIC

ANATOMIES = {"chest": 0.10, "abdomen": 0.25}
"""Dose of the low-dose series of each, as a fraction of the full dose."""
SCANS = {"chest": Scan(photons=6e4), "abdomen": Scan(photons=2e5)}
"""Tube current follows the anatomy; the noise added is about 50 HU and 40 HU at the centre."""
PATIENTS = 10
SLICES = 16
SIZE = 128

COHORT_FILE = """\
# The cohort of `hqinet demo`: phantoms with simulated dose, not patients.
name = "synthetic-demo"

[dose_fraction]
chest = 0.10
abdomen = 0.25
"""

NOTICE = (
    "Synthetic cohort: phantoms with simulated dose, not patients. "
    "The figures below say that the pipeline works, and nothing about CT."
)


class DemoError(FlowError):
    """A demonstration that must not run here; one line that says why."""


def demo() -> PipelineResult:
    """Make the cohort and run the whole pipeline on it with the recipe `demo`."""
    refuse_real_home()
    source = make_cohort(Settings().home.absolute() / "demo-cohort")
    settings = Settings().ingest.model_copy(update={"cohort_file": source / "cohort.toml"})
    return pipeline(str(source), SYNTHETIC, "demo", "demo", ingest_settings=settings)


def refuse_real_home() -> None:
    """Raise DemoError if the home holds another cohort: phantoms must never train a real model."""
    try:
        cohorts = set(stores.dataset().snapshot().rows["cohort"].dropna())
    except StorageError:
        return
    if cohorts - {SYNTHETIC}:
        raise DemoError(
            f"this home holds the cohort {', '.join(sorted(cohorts - {SYNTHETIC}))}; "
            "run the demo in another one: `hqinet demo --home DIR`"
        )


def make_cohort(root: Path) -> Path:
    """Write PATIENTS synthetic patients, two anatomies at two doses; returns the folder.

    Equal code makes equal files, so running the demo again ingests nothing new.
    """
    names = list(ANATOMIES)
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for number in track(range(PATIENTS), "making patients", console=console, disable=hidden):
        write_patient(root, number, names[number % len(names)])
    (root / "cohort.toml").write_text(COHORT_FILE)
    return root


def write_patient(root: Path, number: int, anatomy: str) -> None:
    """Write one synthetic patient's full-dose and low-dose series."""
    drawn = phantoms.make(anatomy, seed=number, slices=SLICES, size=SIZE)
    generator = torch.Generator().manual_seed(number)
    for description, fraction in (
        ("Full Dose Images", 1.0),
        ("Low Dose Images", ANATOMIES[anatomy]),
    ):
        hu = acquire(
            torch.from_numpy(drawn.hu),
            pixel=drawn.spacing[1],
            dose=fraction,
            scan=SCANS[anatomy],
            generator=generator,
        )
        identity = SeriesIdentity(
            collection="Synthetic-LDCT",
            patient=f"SYN-{anatomy[0].upper()}{number:02d}",
            description=description,
            body_part=anatomy.upper(),
            manufacturer="HQINet phantom",
        )
        write_series(root, np.asarray(hu), drawn.spacing, identity)
