"""PushT from words: are key frames drawn until the T is on its mark, and how near does a robot that follows them bring it?

    python -m benchmarks.subgoals_pusht --proposer NAME [--model nano-pusht] [--images 100] [--episodes 25] [--steps 40]
        [--agents learnt true none random] [--folder FOLDER] [--out FILE]

All play the same scenes, seeds from 12,000,000, and plan with the same budget in the same world model: "learnt" and "true"
follow key frames, of the proposer and of the scripted expert's own way; "none" goes straight for the mark, whose place it is
given; "random" are random actions. Judged by the simulator: covered over 95%, as in gym_pusht, and within 1 cm at the end.
With `--folder`, an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import emu_embodied.envs  # noqa: F401  registers them
from benchmarks.timing import publish
from emu_embodied.envs.pusht.geometry import AIMS_CM
from emu_embodied.errors import EmuEmbodiedError
from emu_embodied.loading import load, load_proposer, weights_label
from emu_embodied.metrics import bootstrap_interval
from emu_embodied.policies.planners.cem import CEMConfig
from emu_embodied.rollouts.evaluation.harness import difference, rate
from emu_embodied.rollouts.evaluation.planning import PlanningSettings, evaluate_planning
from emu_embodied.rollouts.evaluation.subgoals import FIRST
from emu_embodied.rollouts.goals.subgoal_setup import Following
from emu_embodied.types import AGENT_POS, PIXELS, Observation

ENV_ID = "emu_embodied/PushT-v0"
AGENTS = ("learnt", "true", "none", "random")
NEAR_CM = 1.0  # mean of what centroid and tip have still to go
LONGEST = 32  # key frames of a chain
PLANNER = CEMConfig(candidates=32, iterations=2, elites=6, horizon=6, execute=3)  # 384 frames a plan


def draw_chains(proposer, count: int) -> dict[str, Any]:
    """Chains from the first frames of so many episodes: where their last frames have the T, and whether they say "done"."""
    env, rows = gymnasium.make(ENV_ID), []
    tee = [proposer.objects.index(name) for name in ("T", "tip")]
    for seed in range(FIRST, FIRST + count):
        seen, info = env.reset(seed=seed)
        began = time.perf_counter()
        chain = proposer.propose(Observation(seen[PIXELS], seen[AGENT_POS], info["task"]), LONGEST, 0)
        seconds = time.perf_counter() - began
        lefts = [float(np.linalg.norm(s.places[tee, :2] - AIMS_CM, axis=-1).mean()) for s in chain]
        near = bool(lefts) and lefts[-1] <= NEAR_CM
        said = bool(chain) and chain[-1].last
        rows.append(
            {"seed": seed, "frames": len(chain), "start_cm": info["distance"], "near": near, "done": said}
            | {"near_and_done": near and said, "end_cm": lefts[-1] if lefts else info["distance"], "seconds": seconds}
        )
    kept = ("near", "done", "near_and_done")
    means = {f"{name}_mean": float(np.mean([row[name] for row in rows])) for name in ("frames", "seconds", "end_cm")}
    return {name: rate(rows, name) for name in kept} | means | {"rows": rows}


def play(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """One agent's episodes."""
    follows = {"learnt": weights_label(options.proposer, 1) if options.proposer else "", "true": "true"}
    settings = PlanningSettings(
        ENV_ID,
        agent="random" if name == "random" else "model",
        goal="language" if name in follows else "positions",
        planner=PLANNER,
        max_steps=options.steps,
        model="" if name == "random" else weights_label(options.model, 1),
        following=Following(follows[name]) if name in follows else None,
    )
    journal = options.folder / f"pusht-{name}.jsonl" if options.folder else None
    make_model = functools.partial(load, options.model, device="cpu")
    make_proposer = functools.partial(load_proposer, options.proposer) if options.proposer else None
    seeds = range(FIRST, FIRST + options.episodes)
    rows = evaluate_planning(settings, seeds, make_model, journal=journal, make_proposer=make_proposer)
    return [row | {"near": row["end_cm"] <= NEAR_CM} for row in rows]


def account(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Successes, and how near the T is at the end."""
    nearer = np.array([row["start_cm"] - row["end_cm"] for row in rows])
    plans = [second for row in rows for second in row["plan_seconds"]]
    return {
        "success": rate(rows),
        "within_1_cm": rate(rows, "near"),
        "nearer_by_cm": {"mean": float(nearer.mean()), "bootstrap_95": list(bootstrap_interval(nearer, np.mean))},
        "end_cm_median": float(np.median([row["end_cm"] for row in rows])),
        "plan_seconds_mean": float(np.mean(plans)) if plans else None,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Chains and closed loops of all agents asked for."""
    found: dict[str, Any] = {"loop": {}}
    if options.proposer and options.images:
        found["images"] = draw_chains(load_proposer(options.proposer), options.images)
    rows = {name: play(options, name) for name in options.agents if options.proposer or name != "learnt"}
    for name, those in rows.items():
        found["loop"][name] = account(those)
        print(f"{name}: {json.dumps(found['loop'][name])}", file=sys.stderr, flush=True)
    first = next(iter(rows))
    found["differences_within_1_cm"] = {
        f"{first} - {name}": difference(rows[first], theirs, "near") for name, theirs in rows.items() if name != first
    }
    return found | {"rows": rows}


def main() -> None:
    """Measures, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subgoals_pusht", description=__doc__.partition("\n")[0])
    parser.add_argument("--proposer", help="a checkpoint of `train stage=language`, a name or a folder")
    parser.add_argument("--model", default="nano-pusht", help="the world model to plan in")
    parser.add_argument("--images", type=int, default=100, help="chains that are drawn")
    parser.add_argument("--episodes", type=int, default=25, help="in closed loop")
    parser.add_argument("--steps", type=int, default=40, help="model steps of an episode")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    parser.add_argument("--folder", type=Path, help="keep each episode here as it finishes, and go on from there")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        found = measure(options)
    except EmuEmbodiedError as error:
        raise SystemExit(f"subgoals_pusht: {error}") from None
    result = {
        "seeds_from": FIRST,
        "planner": asdict(PLANNER),
        "steps": options.steps,
        **found,
    }
    publish(result, options.out, ("gym-pusht", "pymunk"))


if __name__ == "__main__":
    main()
