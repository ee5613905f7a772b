"""A training step of the starter's recipe, eagerly and by `torch.compile`.

`python benchmarks/compiled_step.py [--threads 1] [--repeats 20]`. Sixteen patches of 64 x 64, in
float32 and bf16, measured in turn; what compiling takes is said apart, for a run pays it each time.
"""

import argparse
import time
from statistics import median

import torch
from step import Timed, training_step

from hqinet.networks.hqinet import build
from hqinet.training.recipe import load_recipe

DEVICE = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe("starter")
    shape = (recipe.sampling.batch, 3, recipe.sampling.patch, recipe.sampling.patch)
    windows = torch.rand(shape).to(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16):
        steps = {}
        for name in ("eager", "torch.compile"):
            network = build(recipe.model, recipe.seed).to(memory_format=torch.channels_last).train()
            if name == "torch.compile":
                network.compile()
            steps[name] = Timed(training_step(network, windows, dtype, recipe), dtype)
            begun = time.perf_counter()
            steps[name].run()
            print(f"{dtype} {name}: the first step takes {time.perf_counter() - begun:.1f} s")
        for _ in range(options.repeats):
            for timed in steps.values():
                timed.measure(DEVICE)
        eager, compiled = (median(timed.seconds) for timed in steps.values())
        print(f"{dtype}: eager {eager:.3f} s, compiled {compiled:.3f} s: {eager / compiled:.2f}")


if __name__ == "__main__":
    main()
