"""One inference and one training step of HQINet at 512x512, full width: project, peer, limit.

`python benchmarks/step.py [--device cuda] [--threads 2] [--batch 1] [--repeats 5]`

The peer is the network as printed, eager float32: reconstruction on concatenated upsampled maps,
batch norms as layers. The limit is the project's own arithmetic (FLOPs counted by torch) at the
rate of square matrix products, measured in the same run and between the repeats, so that a busy
machine slows all alike. Times are the best of the repeats.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hqinet.devices import bf16_is_faster, matrix_rate, synchronise
from hqinet.networks.blocks import Reconstruction, upsample
from hqinet.networks.hqinet import build
from hqinet.restoration.export import deployable
from hqinet.training.losses import restoration_loss
from hqinet.training.recipe import Recipe, load_recipe

SIDE = 512
SCHEDULE_SAMPLES = 9_000 * 20
"""Slices times epochs of the paper's training."""


class Printed(Reconstruction):
    """The reconstruction head as the paper prints it."""

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Upsample, concatenate, convolve."""
        whole = [x if x.shape[2:] == size else upsample(x, size) for x in maps]
        return self.out(self.mix(torch.cat(whole, dim=1)))


def as_printed(network: nn.Module) -> nn.Module:
    printed = copy.deepcopy(network)
    printed.reconstruction.__class__ = Printed
    return printed


@dataclass
class Timed:
    """A function and the seconds each call took."""

    run: Callable[[], object]
    dtype: torch.dtype
    flops: int = 0
    seconds: list[float] = field(default_factory=list)

    def measure(self, device: torch.device) -> None:
        """Run once and keep the time."""
        synchronise(device)
        start = time.perf_counter()
        self.run()
        synchronise(device)
        self.seconds.append(time.perf_counter() - start)

    @property
    def best(self) -> float:
        """Shortest time."""
        return min(self.seconds)


def inference(network: nn.Module, windows: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    noise = torch.full((len(windows),), 0.01, device=windows.device)

    def run() -> None:
        with torch.inference_mode(), autocast(windows.device, dtype):
            network(windows, noise)

    return run


def training_step(
    network: nn.Module, windows: Tensor, dtype: torch.dtype, recipe: Recipe
) -> Callable[[], object]:
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-5)
    noise = torch.full((len(windows),), 0.01, device=windows.device)
    full = windows[:, 1:2].clone()

    def run() -> None:
        with autocast(windows.device, dtype):
            restored = network(windows, noise)
        restoration_loss(recipe.loss, restored, full, noise).mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return run


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def report(title: str, peer: Timed, ours: Timed, rates: dict[torch.dtype, float]) -> None:
    limit = ours.flops / rates[ours.dtype]
    print(f"\n{title}")
    print(f"  peer     {peer.best:8.3f} s  {peer.flops / 1e9:7.0f} GFLOP  {peer.dtype}")
    print(f"  project  {ours.best:8.3f} s  {ours.flops / 1e9:7.0f} GFLOP  {ours.dtype}")
    print(f"  limit    {limit:8.3f} s  at {rates[ours.dtype] / 1e9:.0f} GFLOP/s")
    print(f"  peer / project {peer.best / ours.best:.2f}   limit / project {limit / ours.best:.2f}")
    printed = peer.flops / rates[ours.dtype]
    print(f"  limit of the arithmetic as printed / project {printed / ours.best:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--only", choices=["inference", "training"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    recipe = load_recipe("paper")
    network = build(recipe.model, recipe.seed).to(device).eval()
    shape = (arguments.batch, 3, arguments.side, arguments.side)
    windows = torch.rand(shape, device=device)
    last = windows.to(memory_format=torch.channels_last)
    quick = torch.bfloat16 if bf16_is_faster(device) else torch.float32
    # Restored images stay in float32 on the CPU; a GPU's bf16 autocast is what training uses.
    restoring = quick if device.type == "cuda" else torch.float32
    folded = deployable(network, recipe.model).network.to(device, memory_format=torch.channels_last)
    pairs = {
        "inference": (
            Timed(inference(as_printed(network), windows, torch.float32), torch.float32),
            Timed(inference(folded, last, restoring), restoring),
        ),
        "training": (
            Timed(
                training_step(as_printed(network).train(), windows, torch.float32, recipe),
                torch.float32,
            ),
            Timed(
                training_step(
                    copy.deepcopy(network).train().to(memory_format=torch.channels_last),
                    last,
                    quick,
                    recipe,
                ),
                quick,
            ),
        ),
    }
    chosen = [arguments.only] if arguments.only else list(pairs)
    rates = dict.fromkeys((torch.float32, torch.bfloat16), 0.0)
    side = 8192 if device.type == "cuda" else 1536
    for name in chosen:
        for timed in pairs[name]:
            timed.flops = count(timed.run)
    for _ in range(arguments.repeats):
        for dtype in rates:
            rates[dtype] = max(rates[dtype], matrix_rate(device, dtype, side))
        for name in chosen:
            for timed in pairs[name]:
                timed.measure(device)
    print(f"{device}, {arguments.threads} threads, torch {torch.__version__}, shape {shape}")
    for name in chosen:
        report(name, *pairs[name], rates)
    if "training" in chosen:
        minutes = pairs["training"][1].best / arguments.batch * SCHEDULE_SAMPLES / 60
        print(f"\nthe paper's schedule (9,000 slices, 20 epochs) at this rate: {minutes:.0f} min")


if __name__ == "__main__":
    main()
