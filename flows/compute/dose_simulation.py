"""A full-dose volume of a delivery -> its simulated low-dose partner, on the worker that reads it.

Here storage, which knows no physics, and the physics, which knows no delivery, meet.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from hqinet.errors import HqinetError
from hqinet.physics.dose_simulation import VERSION, simulate_dose
from hqinet.physics.scanner import Detector, FullDose
from hqinet.physics.texture import Kernel
from storage.ingest.delivery import SimulatedPartner
from storage.ingest.pairing import Pair
from storage.ingest.simulation import DetectorRules, SimulationRules
from storage.refusals import Code, Refusal


def with_version(rules: SimulationRules) -> SimulationRules:
    """Note in the rules which simulator there is: another one makes other partners."""
    return rules.model_copy(update={"version": VERSION})


def simulate_partner(hu: NDArray[np.int16], pair: Pair) -> SimulatedPartner:
    """Return the partner of a full-dose volume.

    Raises Refusal where the noise that can be made implies another dose than the one asked for.
    """
    # A worker is one process a core.
    torch.set_num_threads(1)
    increment, rows, columns = pair.full.series.geometry.spacing
    simulation, dose = pair.simulation, pair.dose_fraction
    if simulation is None or dose is None:
        raise ValueError(f"{pair.patient}: both doses were delivered, and none is to be simulated")
    thickness = pair.full.series.thickness or increment
    series = FullDose(hu, (rows + columns) / 2, thickness, increment, pair.full.kernel)
    try:
        made = simulate_dose(
            series,
            dose=dose,
            seed=simulation.seed,
            realisations=simulation.realisations,
            detector=_detector(simulation.detector or DetectorRules()),
        )
    except HqinetError as error:
        raise Refusal(Code.SIMULATION_FAILED, f"simulated dose: {error}") from error
    parameters = {
        "implied_dose": round(made.implied, 4),
        "photons": float(f"{made.photons:.6g}"),
        "mtf": [round(value, 6) for value in made.kernel.mtf],
        "mtf_step": round(made.kernel.step, 6),
    }
    note = f"simulated dose: {dose:g} of the full dose, {made.implied:.2f} by its noise level"
    shown = (
        f"{dose:g} of the full dose, {made.photons:.3g} photons a ray, seed {simulation.seed}, "
        f"simulator {simulation.version}"
    )
    if simulation.detector is not None:
        shown += ", detector file"
    if simulation.realisations > 1:
        shown += f", {simulation.realisations} realisations"
    return SimulatedPartner(made.low, parameters, shown, note)


def _detector(rules: DetectorRules) -> Detector:
    kernels = {name: Kernel(curve.mtf, curve.step) for name, curve in rules.kernels.items()}
    return Detector(
        photons=rules.photons,
        electronic=rules.electronic,
        bowtie=rules.bowtie,
        tube_current=rules.tube_current,
        kernels=kernels,
    )
