"""One patient restored and measured: what an evaluation does for each, here or on a worker."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from flows.compute.models import UsedModel, load
from flows.settings import EvaluateSettings
from hqinet.devices import pick_device
from hqinet.quality.evaluation import RESTORED, measure_patient, measure_unrestored
from hqinet.quality.tasks import perform_tasks
from hqinet.report.key_slices import CHOSEN_BY, choose_slices, keep_views
from hqinet.report.page import PatientResult
from hqinet.restoration.restore import HUModel, InferenceError, restore_to_file
from hqinet.samples.pairs import VolumePair
from storage.dataset.rows import Accepted

Patient = tuple[Accepted, VolumePair]


@dataclass(frozen=True)
class Measurement:
    """Restores and measures every slice of a patient, low dose and restored; picklable.

    Attributes:
        used: the model.
        scratch: folder in which a restored volume lies meanwhile.
        budget: bytes of the pictures that a report shows of a patient.
    """

    used: UsedModel
    settings: EvaluateSettings
    scratch: Path
    budget: int

    def __call__(self, patient: Patient) -> PatientResult:
        """Who cannot be restored is a result, too: the model loses by name, the others count."""
        row, pair = patient
        device = pick_device(self.settings.device)
        try:
            model = load(self.used, pair.known_dose(), self.settings.device)
            return self._judged(row, pair, model, device)
        except InferenceError as error:
            measured = measure_unrestored(
                pair, spacing=row.spacing[1:], device=device, batch=self.settings.batch
            )
            return PatientResult(row.patient, row.anatomy, measured, [], str(error))

    def _judged(
        self, row: Accepted, pair: VolumePair, model: HUModel, device: torch.device
    ) -> PatientResult:
        batch = self.settings.batch
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            file = Path(folder) / "restored.npy"
            restored = restore_to_file(model, pair.low, file, device=device, batch=batch)
            measured = measure_patient(
                pair, restored, spacing=row.spacing[1:], device=device, batch=batch
            )
            slices = measured.per_slice
            quality = slices[slices["image"] == RESTORED][CHOSEN_BY].to_numpy()
            views = keep_views(pair, restored, choose_slices(quality), self.budget)
            tasks = perform_tasks(pair, restored, model, spacing=row.spacing[1:], device=device)
        return PatientResult(row.patient, row.anatomy, measured, views, tasks=tasks)
