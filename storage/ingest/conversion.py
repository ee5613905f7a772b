"""A plan -> rows: pairs that are new or changed are read, each a unit of work of a cluster."""

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dataset import keys, writing
from storage.dataset.hashing import OWN_DIGEST, SIMULATED, dose_digest
from storage.dataset.lazy_volume import LazyVolume
from storage.dataset.rows import Accepted, Refused
from storage.dataset.volumes import SHARD_SLICES, low_arrays
from storage.dicom.pixels import HuDecoder
from storage.dicom.series import Series
from storage.errors import StorageError, StoreError
from storage.ingest.delivery import Delivery, Run, SimulatedPartner, Simulator
from storage.ingest.implied_dose import doubt, implied_dose
from storage.ingest.memory import ConversionMemory
from storage.ingest.pairing import Pair
from storage.ingest.planning import Plan, refused_row
from storage.ingest.recall import recall
from storage.refusals import Code, Refusal
from storage.stores import files
from storage.stores.location import Location

_SMALLEST = 8
"""CT is never stored in less than an eighth of its bytes; body images take two fifths."""


@dataclass(frozen=True)
class Conversion:
    """Reads pairs of one delivery and writes them as volumes; picklable, for a cluster.

    It is given no secret: names become hashes in the process that holds the delivery.

    Attributes:
        root: of the delivery.
        location: of the dataset.
        scratch: folder on a local disk of the worker for volumes under construction.
    """

    root: Path
    location: Location
    scratch: Path
    cohort: str
    simulate: Simulator | None = None

    def __call__(self, pair: Pair) -> Accepted | Refusal:
        """Convert one pair; the row is without split.

        Raises:
            StorageError: scratch or store cannot be written.
            OSError, MemoryError: the source's disk or the memory failed; another try may do.
        """
        try:
            return self._convert(pair)
        except Refusal as refusal:
            return refusal

    def _convert(self, pair: Pair) -> Accepted:
        series = {"low": pair.low.series, "full": pair.full.series}
        if pair.simulation is not None:
            del series["low"]
        decoders = {dose: HuDecoder(self.root, one) for dose, one in series.items()}
        slices: dict[str, Iterable] = {
            dose: _decode(dose, decoder) for dose, decoder in decoders.items()
        }
        description, notes, simulated, realisations = describe(pair), [], None, 1
        if pair.simulation is not None:
            volume = np.stack(list(slices["full"]))
            partner = self._simulated(volume, pair)
            realisations = len(partner.hu)
            slices = dict(zip(low_arrays(realisations), partner.hu, strict=True)) | {"full": volume}
            every = partner.hu.reshape(-1, *volume.shape[1:])
            description[SIMULATED] = {
                **partner.parameters,
                **pair.simulation.made_with(),
                "dose": pair.dose_fraction,
                OWN_DIGEST: dose_digest(every.shape, every),
            }
            notes, simulated = [partner.note], partner.shown
        full, geometry = pair.full.series, pair.full.series.geometry
        written = writing.write(
            self.location,
            self.scratch / f"{os.getpid()}-{uuid.uuid4().hex[:8]}",
            pair.patient,
            (len(geometry), full.rows, full.columns),
            description,
            slices,
        )
        if written.low_pixels == written.pixels:
            raise Refusal(
                Code.IDENTICAL_DOSES,
                "low dose and full dose hold the same pixels; expected two different images",
                tuple(one.slices[0].path for one in series.values()),
            )
        implied = self._implied_dose(written.path, pair.full.series)
        notes += [pair.note, doubt(pair.dose_fraction, implied)]
        for dose, one in series.items():
            notes += [f"{dose} dose: {note}" for note in _notes(decoders[dose], one)]
        row = self._row(pair, written, "; ".join(note for note in notes if note) or None)
        return replace(row, implied_dose=implied, simulated=simulated, realisations=realisations)

    def _row(self, pair: Pair, written: writing.Written, note: str | None) -> Accepted:
        full, geometry = pair.full.series, pair.full.series.geometry
        return Accepted(
            patient=pair.patient,
            cohort=self.cohort,
            source=pair.source,
            path=written.path,
            digest=written.digest,
            slices=len(geometry),
            matrix=(full.rows, full.columns),
            spacing=geometry.spacing,
            anatomy=pair.anatomy,
            dose_fraction=pair.dose_fraction,
            vendor=pair.full.vendor,
            kernel=pair.full.kernel,
            kvp=pair.low.series.kvp,
            thickness=pair.low.series.thickness,
            note=note,
            fingerprint=pair.fingerprint,
            pixels=written.pixels,
            slice_fingerprints=written.slice_fingerprints,
            identity_evidence=pair.identity_evidence,
            frame_of_reference=geometry.frame_of_reference,
            size=written.size,
        )

    def _implied_dose(self, path: str, series: Series) -> float | None:
        place, spacing = self.location.child(path), series.geometry.spacing
        shape = (len(series.geometry), series.rows, series.columns)
        low, full = (LazyVolume(place, dose, shape, SHARD_SLICES) for dose in ("low", "full"))
        return implied_dose(low, full, max(spacing[1:]))

    def _simulated(self, volume: NDArray[np.int16], pair: Pair) -> SimulatedPartner:
        if self.simulate is None:
            raise Refusal(Code.SIMULATION_FAILED, "nothing was given that simulates a dose")
        return self.simulate(volume, pair)


def convert(delivery: Delivery, plan: Plan, run: Run) -> Iterator[Accepted | Refused]:
    """The rows of all pairs of a plan; those that are known are not read again.

    Args:
        run: where pairs are read.

    Raises:
        StorageError: disk or store do not take a volume, or have no room for all.
    """
    memory = ConversionMemory(delivery)
    known, unread = recall(delivery, plan, memory)
    yield from known
    require_space(delivery, unread)
    location, scratch = delivery.dataset.location, delivery.scratch
    conversion = Conversion(delivery.root, location, scratch, delivery.cohort, delivery.simulate)
    for pair, result in run(conversion, unread):
        if isinstance(result, StorageError):
            raise result
        row = result if isinstance(result, Accepted) else _refused(delivery, pair, result)
        memory.remember(row)
        yield row


def require_space(delivery: Delivery, pairs: Sequence[Pair]) -> None:
    """Raise StoreError if a disk has no room for the pairs, before any of them is read."""
    sizes = [_least_bytes(pair) for pair in pairs]
    if not sizes:
        return
    needed = {delivery.scratch: max(sizes)}
    if not delivery.dataset.location.remote:
        needed[Path(delivery.dataset.location.url)] = sum(sizes)
    for folder, size in needed.items():
        free = files.free_bytes(folder)
        if free < size:
            raise StoreError(
                f"{folder}: the disk is full: {free / 1e6:.0f} MB are free, and {len(pairs)} pairs "
                f"take {size / 1e6:.0f} MB at the least: free space, then run again (the last "
                "commit is intact)"
            )


def _least_bytes(pair: Pair) -> int:
    full = pair.full.series
    return 2 * 2 * len(full.slices) * full.rows * full.columns // _SMALLEST


def describe(pair: Pair) -> dict[str, object]:
    """The attributes of the volume's group: geometry in mm and words of fixed vocabularies."""
    return {
        **pair.full.series.geometry.attributes(),
        "anatomy": pair.anatomy,
        "dose_fraction": pair.dose_fraction,
        "vendor": pair.full.vendor,
        "kernel": {"low": pair.low.kernel, "full": pair.full.kernel},
        "unit": "HU",
    }


def _decode(dose: str, decoder: HuDecoder) -> Iterator:
    try:
        yield from decoder
    except Refusal as refusal:
        raise refusal.of(f"{dose}-dose series") from refusal


def _notes(decoder: HuDecoder, series: Series) -> Iterator[str]:
    """What was done to the images of one dose."""
    # Taken as each slice says, for some scanners write it so; of others it is damage.
    if len({item.rescale for item in series.slices}) > 1:
        yield "slices differ in rescale slope or intercept"
    if len({(item.stored.bits, item.stored.high) for item in series.slices}) > 1:
        yield "slices differ in bits stored"
    if decoder.rounded:
        yield "HU rounded to whole numbers"
    if decoder.padded:
        yield f"{decoder.padded} pixels of padding set to air"
    if decoder.clipped:
        yield f"{decoder.clipped} pixels above 32767 HU set to 32767"


def _refused(delivery: Delivery, pair: Pair, result: Refusal | Exception) -> Refused:
    """The row of a pair that was read and refused, or that no worker could finish."""
    refusal, fingerprint = result, pair.fingerprint
    if not isinstance(refusal, Refusal):
        # Without a fingerprint it is tried again next time.
        refusal, fingerprint = _failure(result), None
    key = keys.refused_patient(pair.patient)
    return refused_row(delivery, key, pair.patient, refusal, pair.source, fingerprint)


def _failure(error: Exception) -> Refusal:
    advice = (
        f"the disk of the source gave an error ({error.strerror})"
        if isinstance(error, OSError)
        else "look at the workers' memory (HQINET_CLUSTER__MEMORY)"
    )
    reason = f"every try failed with {type(error).__name__}: {advice}; ingest again"
    return Refusal(Code.CONVERSION_FAILED, reason)
