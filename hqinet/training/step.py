"""One optimiser step: its learning rate, its gradients over micro-batches, its memory."""

import math

import torch
from torch import Tensor, nn

from hqinet.memory import is_out_of_memory
from hqinet.samples.batch import Sample
from hqinet.training.interrupts import TrainingError
from hqinet.training.losses import restoration_loss
from hqinet.training.micro_batch import fitting_batch
from hqinet.training.ranks import Ranks
from hqinet.training.recipe import Recipe
from hqinet.training.state import State


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Return the rate of step `step` (from 0) when `progress` in [0, 1] of the run is done.

    Rises linearly over the warm-up, then stays or falls to 0 with half a cosine.
    """
    schedule, peak = recipe.schedule, recipe.optimiser.learning_rate
    warmth = min((step + 1) / (schedule.warmup_steps + 1), 1.0)
    if schedule.decay == "constant":
        return peak * warmth
    return peak * warmth * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def accumulate(
    state: State, wrapped: nn.Module, samples: list[Sample], ranks: Ranks
) -> tuple[float, float]:
    """Leave the gradient of the mean loss over the batch in the parameters, clipped.

    `wrapped` is the network as `ranks` wraps it. Returns the mean loss of this rank's samples and
    the norm of the gradient before clipping. Raises TrainingError when memory runs out, saying
    which micro-batch would fit.
    """
    total = torch.zeros((), device=ranks.device)
    try:
        for sample in samples[:-1]:
            with ranks.accumulating(wrapped):
                total += _backward(state, wrapped, sample, len(samples))
        total += _backward(state, wrapped, samples[-1], len(samples))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        crop = tuple(samples[0].windows.shape[-2:])
        state.optimiser.zero_grad(set_to_none=True)
        message = _what_would_fit(state, (crop[0], crop[1]), ranks.device)
        raise TrainingError(message) from error
    parameters = [p for p in state.network.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if state.recipe.optimiser.clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, state.recipe.optimiser.clip, norm)
    return float(total), float(norm)


def _backward(state: State, wrapped: nn.Module, sample: Sample, parts: int) -> Tensor:
    windows, full, noise, dose = sample
    windows = windows.to(memory_format=torch.channels_last)
    with torch.autocast(windows.device.type, torch.bfloat16, enabled=state.bf16):
        restored = wrapped(windows, noise)
    # A network that estimates the slice without noise is judged on the share that the full dose,
    # which has noise too, lacks.
    removed = state.recipe.model.removed(dose)
    if removed is not None:
        restored = torch.lerp(windows[:, 1:2], restored.float(), removed.view(-1, 1, 1, 1))
    loss = restoration_loss(state.recipe.loss, restored, full, noise).mean() / parts
    loss.backward()
    return loss.detach()


def _what_would_fit(state: State, crop: tuple[int, int], device: torch.device) -> str:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    start = f"out of memory at step {state.step + 1} with {state.micro_batch} samples of "
    start += f"{crop[0]}x{crop[1]} at once: "
    smaller = [size for size in range(1, state.micro_batch) if state.micro_batch % size == 0]
    if not smaller:
        return start + "not even one fits; set a smaller sampling.patch or model.width"
    fits = min(fitting_batch(state.network, crop, smaller[-1], device), smaller[-1])
    return start + f"set sampling.micro_batch = {fits}, which would fit"
