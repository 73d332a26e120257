"""Decoding: token by token against parallel passes, on the same engine and the same cache; speed, and what it costs in quality.

    python -m benchmarks.decoding [--quick] [--json] [--out FILE]

64 tokens a frame: the shipped `nano-tabletop` on held-out frames of the real table-top. 256 tokens: its sizes with random
weights, where the exact decoding is left out, whose speed depends on what was learnt. Prints a table, or one JSON object, of
ms and frames a second, medians with quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from emu_embodied.decoding import autoregressive, dida, exact
from emu_embodied.decoding.config import DecodingConfig
from emu_embodied.loading import load
from emu_embodied.metrics import bootstrap_interval
from emu_embodied.rollouts.episodes import record_frames
from emu_embodied.rollouts.quality import OpenLoop, Truth
from emu_embodied.step import FrameStep
from emu_embodied.storage import write_json
from emu_embodied.token_model import TokenModel
from emu_embodied.types import Observation
from emu_embodied.world_model import TokenWorldModel

PASSES = (1, 2, 4, 8)
SEED = 4_000_000
HELD_OUT = {"episodes": 40, "steps": 24}


def time_frames(decode: Callable[[], None], budget: float, fewest: int = 3) -> list[float]:
    """Seconds of each call after one warm-up, until `budget` seconds are spent."""
    decode()
    times: list[float] = []
    while len(times) < fewest or (sum(times) < budget and len(times) < 50):
        start = time.perf_counter()
        decode()
        times.append(time.perf_counter() - start)
    return times


def real_histories(world_model: TokenWorldModel, truth: Truth, batch: int) -> tuple[torch.Tensor, ...]:
    """Text (B, L), frames (B, C, N), actions between them and the next action (B, A), from the middle of held-out episodes."""
    episodes, middle = np.arange(batch) % truth.episodes, truth.length // 2 + np.arange(batch) // truth.episodes
    seen = [
        Observation(truth.pixels[e, t], np.zeros(2, np.float32), truth.instructions[e])
        for e, t in zip(episodes, middle, strict=True)
    ]
    history = world_model.encode(seen)
    return history.text_BL, history.codes_BCN, history.actions_BCA, torch.from_numpy(truth.actions[episodes, middle])


def random_histories(model: TokenModel, batch: int) -> tuple[torch.Tensor, ...]:
    """The same of random codes."""
    c, frames = model.config, max(1, model.config.context_frames)
    text = torch.zeros(batch, c.text_length, dtype=torch.int64)
    codes = torch.randint(0, c.vocabulary.codebook_size, (batch, frames, c.slots))
    return text, codes, torch.zeros(batch, frames - 1, c.action_dim), torch.zeros(batch, c.action_dim)


def decodings(model: TokenModel, trained: bool) -> Iterator[tuple[str, Callable, DecodingConfig]]:
    """Name, function and options of every way to decode a frame."""
    yield "autoregressive", autoregressive.decode_frame, DecodingConfig("autoregressive")
    if trained:
        yield "exact", exact.decode_frame, DecodingConfig("exact")
    diagonals = DecodingConfig(passes=2 * model.config.grid - 1, order="antidiagonal")
    yield "antidiagonal", dida.decode_frame, diagonals
    for passes in PASSES:
        yield f"k{passes}", dida.decode_frame, DecodingConfig(passes=passes)


@torch.inference_mode()
def measure(model: TokenModel, histories: tuple[torch.Tensor, ...], trained: bool, budget: float) -> dict[str, dict]:
    """Times one frame of every decoding, with its commit, at the histories' batch size."""
    step, (text, codes, actions, action) = FrameStep(model), histories
    cache = step.prefill(text, codes, actions, ahead=1)
    start = (cache.kv.length, cache.kv.visible_from, cache.previous_BN, cache.frames)

    def frame(function: Callable, config: DecodingConfig) -> None:
        cache.kv.length, cache.kv.visible_from, cache.previous_BN, cache.frames = start
        cache.source = None
        drawn, _, _ = function(step, cache, action, config)
        if config.decoding != "autoregressive":
            step.commit(cache, action, drawn)

    return {
        name: summary(time_frames(lambda f=function, c=config: frame(f, c), budget), len(text))
        for name, function, config in decodings(model, trained)
    }


def summary(times: list[float], batch: int) -> dict[str, float]:
    """Median and quartiles in ms a call, and frames a second at the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {
        "ms": 1e3 * middle,
        "ms_quartiles": [1e3 * low, 1e3 * high],
        "frames_per_second": batch / middle,
        "n": len(times),
    }


def speedups(speed: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Each decoding's frames a second over token by token's, by batch size."""
    return {
        batch: {
            f"{name}_over_autoregressive": row["autoregressive"]["ms"] / row[name]["ms"]
            for name in row
            if name != "autoregressive"
        }
        for batch, row in speed.items()
    }


def quality(world_model: TokenWorldModel, truth: Truth, steps: int = 8) -> dict[str, dict]:
    """Error in px at step 8 of cubes that move >= 4 px, by eye, and how many codes equal token by token's at step 1."""
    result, reference = {}, None
    for name, _, config in decodings(world_model.model, trained=True):
        world_model.decoding = config
        loop = OpenLoop(world_model, truth, starts=(4, 12), steps=steps)
        moved = loop.present & (loop.moved[:, -1] >= 4) & (np.arange(len(truth.names)) > 0)
        errors = loop.errors[:, -1][moved]
        reference = loop.codes if reference is None else reference
        result[name] = {
            "object_error_px": float(np.median(errors)),
            "interval_95": list(bootstrap_interval(errors)),
            "n": len(errors),
            "codes_as_token_by_token": float((loop.codes[:, 0] == reference[:, 0]).mean()),
        }
    world_model.decoding = DecodingConfig()
    return result


def main() -> None:
    """Measures, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="batch 1 and 16 of 64 tokens only, within 50 s; prints JSON"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    world_model, budget = load("nano-tabletop", device="cpu"), 1.5 if arguments.quick else 6.0
    model = world_model.model
    seeds = range(SEED, SEED + HELD_OUT["episodes"])
    frames = record_frames(world_model.world.env_id, {}, seeds, HELD_OUT["steps"])
    truth = Truth(frames, world_model.world.objects, world_model.world.position_scale)
    batches = (1, 16) if arguments.quick else (1, 16, 64, 256)
    speed = {f"batch_{b}": measure(model, real_histories(world_model, truth, b), True, budget) for b in batches}
    result = {"speed": speed, "speedup": speedups(speed)}
    if not arguments.quick:
        torch.manual_seed(0)
        large = TokenModel(replace(model.config, grid=2 * model.config.grid)).eval()
        speed = {f"batch_{b}": measure(large, random_histories(large, b), False, budget) for b in (1, 16)}
        result |= {"speed_256_tokens": speed, "speedup_256_tokens": speedups(speed)}
        result["quality"] = quality(world_model, truth)
    result |= {
        "model": {"parameters": sum(p.numel() for p in model.parameters()), "context": model.config.context_frames},
        "engine": FrameStep.name,
        "seed": SEED,
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: metadata.version(name) for name in ("emu-embodied", "torch", "numpy")},
    }
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.json or arguments.quick:
        print(json.dumps(result))
        return
    for key in ("speed", "speed_256_tokens"):
        for name, row in result[key].items():
            for decoding, figures in row.items():
                fps = figures["frames_per_second"]
                print(f"{key:17} {name:10} {decoding:15} {figures['ms']:9.1f} ms  {fps:8.0f} frames/s")
    for name, figures in result["quality"].items():
        error, same = figures["object_error_px"], figures["codes_as_token_by_token"]
        print(f"quality {name:15} {error:.2f} px at step 8, {100 * same:.2f}% of the codes at step 1 as token by token")


if __name__ == "__main__":
    main()
