"""Which precision a model restores in on this machine: measured once, and kept in the home."""

import hashlib
import logging
import platform
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from flows import stores
from flows.compute.models import UsedModel, load
from hqinet.devices import bf16_is_faster, pick_device
from hqinet.quality.reference import find_body
from hqinet.restoration.precision import Choice, Precision, choose
from hqinet.restoration.restore import read_windows
from storage.stores import files

logger = logging.getLogger(__name__)
LEAST_SIDE = 256
"""Rows and columns of the slices that are measured on: of smaller ones both take no time."""
WINDOWS = 3


def precision_for(
    used: UsedModel, dose: float | None, device: str, low: NDArray[np.int16]
) -> Precision:
    """In which precision a series is to be restored; measured on its middle slices if need be.

    The first series of a model decides for a machine, before it is restored, so that all series of
    a home come out alike. float32 on a GPU, and where the network cannot be built anew.
    """
    if pick_device(device).type != "cpu" or used.network is None:
        return "float32"
    file = _file(used)
    known = _kept(file)
    if known is None and min(low.shape[1:]) >= LEAST_SIDE:
        known = _measured(used, dose, device, low)
        files.write(file, known.model_dump_json(indent=1).encode())
        logger.info("%s restores in %s here: %s", used.name, known.precision, known)
    return "float32" if known is None else known.precision


def _file(used: UsedModel) -> Path:
    """Where the choice stands: of the model, this machine and its torch."""
    machine = f"{platform.node()} {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
    name = hashlib.sha256(f"{used.identity} {machine}".encode()).hexdigest()[:32]
    return stores.precisions() / f"{name}.json"


def _kept(file: Path) -> Choice | None:
    try:
        return Choice.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _measured(used: UsedModel, dose: float | None, device: str, low: NDArray[np.int16]) -> Choice:
    if not bf16_is_faster(torch.device("cpu")):
        return Choice(precision="float32")
    exact, faster = (load(used, dose, device, name) for name in ("float32", "mixed"))
    first = max(len(low) // 2 - WINDOWS // 2, 0)
    windows = read_windows(low, first, min(first + WINDOWS, len(low)))
    hu = torch.from_numpy(windows).float()
    return choose(exact, faster, hu, find_body(hu[:, 1]))
