"""Does K matter where the world is random? Imagined futures of the stochastic table-top against the simulator's own.

    python -m benchmarks.stochastic --checkpoint PATH [--quick] [--out FILE] [--picture FILE]

Each start is a scene of one cube (poses, a frame, four actions). The simulator plays it many times, from rest, with other
gusts, masses and frictions: these are the true outcomes. The model dreams it as often, a detector reads both from frames, an
object out of sight counting as outside the frame. The "simulator" row is a second set of true outcomes after the tokenizer's
round trip: what a perfect model would get. "whole_and_far" is the share of frames in which the cube is whole and at least 8 px
from where it was, after one step because of a gust. The checkpoint is the shipped one, adapted to this world:

    emu-embodied collect env=tabletop env.options.stochastic=true episodes=1200 seed=5000000 out=DATA workers=1
    emu-embodied train stage=dida from=nano-tabletop distil=false data=DATA threads=1 out=RUN recipe.held_out=40 \\
        recipe.trajectory.contact_share=0.0 recipe.trajectory.changed=1.0 recipe.trajectory.soften=0.0 \\
        recipe.trajectory.position=0.0 recipe.trajectory.fully_hidden=0.3 recipe.trajectory.causal_share=0.5 \\
        recipe.trajectory.joint_until=1.0 recipe.trajectory_loop.steps=1500 recipe.trajectory_loop.learning_rate=0.002

Hard targets, and no weight or window chosen by its outcome, so that the odds learnt are the world's; no position loss, because
the labels of cubes that were blown far off the table would drown the rest.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import cv2
import gymnasium
import numpy as np
import torch

from emu_embodied.checkpoint import fingerprint
from emu_embodied.envs.tabletop.tasks import COLOURS, OBJECTS
from emu_embodied.loading import checkpoint_path, load
from emu_embodied.metrics import bootstrap_interval, colour_centroids, energy_score, spread
from emu_embodied.rollouts.collection.episodes import record_frames
from emu_embodied.rollouts.evaluation.prediction import tokenizer_codes
from emu_embodied.storage.atomic import write_json
from emu_embodied.types import PIXELS, Observation

ENV, OPTIONS = "emu_embodied/TabletopPush-v0", {"stochastic": True, "cubes": 1}
SEED, HORIZON, STEPS = 6_000_000, 4, (1, 4)
WAYS = {
    "greedy": {"passes": 1},
    "K=1": {"passes": 1, "temperature": 1.0},
    "K=4": {"passes": 4, "order": "halton", "temperature": 1.0},
    "K=16": {"passes": 16, "order": "halton", "temperature": 1.0},
    "exact": {"decoding": "exact", "temperature": 1.0},
    "token by token": {"decoding": "autoregressive", "temperature": 1.0},
}
NAMES = ("pusher", *COLOURS)
OUTSIDE = -16.0  # px, both coordinates of an object that is not seen
PIECE_PX2 = 8.0  # a tenth of a cube, a quarter of the pusher
FAR_PX = 8.0  # from where it was at first: further than a push takes a cube in one step
NEAR_CM = 5.5  # pusher to cube: a push is about to begin


@dataclass(frozen=True)
class Start:
    """A scene to go on from.

    Attributes:
        scene: options of the table-top's `reset`.
        actions_TA: (4, 2) float32.
        present: (O,) bool, which of `NAMES` are there.
    """

    scene: dict
    actions_TA: np.ndarray
    present: np.ndarray


def find_starts(count: int) -> list[Start]:
    """From each of `count` scripted episodes the first moment at which a push is about to begin, whatever comes of it."""
    cache, starts = record_frames(ENV, OPTIONS, range(SEED, SEED + 3 * count), 24), []
    for first, instruction in zip(cache.episode_starts, cache.instructions, strict=False):
        rows = cache.states[first : first + 25].reshape(25, len(OBJECTS), 4)[:, : len(NAMES)]
        there = rows[0, :, 3] > 0
        for t in range(2, 25 - HORIZON):
            pusher, cubes = rows[t, 0, :2], rows[t, 1:][there[1:], :2]
            apart = np.linalg.norm(cubes[:, None] - cubes[None], axis=-1) + 99 * np.eye(len(cubes))
            near = np.linalg.norm(cubes - pusher, axis=-1).min() < NEAR_CM
            if near and apart.min() > 4.6 and np.abs(cubes).max() < 12:
                poses = {name: tuple(map(float, row[:3])) for name, row in zip(NAMES, rows[t], strict=True) if row[3]}
                scene = {"pusher": poses.pop("pusher")[:2], "cubes": poses, "instruction": instruction}
                starts.append(Start(scene, cache.actions[first + t : first + t + HORIZON], there))
                break
    return starts[:count]


def play(env: gymnasium.Env, start: Start, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The first frame (H, W, 3), and the frames (S, steps, H, W, 3) at `STEPS` of one true outcome a seed."""
    world, outcomes = env.unwrapped, []
    for seed in seeds:
        first = world.reset(seed=seed, options=start.scene)[0][PIXELS]
        frames = []
        for t, action in enumerate(start.actions_TA, 1):
            world.act(action)
            if t in STEPS:
                frames.append(world.frame(world.config.image_size))
        outcomes.append(frames)
    return first, np.array(outcomes)


def dream(model, start: Start, first: np.ndarray, samples: int) -> np.ndarray:
    """The frames (S, steps, H, W, 3) at `STEPS` of as many imagined futures."""
    seen = Observation(first, np.zeros(2, np.float32), start.scene["instruction"])
    actions = np.broadcast_to(start.actions_TA, (1, samples, *start.actions_TA.shape)).copy()
    rollout = model.rollout(model.encode([seen]), actions)
    return model.decode(rollout.codes_BSTN[0, :, [t - 1 for t in STEPS]])


def palette_of(model) -> np.ndarray:
    """(O, 3) float32 RGB of `NAMES`."""
    return np.array([model.world.objects[name] for name in NAMES], np.float32)


def look(frames: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (..., O, 2) in px, areas (..., O) in px^2, and in how many pieces (..., O) each object is seen."""
    positions, areas = colour_centroids(frames, palette)
    positions = np.where((areas > 4)[..., None], np.nan_to_num(positions), OUTSIDE)
    distance = np.linalg.norm(frames[..., None, :].astype(np.float32) - palette, axis=-1)  # (..., H, W, O)
    mask = (distance < 90) & (distance == distance.min(-1, keepdims=True))
    flat = np.moveaxis(mask, -1, -3).reshape(-1, *frames.shape[-3:-1]).astype(np.uint8)
    pieces = [(cv2.connectedComponentsWithStats(m)[2][1:, cv2.CC_STAT_AREA] >= PIECE_PX2).sum() for m in flat]
    return positions, areas, np.reshape(pieces, areas.shape)


def faults(areas: np.ndarray, pieces: np.ndarray, first_areas: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """Frames (S,) in which an object is missing, in several pieces or invented; "broken" adds those of a wrong size."""
    missing = (areas[:, present] <= 4).any(1)
    doubled = (pieces[:, present] > 1).any(1)
    invented = (pieces[:, ~present] > 0).any(1)
    size = areas[:, present] / first_areas[present]
    broken = missing | doubled | invented | (size < 0.6).any(1) | (size > 1.5).any(1)
    return {"missing": missing, "doubled": doubled, "invented": invented, "broken": broken}


def figures_of(frames, outcomes, first, start: Start, palette) -> list[dict[str, float]]:
    """What samples (S, steps, H, W, 3) are worth against outcomes of the same shape, at each of `STEPS`."""
    positions, areas, pieces = look(frames, palette)
    true = look(outcomes, palette)[0]
    at_first, first_areas, _ = look(first, palette)
    rows = []
    for t in range(len(STEPS)):
        mine, real = (p[:, t, start.present].reshape(len(p), -1) for p in (positions, true))
        random = real.std(0) > 0.5
        pairs = zip(mine[:, random].T, real[:, random].T, strict=True)
        crps = [energy_score(a[:, None], b[:, None]) for a, b in pairs]
        row = {"energy_score": energy_score(mine, real), "spread": spread(mine), "true_spread": spread(real)}
        row["crps"] = float(np.mean(crps)) if crps else None
        wrong = faults(areas[:, t], pieces[:, t], first_areas, start.present)
        away = np.linalg.norm(positions[:, t, start.present] - at_first[start.present], axis=-1)[:, 1:].max(1) >= FAR_PX
        wrong["whole_and_far"] = away & ~wrong["broken"]
        rows.append(row | {name: float(which.mean()) for name, which in wrong.items()})
    return rows


def summarise(rows: list[dict], simulator: list[dict], one_pass: list[dict]) -> dict[str, dict]:
    """Means over starts, with bootstrap 95% intervals; of the scores also the excess over the simulator's and over K=1's."""

    def entry(values, statistic=lambda v: v.mean(0)) -> dict:
        values = np.array(values, np.float64)
        return {
            "value": float(statistic(values)),
            "interval_95": list(bootstrap_interval(values, statistic)),
            "n": len(values),
        }

    shares = ("broken", "missing", "doubled", "invented", "whole_and_far")
    result = {name: entry([r[name] for r in rows]) for name in ("energy_score", *shares)}
    result["crps"] = entry([a["crps"] for a in rows if a["crps"] is not None])
    for other, theirs in (("simulator", simulator), ("k1", one_pass)):
        for kind in ("energy_score", "crps"):
            pairs = [(a[kind], b[kind]) for a, b in zip(rows, theirs, strict=True) if a[kind] is not None]
            result[f"{kind}_over_{other}"] = entry([a - b for a, b in pairs])
    apart = [(a["spread"], a["true_spread"]) for a in rows]
    result["spread_over_true"] = entry(apart, lambda v: v[:, 0].sum() / v[:, 1].sum())
    return result


def measure(checkpoint: str, starts: list[Start], samples: int, seed: int, report=print) -> tuple[dict, dict]:
    """Figures of every way at each of `STEPS`, and the frames: way -> for each start (S, steps, H, W, 3)."""
    model, env = load(checkpoint), gymnasium.make(ENV, **OPTIONS)
    palette = palette_of(model)
    seeds = np.arange(2 * samples * len(starts)).reshape(len(starts), -1) + seed  # others for each start: independent
    played = [play(env, start, row.tolist()) for start, row in zip(starts, seeds, strict=True)]
    env.close()
    firsts = [first for first, _ in played]
    truth, again = ([frames[part] for _, frames in played] for part in (slice(samples), slice(samples, None)))
    frames = {"simulator": [model.decode(tokenizer_codes(model.tokenizer, f)) for f in again]}
    seconds = {}
    for name, options in WAYS.items():
        model, began = load(checkpoint, seed=seed, **options), time.monotonic()
        frames[name] = [dream(model, s, f, samples) for s, f in zip(starts, firsts, strict=True)]
        seconds[name] = time.monotonic() - began
        report(f"{name}: {len(starts)} starts x {samples} futures in {seconds[name]:.0f} s", flush=True)
    rows = {
        name: [figures_of(*job, palette) for job in zip(dreamt, truth, firsts, starts, strict=True)]
        for name, dreamt in frames.items()
    }
    result = {
        f"step_{t}": {n: summarise(*([r[i] for r in rows[m]] for m in (n, "simulator", "K=1"))) for n in frames}
        for i, t in enumerate(STEPS)
    }
    result["seconds"] = seconds
    return result, {"first": firsts, "true": truth, **frames}


def draw(frames: dict, start: Start, which: int, palette: np.ndarray, path: Path, samples: int = 8) -> None:
    """A row a way: the first samples of one start at each of `STEPS`, with a red edge where an object is not whole."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, samples = ["true", *WAYS], min(samples, len(frames["true"][which]))
    first_areas = look(frames["first"][which], palette)[1]
    figure = pyplot.figure(figsize=(1.6 + 0.8 * len(STEPS) * samples, 0.83 * len(names) + 0.4), layout="constrained")
    blocks = figure.subfigures(1, len(STEPS), wspace=0.02)
    for t, block in enumerate(blocks):
        block.suptitle(f"after {STEPS[t]} step" + "s" * (STEPS[t] > 1), fontsize=11)
        axes = block.subplots(len(names), samples)
        for row, name in zip(axes, names, strict=True):
            shown = frames[name][which][:samples, t]
            _, areas, pieces = look(shown, palette)
            broken = faults(areas, pieces, first_areas, start.present)["broken"]
            for axis, frame, wrong in zip(row, shown, broken, strict=True):
                axis.imshow(frame)
                axis.set(xticks=[], yticks=[])
                for edge in axis.spines.values():
                    edge.set(color="red" if wrong else "lightgrey", linewidth=2 if wrong else 1)
            if t == 0:
                row[0].set_ylabel("simulator" if name == "true" else name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measures, prints a table, and writes JSON and the picture where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stochastic", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", default="nano-tabletop", help="a shipped name or a checkpoint's folder")
    parser.add_argument("--quick", action="store_true", help="4 starts of 8 futures")
    parser.add_argument("--starts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=16, help="futures of each start, imagined and true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--picture", type=Path, help="draw one start here, as PNG")
    parser.add_argument("--picture-of", type=int, default=0, help="which start")
    arguments = parser.parse_args()
    count, samples = (4, 8) if arguments.quick else (arguments.starts, arguments.samples)
    starts = find_starts(count)
    result, frames = measure(arguments.checkpoint, starts, samples, arguments.seed)
    result |= {
        "checkpoint": fingerprint(checkpoint_path(arguments.checkpoint)),
        "starts": len(starts),
        "samples": samples,
        "seeds": {"starts": SEED, "simulator_and_model": arguments.seed},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: metadata.version(name) for name in ("emu-embodied", "torch", "numpy", "mujoco")},
    }
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.picture:
        which, palette = arguments.picture_of, palette_of(load(arguments.checkpoint))
        draw(frames, starts[which], which, palette, arguments.picture)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
