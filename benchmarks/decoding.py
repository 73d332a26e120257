"""Decoding: token by token against parallel passes, on the same engine and the same cache; speed, and what it costs in quality.

    python -m benchmarks.decoding [--quick] [--json] [--out FILE] [--engines eager onnx compiled] [--planning N]

64 tokens a frame: the shipped `nano-tabletop` on held-out frames of the real table-top. 256 tokens: its sizes with random
weights, where the exact decoding is left out, whose speed depends on what was learnt. Prints a table, or one JSON object, of
ms and frames a second, medians with quartiles. `--quick`: the eager engine, batch 1 and 16 of 64 tokens, within 50 s.
`--steps`: only `FrameStep`'s growing cache against `StaticEngine`'s fixed buffers, both eager, by turns; CPU seconds.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import (
    bare_matrix_products,
    machine,
    publish,
    speedups,
    summary,
    time_frames,
    versions,
)
from emu_embodied.inference.decoding import dida
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.decoding.dida import fixed_order, open_after
from emu_embodied.inference.engines.registry import make_engine
from emu_embodied.inference.engines.static import StaticEngine
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.loading import load, weights_label
from emu_embodied.metrics import bootstrap_interval
from emu_embodied.model.token_model import TokenModel
from emu_embodied.policies.planners.cem import CEMConfig
from emu_embodied.rollouts.collection.episodes import record_frames
from emu_embodied.rollouts.evaluation.planning import PlanningSettings, evaluate_planning, summarise
from emu_embodied.rollouts.evaluation.prediction import OpenLoop, Truth
from emu_embodied.storage.atomic import write_json
from emu_embodied.types import Observation
from emu_embodied.world_model import TokenWorldModel

PASSES = (1, 2, 4, 8)
SEED = 4_000_000
HELD_OUT = {"episodes": 40, "steps": 24}
COMPILED = ("autoregressive", "k1")  # each further one would compile for minutes more


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
    """The same of random codes, where the model is."""
    c, frames, device = model.config, max(1, model.config.context_frames), model.noised.device
    text = torch.zeros(batch, c.text_length, dtype=torch.int64, device=device)
    codes = torch.randint(0, c.vocabulary.codebook_size, (batch, frames, c.slots), device=device)
    actions = torch.zeros(batch, frames, c.action_dim, device=device)
    return text, codes, actions[:, 1:], actions[:, 0]


def decodings(model: TokenModel, trained: bool) -> Iterator[tuple[str, DecodingConfig]]:
    """Name and options of every way to decode a frame."""
    yield "autoregressive", DecodingConfig("autoregressive")
    if trained:
        yield "exact", DecodingConfig("exact")
    yield "antidiagonal", DecodingConfig(passes=2 * model.config.grid - 1, order="antidiagonal")
    for passes in PASSES:
        yield f"k{passes}", DecodingConfig(passes=passes)


def measure(engine, model: TokenModel, histories, trained: bool, budget: float, only=None) -> dict[str, dict]:
    """Times one frame of every decoding, with its commit, at the histories' batch size."""
    return {
        name: summary(time_frames(engine, histories, config, budget), len(histories[0]))
        for name, config in decodings(model, trained)
        if only is None or name in only
    }


def measure_engines(names: list[str], world_model, truth: Truth, quick: bool) -> dict[str, dict]:
    """Speed and speedup of each engine; only the eager one is timed at batch 256, and compiled at batch 1 alone."""
    model, budget, found = world_model.model, 1.5 if quick else 4.0, {}
    torch.manual_seed(0)
    large = TokenModel(replace(model.config, grid=2 * model.config.grid)).eval()
    for name in names:
        compiled = name == "compiled"
        batches = (1, 16) if quick else (1,) if compiled else (1, 16, 64, 256) if name == "eager" else (1, 16, 64)
        job = {"budget": budget, "only": COMPILED if compiled else None}
        engine = make_engine(name, model)
        speed = {
            f"batch_{b}": measure(engine, model, real_histories(world_model, truth, b), True, **job) for b in batches
        }
        found[name] = {"speed": speed, "speedup": speedups(speed)}
        if not quick:
            engine, batches = make_engine(name, large), (1,) if compiled else (1, 16)
            speed = {f"batch_{b}": measure(engine, large, random_histories(large, b), False, **job) for b in batches}
            found[name] |= {"speed_256_tokens": speed, "speedup_256_tokens": speedups(speed)}
        found[name]["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if not quick:
            print(f"decoding: {name} measured", file=sys.stderr, flush=True)
    return found


@torch.inference_mode()
def compare_steps(model: TokenModel, timings: int = 5) -> dict[str, dict]:
    """Median CPU ms a frame of 8 dreamt in a row on each of the two eager step engines, which take turns."""
    found = {}
    for context in (0, 2):
        model.config = replace(model.config, context_frames=context)
        engines = {"frame_step": FrameStep(model), "static": StaticEngine(model)}
        for batch in (1, 16, 64):
            text, codes, between, action = random_histories(model, batch)
            times: dict[str, list[float]] = {name: [] for name in engines}
            for _ in range(timings + 1):
                for name, engine in engines.items():
                    cache = engine.prefill(text, codes, between, ahead=8)
                    begun = time.process_time()
                    for _ in range(8):
                        dida.decode_frame(engine, cache, action, DecodingConfig(), None, None)
                    times[name].append(1e3 * (time.process_time() - begun) / 8)
            row = {name: statistics.median(each[1:]) for name, each in times.items()}  # the first warms up
            found[f"context_{context}_batch_{batch}"] = row | {"static_over_frame_step": row["static"] / row["frame_step"]}
    return found


def over_bare_products(model: TokenModel, engines: dict[str, dict], budget: float = 2.0) -> dict[str, float]:
    """Token by token's time at batch 1 over that of its matrix products alone, by engine; and K = 1's."""
    single = summary(bare_matrix_products(model, 1, 1, model.config.slots, budget), 1)["ms"]
    whole = summary(bare_matrix_products(model, model.config.frame_tokens, 1, 1, budget), 1)["ms"]
    rows = {name: found["speed"]["batch_1"] for name, found in engines.items()}
    return {
        "bare_ms_autoregressive": single,
        "bare_ms_k1": whole,
        "autoregressive": {name: row["autoregressive"]["ms"] / single for name, row in rows.items()},
        "k1": {name: row["k1"]["ms"] / whole for name, row in rows.items()},
    }


def quality(world_model: TokenWorldModel, truth: Truth, steps: int = 8) -> dict[str, dict]:
    """Error in px at step 8 of cubes that move >= 4 px, and how many codes equal token by token's at step 1."""
    result, reference = {}, None
    for name, config in decodings(world_model.model, trained=True):
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


@torch.inference_mode()
def likelihoods(world_model: TokenWorldModel, truth: Truth) -> dict[str, float]:
    """Nats a token of true next frames: token by token, and in K passes that reveal true tokens in Halton's order."""
    engine, slots = make_engine("eager", world_model.model), world_model.tokens_per_frame
    codes = torch.stack([world_model.encode(_seen(truth, t)).codes_BCN[:, -1] for t in range(truth.length - 1)], 1)
    before, after = codes[:, :-1].flatten(0, 1), codes[:, 1:].flatten(0, 1)
    actions = torch.from_numpy(truth.actions[:, : truth.length - 2]).flatten(0, 1)
    text = world_model.encode(_seen(truth, 0)).text_BL.repeat_interleave(truth.length - 2, 0)
    found: dict[str, list[torch.Tensor]] = {}
    for rows in torch.arange(len(after)).split(64):
        frames = before[rows, None].repeat(1, world_model.context_frames, 1)
        between = torch.zeros(len(rows), world_model.context_frames - 1, actions.shape[1])
        cache, action, true = engine.prefill(text[rows], frames, between, ahead=1), actions[rows], after[rows]

        def scores(logits, true=true):
            return logits.log_softmax(-1).gather(-1, true[..., None])[..., 0]

        found.setdefault("autoregressive", []).append(scores(engine.verify(cache, action, true)[0]).sum(1))
        ranks = torch.tensor(fixed_order("halton", slots))
        for passes in PASSES:
            config, total, left = DecodingConfig(passes=passes, order="halton"), torch.zeros(len(rows)), slots
            for k in range(1, passes + 1):
                open_N, after_k = ranks >= slots - left, open_after(k, slots, config)
                decided = open_N & (ranks < slots - after_k)
                logits = engine.denoise(cache, action, true, open_N.expand_as(true)).logits
                total += (scores(logits) * decided).sum(1)
                left = after_k
            found.setdefault(f"k{passes}", []).append(total)
    return {name: float(-torch.cat(parts).mean() / slots) for name, parts in found.items()}


def _seen(truth: Truth, t: int) -> list[Observation]:
    still = np.zeros(2, np.float32)
    return [Observation(truth.pixels[e, t], still, truth.instructions[e]) for e in range(truth.episodes)]


def planning(episodes: int, workers: int = 2) -> dict[str, dict]:
    """Planning success with 512 frames a plan, imagined in one pass a frame and as token by token would, on the same seeds.

    The latter by the exact decoding, which gives the same tokens in a fraction of the time.
    """
    budget = CEMConfig(candidates=32, iterations=2, elites=6)
    seeds, found = range(SEED, SEED + episodes), {}
    for name, decoding in (("k1", "dida"), ("exact", "exact")):
        label = weights_label("nano-tabletop", 1) + f" {decoding}"
        settings = PlanningSettings("emu_embodied/TabletopPush-v0", {}, "model", "positions", budget, model=label)
        make = functools.partial(load, "nano-tabletop", decoding=decoding, device="cpu")
        found[name] = summarise(evaluate_planning(settings, seeds, make, workers))
    return found


def main() -> None:
    """Measures, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="eager, batch 1 and 16 of 64 tokens only; prints JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--engines", nargs="+", default=["eager", "onnx", "compiled"], help="not with --quick")
    parser.add_argument("--planning", type=int, default=0, help="episodes planned in one pass a frame and exactly")
    parser.add_argument("--steps", action="store_true", help="compare the two eager step engines, and nothing else")
    arguments = parser.parse_args()
    world_model = load("nano-tabletop", device="cpu")
    if arguments.steps:
        return publish({"cpu_ms_a_frame": compare_steps(world_model.model)}, arguments.out)
    seeds = range(SEED, SEED + HELD_OUT["episodes"])
    frames = record_frames(world_model.world.env_id, {}, seeds, HELD_OUT["steps"])
    truth = Truth(frames, world_model.world)
    engines = measure_engines(["eager"] if arguments.quick else arguments.engines, world_model, truth, arguments.quick)
    first = next(iter(engines))
    result = {"speed": engines[first]["speed"], "speedup": engines[first]["speedup"], "engine": first}
    if not arguments.quick:
        result |= {"engines": engines, "over_bare_products": over_bare_products(world_model.model, engines)}
        result |= {"quality": quality(world_model, truth), "nats_per_token": likelihoods(world_model, truth)}
    if arguments.planning:
        result["planning"] = planning(arguments.planning)
    model = world_model.model
    result |= {
        "model": {"parameters": sum(p.numel() for p in model.parameters()), "context": model.config.context_frames},
        "seed": SEED,
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
    }
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.json or arguments.quick:
        print(json.dumps(result))
    else:
        _print(result)


def _print(result: dict) -> None:
    for engine, found in result["engines"].items():
        for key in ("speed", "speed_256_tokens"):
            for name, row in found[key].items():
                for decoding, figures in row.items():
                    line = f"{engine:9} {key:17} {name:10} {decoding:15} {figures['ms']:9.1f} ms"
                    print(f"{line}  {figures['frames_per_second']:8.0f} frames/s")
    for name, figures in result["quality"].items():
        error, same = figures["object_error_px"], figures["codes_as_token_by_token"]
        print(f"quality {name:15} {error:.2f} px at step 8, {100 * same:.2f}% of the codes at step 1 as token by token")
    print("nats a token:", ", ".join(f"{name} {x:.3f}" for name, x in result["nats_per_token"].items()))
    for name, share in result["over_bare_products"]["autoregressive"].items():
        print(f"token by token over its bare matrix products: {name} {share:.2f}x")


if __name__ == "__main__":
    main()
