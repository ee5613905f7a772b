"""A full-dose volume of a delivery -> its simulated low-dose partner, on the worker that reads it.

Here storage, which knows no physics, and the physics, which knows no delivery, meet.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from hqinet.physics.dose_simulation import VERSION, FullDose, SimulationError, simulate_dose
from storage.ingest.cohort import CohortRules
from storage.ingest.delivery import SimulatedPartner
from storage.ingest.pairing import Pair
from storage.refusals import Code, Refusal


def with_version(rules: CohortRules) -> CohortRules:
    """Note in the rules which simulator there is: another one makes other partners."""
    if rules.simulate is None:
        return rules
    simulate = rules.simulate.model_copy(update={"version": VERSION})
    return rules.model_copy(update={"simulate": simulate})


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
    series = FullDose(hu, (rows + columns) / 2, thickness, increment)
    try:
        made = simulate_dose(series, dose=dose, seed=simulation.seed)
    except SimulationError as error:
        raise Refusal(Code.SIMULATION_FAILED, f"simulated dose: {error}") from error
    parameters = {
        "implied_dose": round(made.implied, 4),
        "photons": float(f"{made.photons:.6g}"),
        "spectrum": [round(power, 6) for power in made.spectrum.power],
    }
    note = f"simulated dose: {dose:g} of the full dose, {made.implied:.2f} by its noise level"
    shown = (
        f"{dose:g} of the full dose, {made.photons:.3g} photons a ray, seed {simulation.seed}, "
        f"simulator {simulation.version}"
    )
    return SimulatedPartner(made.low[0], parameters, shown, note)
