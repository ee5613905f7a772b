"""Pictures for people: a patient of the dataset or a derived series, in its display window."""

from pathlib import Path

import numpy as np
from PIL import Image

from flows import stores
from flows.compute.models import Models, load
from flows.compute.preparation import LEAST_SLICES
from flows.errors import FlowError
from flows.full_dose import full_dose_of
from flows.trace import record_of
from hqinet.devices import pick_device
from hqinet.report.pictures import panel
from hqinet.restoration.restore import restore
from storage.dicom.finding import FoundSeries, find_series, opened
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import Series, order
from storage.dicom.statement import Statement, read_hu, read_statement
from storage.errors import DatasetError
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules


class ShowError(FlowError):
    """Nothing to be shown; one line that says what to do."""


def show(what: str, model: str) -> Image.Image:
    """A slice of a derived series or a patient: low dose, restored, full dose, difference.

    Args:
        what: folder of a derived series or its SeriesInstanceUID, whose middle slice is shown; one
            of its files; or a patient of the dataset.
        model: restores a patient's slice; a derived series has been restored.

    Raises:
        ShowError: there is no such thing.
    """
    path = Path(what)
    # A delivery's folders are called after its patients.
    if path.is_file() or (path.is_dir() and any(path.glob("*.dcm"))):
        return show_series(path)
    known = (e.folder for e in stores.restored().entries() if e.record.series == what)
    folder = next((Path(folder) for folder in known if Path(folder).is_dir()), None)
    return show_patient(what, model) if folder is None else show_series(folder)


def show_patient(patient: str, model: str) -> Image.Image:
    """The middle slice of a patient's pair, and what a model makes of it now."""
    try:
        pair = stores.dataset().snapshot().volume(patient)
    except DatasetError as error:
        raise ShowError(
            f"{patient!r} is no path, no derived series of this home, and no patient: {error}"
        ) from error
    models, device = Models(model), pick_device("auto")
    used = models.resolve()
    middle = pair.low.shape[0] // 2
    first = max(middle - 1, 0)
    low = np.asarray(pair.low[first : middle + 2])
    parts = restore(load(used, None, "auto"), low, device=device)
    restored = np.concatenate([part for _, part in parts])
    at = middle - first
    return panel(low[at], restored[at], np.asarray(pair.full[middle : middle + 1])[0], pair.anatomy)


def show_series(path: Path) -> Image.Image:
    """A slice of a derived series beside its source, which has to lie where it lay.

    Full dose is shown where the source's study or the dataset has it.
    """
    files = sorted(path.glob("*.dcm")) if path.is_dir() else [path]
    if not files:
        raise ShowError(f"{path} holds no derived series: give the folder that its UID names")
    file = files[len(files) // 2]
    said = read_statement(file)
    record = record_of(said, file.parent)
    if record is None:
        raise ShowError(f"{path}: where its source lies is not known: its record is missing")
    source = Path(record.source_path)
    with opened(source, stores.scratch()) as place:
        delivered = find_series(place)[0]
        found = next((one for one in delivered if one.uid == said.source_series), None)
        if found is None:
            raise ShowError(f"the source of {path} lies at {source} no more")
        series = order(found.headers, LEAST_SLICES)
        at = _slice_of(said, found, series)
        low = next(iter(HuDecoder(found.root, series.crop(at, at + 1))))
        full = full_dose_of(found, series, at, delivered, source)
    header = found.headers[0]
    anatomy = cohort.anatomy(CohortRules(), header.patient_id, header.body_part)
    return panel(low, read_hu(file), full, anatomy)


def _slice_of(said: Statement, found: FoundSeries, series: Series) -> int:
    """Which slice of its source an instance was made from."""
    instance = {header.path: header.instance for header in found.headers}
    return next(
        index
        for index, item in enumerate(series.slices)
        if (instance[item.path], item.frame) == (said.source_instance, said.frame)
    )
