"""Decoding speed: token by token against DiDA's K passes and a commit, on the same engine and the same cache.

    python -m benchmarks.decoding [--quick] [--json] [--out FILE]

Prints a table (or one JSON object) of ms and frames a second, medians with quartiles, per batch size.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from emu_embodied.decoding import autoregressive, dida
from emu_embodied.decoding.config import DecodingConfig
from emu_embodied.step import FrameStep
from emu_embodied.storage import write_json
from emu_embodied.token_model import TokenModel, TokenModelConfig
from emu_embodied.transformer import TransformerConfig
from emu_embodied.vocabulary import Vocabulary

PASSES = (1, 2, 4, 8)


def nano_model(grid: int = 8) -> TokenModel:
    """The nano preset's sizes with random weights: speed does not depend on what was learnt."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(384, 512, 64)
    config = TokenModelConfig(vocabulary, TransformerConfig(vocabulary.size), grid, 2, objects=tuple("abcde"))
    return TokenModel(config).eval()


def time_frames(decode: Callable[[], None], budget: float, fewest: int = 3) -> list[float]:
    """Seconds of each call after one warm-up, until `budget` seconds are spent."""
    decode()
    times: list[float] = []
    while len(times) < fewest or (sum(times) < budget and len(times) < 50):
        start = time.perf_counter()
        decode()
        times.append(time.perf_counter() - start)
    return times


@torch.inference_mode()
def measure(model: TokenModel, batch: int, budget: float) -> dict[str, dict[str, float]]:
    """Times one frame of every decoding at a batch size."""
    step, c = FrameStep(model), model.config
    text = torch.zeros(batch, c.text_length, dtype=torch.int64)
    codes = torch.randint(0, c.vocabulary.codebook_size, (batch, c.context_frames, c.slots))
    actions = torch.zeros(batch, c.context_frames - 1, c.action_dim)
    cache = step.prefill(text, codes, actions, ahead=1)
    start, action = (cache.kv.length, cache.kv.visible_from, cache.previous_BN, cache.frames), actions[:, 0]

    def rewind() -> None:
        cache.kv.length, cache.kv.visible_from, cache.previous_BN, cache.frames = start

    def token_by_token() -> None:
        rewind()
        autoregressive.decode_frame(step, cache, action)

    def parallel(passes: int) -> Callable[[], None]:
        def decode() -> None:
            rewind()
            drawn, _, _ = dida.decode_frame(step, cache, action, DecodingConfig(passes=passes))
            step.commit(cache, action, drawn)

        return decode

    runs = {"autoregressive": token_by_token} | {f"k{k}": parallel(k) for k in PASSES}
    return {name: summary(time_frames(decode, budget), batch) for name, decode in runs.items()}


def summary(times: list[float], batch: int) -> dict[str, float]:
    """Median and quartiles in ms a call, and frames a second at the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {
        "ms": 1e3 * middle,
        "ms_quartiles": [1e3 * low, 1e3 * high],
        "frames_per_second": batch / middle,
        "n": len(times),
    }


def main() -> None:
    """Measures, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 1 and 16 only, within 50 s; prints JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    model, budget = nano_model(), 2.0 if arguments.quick else 8.0
    batches = (1, 16) if arguments.quick else (1, 16, 64)
    speed = {f"batch_{b}": measure(model, b, budget) for b in batches}
    result = {
        "speed": speed,
        "speedup": {
            name: {
                f"{k}_over_autoregressive": row["autoregressive"]["ms"] / row[k]["ms"]
                for k in row
                if k != "autoregressive"
            }
            for name, row in speed.items()
        },
        "model": {"parameters": sum(p.numel() for p in model.parameters()), "tokens_per_frame": model.config.slots},
        "engine": FrameStep.name,
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.json or arguments.quick:
        print(json.dumps(result))
        return
    for name, row in speed.items():
        for decoding, figures in row.items():
            print(f"{name:9} {decoding:15} {figures['ms']:8.1f} ms  {figures['frames_per_second']:8.0f} frames/s")


if __name__ == "__main__":
    main()
