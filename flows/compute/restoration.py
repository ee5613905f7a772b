"""One series restored: restored, written, judged; whole or not at all, or a reason."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flows.compute.derivation import derivation_of
from flows.compute.models import UsedModel, load
from flows.compute.precision import precision_for
from flows.compute.preparation import Prepared, Request, SeriesOutcome, prepare, refused
from flows.compute.removal import judged_by, objections_to, removed_of
from hqinet.devices import pick_device
from hqinet.errors import HqinetError
from hqinet.quality.removal import judge_removal
from hqinet.restoration.restore import rounded
from storage.dicom.archive import SeriesRecord
from storage.dicom.derived import Derivation, derived_instance, referenced_series
from storage.dicom.finding import FoundSeries
from storage.dicom.source_images import changed_values, source_images


def restore_alone(request: Request, asked: tuple[FoundSeries, UsedModel]) -> SeriesOutcome:
    """Read, restore, write and judge one series; what a worker does."""
    prepared = prepare(request, *asked)
    if isinstance(prepared, SeriesOutcome):
        return prepared
    return restore_series(request, prepared, lambda _: None)


def restore_series(
    request: Request, prepared: Prepared, advance: Callable[[int], None]
) -> SeriesOutcome:
    """Restore a series that was prepared, write it, and give it its name if it may be used.

    advance: told how many slices were restored, each time.
    """
    with prepared.scratch:
        try:
            return _restored_or_not(request, prepared, advance)
        except Exception as error:  # noqa: BLE001 - one series ends no other
            return refused(error, prepared.about)


def _restored_or_not(
    request: Request, prepared: Prepared, advance: Callable[[int], None]
) -> SeriesOutcome:
    begun, place, settings = monotonic(), prepared.place, request.settings
    said = prepared.about | {"folder": str(place.final)}
    precision = precision_for(prepared.used, settings.dose, settings.device, prepared.low)
    record = prepared.record.model_copy(update={"precision": precision})
    with place.begin(record) as record:
        if prepared.used.network is None:
            # An attempt before, by the code that made the model, may have begun in another one.
            record = record.model_copy(update={"precision": "float32"})
        try:
            restored = _restored(request, prepared, record, advance)
            removal = judge_removal(prepared.low, restored)
            code, objections = "not_noise", objections_to(removal, settings, request.limits)
            record = record.model_copy(update={"measured": record.measured | removed_of(removal)})
        except HqinetError as error:
            code, objections = "not_restored", [str(error)]
        seconds = round(monotonic() - begun, 2)
        done = record.model_copy(update={"seconds": seconds})
        if objections:
            limits = judged_by(settings, request.limits)
            judged = {"quarantined": objections, "code": code, "limits": limits}
            place.quarantine(done.model_copy(update=judged))
            said |= {"folder": "", "code": code, "reasons": objections, "seconds": seconds}
            return SeriesOutcome(outcome="quarantined", **said)
        done = done.model_copy(update={"instances": len(prepared.series.slices)})
        request.index.note(done, place.final)
        place.finish(done)
    return SeriesOutcome(outcome="restored", seconds=seconds, **said)


def _restored(
    request: Request, prepared: Prepared, record: SeriesRecord, advance: Callable[[int], None]
) -> NDArray[np.int16]:
    """Restore all slices, each written into the draft while the next ones are restored.

    Raises:
        HqinetError: the model fails, or returns what is no image.
    """
    settings, low = request.settings, prepared.low
    file = Path(prepared.scratch.name) / "restored.npy"
    restored = np.lib.format.open_memmap(file, mode="w+", dtype=np.int16, shape=low.shape)
    blocks = rounded(
        load(prepared.used, settings.dose, settings.device, record.precision),
        low,
        device=pick_device(settings.device),
        batch=settings.batch,
        strength=settings.strength,
    )
    with _Writing(prepared, derivation_of(prepared.used, settings, record)) as writing:
        for first, block in blocks:
            restored[first : first + len(block)] = block
            writing.upto(first + len(block), restored)
            advance(len(block))
    return restored


class _Writing:
    """Writes instances into the draft in the order of space, a few slices behind the model."""

    def __init__(self, prepared: Prepared, derivation: Derivation) -> None:
        found = prepared.found
        file_of = {header.path: header for header in found.headers}
        files = [file_of[item.path] for item in prepared.series.slices]
        self._writer = ThreadPoolExecutor(1)
        self._low, self._place, self._derivation = prepared.low, prepared.place, derivation
        self._sources = source_images(found.root, prepared.series, prepared.words)
        self._references = referenced_series(
            prepared.series.uid, [(file.sop_class, file.instance) for file in files]
        )
        self._number = 0
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Return when what was asked for is written; raises what prevented it."""
        with self._writer:
            self._wait()

    def upto(self, stop: int, restored: NDArray[np.int16]) -> None:
        """Have all slices before `stop` written, once those of the last call are."""
        self._wait()
        self._pending = self._writer.submit(self._write, stop, restored)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _write(self, stop: int, restored: NDArray[np.int16]) -> None:
        for index in range(self._number, stop):
            source = next(self._sources)
            values = changed_values(source, self._low[index], restored[index])
            image = derived_instance(source, values, self._derivation, self._references)
            self._place.put(index + 1, image, values)
        self._number = stop
