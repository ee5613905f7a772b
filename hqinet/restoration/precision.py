"""In which precision a network restores: float32, or bf16 where its maps are small.

Processors with bf16 instructions multiply bf16 matrices several times as fast. A network that is
bf16 throughout is off by more than a reader should have to wonder about (a tenth-dose chest: 0.36
HU on average); where the maps have full resolution, in the first layers and the last, it has to
stay float32. What is gained and what it costs is measured on the machine and slices at hand.
"""

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hqinet.networks.hqinet import HQINet
from hqinet.restoration.restore import HUModel, Restorer

Precision = Literal["float32", "mixed"]
MEAN_HU = 0.25
"""Most that mixed precision may be off inside the body, on average ..."""
EXTREME_HU = 2.0
"""... and in one pixel of a thousand."""
WORTHWHILE = 1.1
"""Times as fast as float32 that it must be."""


class Choice(BaseModel):
    """A precision, and the measurement that it was chosen by; none without bf16 instructions.

    Attributes:
        seconds: of a core for a slice, by precision.
        mean, extreme: how far mixed is off float32 in the body, HU: mean, 99.9th percentile.
    """

    model_config = ConfigDict(frozen=True)

    precision: Precision
    seconds: dict[str, float] = {}
    mean: float | None = None
    extreme: float | None = None


def mixed(model: Restorer) -> Restorer | None:
    """Return a copy that computes small maps in bf16; None of a network that has none.

    Its stem, last decoder block and reconstruction, whose maps have full resolution, stay float32,
    and so does all that is done in HU.
    """
    network = model.network
    if not isinstance(network, HQINet):
        return None
    model = copy.deepcopy(model)
    network = model.network
    *small, last = network.decoder
    for part in (network.stem_down, network.stages, network.aspp, *small):
        part.to(torch.bfloat16)
    network.stem_down.register_forward_pre_hook(_cast(torch.bfloat16))
    for part in (last, network.reconstruction):
        part.register_forward_pre_hook(_cast(torch.float32))
    return model


def _cast(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that brings the maps that a module is called with into a precision."""

    def cast(value: Any) -> Any:  # noqa: ANN401 - a map, a list of maps, or a size
        if isinstance(value, Tensor):
            return value.to(dtype)
        return [cast(one) for one in value] if isinstance(value, list) else value

    return lambda _, arguments: tuple(cast(value) for value in arguments)


def choose(exact: HUModel, faster: HUModel, windows: Tensor, body: Tensor) -> Choice:
    """Measure both on some windows, and choose mixed where it is WORTHWHILE and within bounds.

    `windows`: (n, 3, rows, columns) HU, restored one by one, of which the quickest counts;
    `body`: (n, rows, columns) bool, where the error counts.
    """
    # A thread each, as slices are restored, so that either has the other beside it: torch counts
    # the threads of each thread anew.
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        both = threads.map(_restored, (exact, faster), (windows, windows))
        (expected, slow), (got, quick) = both
    seconds = {"float32": slow, "mixed": quick}
    error = (got - expected).abs()[:, 0][body].numpy()
    if not len(error):
        return Choice(precision="float32", seconds=seconds)
    mean, extreme = float(error.mean()), float(np.quantile(error, 0.999))
    within = mean <= MEAN_HU and extreme <= EXTREME_HU
    precision: Precision = "mixed" if slow > WORTHWHILE * quick and within else "float32"
    return Choice(precision=precision, seconds=seconds, mean=mean, extreme=extreme)


@torch.inference_mode()
def _restored(model: HUModel, windows: Tensor) -> tuple[Tensor, float]:
    """The middle slices of the windows, and the seconds of a core for the quickest of them."""
    restored, seconds = [], []
    for window in windows.split(1):
        # Of this thread: what else runs on the machine does not decide.
        start = time.thread_time()
        restored.append(model(window))
        seconds.append(time.thread_time() - start)
    return torch.cat(restored), min(seconds)
