"""Frames a CPU-second of a plan's rollouts over what the model's matrix products alone would allow: how much is overhead.

    python -m benchmarks.floor [--checkpoint nano-tabletop] [--engines eager ...] [--candidates 64 512] [--out FILE]

The floor multiplies, as often as a frame does, every weight of the layers and the visual part of the head with as many
tokens as a frame has, in float32, for as many frames at once as the world model imagines; nothing else, no attention and no
convolution. Shares are of that floor, also for engines that compute in bfloat16, whose own floor is given beside. All in CPU
seconds of one thread, each engine asked in turn, medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import emu_embodied  # noqa: F401  before torch

# isort: split
import numpy as np
import torch

from benchmarks.timing import matrix_products, publish
from emu_embodied.loading import load
from emu_embodied.types import Observation

ENGINES = ("eager", "eager-bf16", "compiled", "compiled-bf16", "onnx")
HORIZON = 5  # model steps of a candidate, as in protocol A
SEED = 0
REPEATS = 50  # of the floor's products, which are short


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


def planning(checkpoint: str, engine: str, candidates: int) -> Callable[[], object]:
    """A rollout of a plan's round: so many candidates from one frame, on the engine named ("compiled-bf16")."""
    name, _, precision = engine.partition("-")
    model = load(checkpoint, engine=name, precision=precision or "fp32")
    size = model.image_size
    start = Observation(np.full((size, size, 3), 128, np.uint8), np.zeros(model.agent_dim, np.float32))
    history = model.encode([start])
    rng = np.random.default_rng(SEED)
    actions = rng.uniform(-1, 1, (1, candidates, HORIZON, model.action_dim)).astype(np.float32)
    return lambda: model.rollout(history, actions)


def main() -> None:
    """Measures, prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", default="nano-tabletop")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--candidates", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.checkpoint)
    rows_at_once = model.chunk * model.model.config.frame_tokens
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    floors = {name: matrix_products(model.model, rows_at_once, REPEATS, dtype) for name, dtype in dtypes.items()}
    rows: dict[str, dict] = {"floor": {}, "frames": {}}
    for candidates in arguments.candidates:
        work = {engine: planning(arguments.checkpoint, engine, candidates) for engine in arguments.engines}
        rates: dict[str, list[float]] = {name: [] for name in (*floors, *work)}
        for each in (*floors.values(), *work.values()):
            each()  # compiles, and warms up
        for _ in range(arguments.rounds):
            for name, multiply in floors.items():
                rates[name].append(REPEATS * model.chunk / cpu_seconds(multiply))
            for name, rollout in work.items():
                rates[name].append(candidates * HORIZON / cpu_seconds(rollout))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        rows["floor"][candidates] = {name: medians[name] for name in floors}
        rows["frames"][candidates] = {
            name: {"frames_per_cpu_second": medians[name], "share_of_fp32_floor": medians[name] / medians["fp32"]}
            | {"all": rates[name]}
            for name in work
        }
    settings = {
        "checkpoint": arguments.checkpoint,
        "rounds": arguments.rounds,
        "threads": 1,
        "chunk": model.chunk,
        "seed": SEED,
    }
    publish({**rows, **settings, "horizon": HORIZON}, arguments.out)


if __name__ == "__main__":
    main()
