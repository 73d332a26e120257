"""Planners at the same budget of predicted frames, on the same seeds of the table-top: success, and seconds a plan.

    python -m benchmarks.planners [--episodes N] [--frames 512 1536] [--planners cem icem ...] [--oracle] [--out FILE]

Plans are imagined in the shipped nano-tabletop, or with `--oracle` in the true simulator, which has no gradient. Every planner
has its defaults and as many candidates as make its rounds fill the budget; "cem, pruned" looks at all candidates after half the
horizon and imagines only the better half further. "gradient" counts a soft frame, with its way back, as one. Seeds are
10,000,000 and on, none of those that anything was tuned on. With `--folder`, an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.timing import publish
from emu_embodied.loading import load, weights_label
from emu_embodied.metrics import bootstrap_interval
from emu_embodied.policies.planners.base import PlannerConfig
from emu_embodied.policies.planners.registry import planner_config
from emu_embodied.rollouts.evaluation.planning import PlanningSettings, evaluate_planning, summarise

ENV, CHECKPOINT, SEED = "emu_embodied/TabletopPush-v0", "nano-tabletop", 10_000_000
ROUNDS = {512: 2, 1536: 3}  # of the sampling planners; those of other budgets as of the nearest
WAYS = {
    "cem": {},
    "cem, pruned": {"prune": True},
    "icem": {},
    "mppi": {},
    "predictive": {},
    "categorical": {},
    "gradient": {"candidates": 4},
}


def way(name: str, frames: int) -> PlannerConfig:
    """The planner of a row, with candidates that make its rounds fill the budget as far as they can."""
    planner, options = name.partition(",")[0], dict(WAYS[name])
    if planner == "gradient":  # its starts are given; Adam takes the steps that are left
        return planner_config(planner, iterations=10**4, frames=frames, **options)
    options["iterations"] = ROUNDS[min(ROUNDS, key=lambda known: abs(known - frames))]
    if planner in ("cem", "icem", "categorical"):
        options["elites"] = 6 if options["iterations"] == 2 else 8
    fitting = None
    for candidates in range(2 * options.get("elites", 1), frames):
        config = planner_config(planner, candidates=candidates, **options)
        if config.predicted_frames > frames:
            break
        fitting = config
    if fitting is None:
        raise SystemExit(f"frames: {frames}; too few for {name}")
    return fitting


def play(config: PlannerConfig, seeds: Sequence[int], oracle: bool, folder: Path | None, workers: int) -> list[dict]:
    """An episode a seed, by one planner."""
    label = "" if oracle else weights_label(CHECKPOINT, 1)
    settings = PlanningSettings(ENV, {}, "oracle" if oracle else "model", "positions", config, model=label)
    make = functools.partial(load, CHECKPOINT, device="cpu")
    journal = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        pruned = "-pruned" if config.prune else ""
        journal = folder / f"{settings.agent}-{config.name}{pruned}-{config.predicted_frames}.jsonl"
    return evaluate_planning(settings, seeds, None if oracle else make, workers, journal)


def measure(
    names: Sequence[str], budgets: Sequence[int], seeds: Sequence[int], oracle: bool, folder: Path | None, workers: int
) -> dict[str, dict]:
    """For each budget and planner: success with Wilson's interval, the paired difference to CEM's, and seconds a plan."""
    found: dict[str, dict] = {}
    for frames in budgets:
        rows: dict[str, list[dict]] = {}
        for name in names:
            config = way(name, frames)
            rows[name] = play(config, seeds, oracle, folder, workers)
            summary = {**summarise(rows[name]), "config": asdict(config)}
            if "cem" in rows and name != "cem":
                pairs = zip(rows[name], rows["cem"], strict=True)
                apart = [float(mine["success"]) - float(theirs["success"]) for mine, theirs in pairs]
                interval = list(bootstrap_interval(apart, lambda values: values.mean(0)))
                summary["over_cem"] = {"value": sum(apart) / len(apart), "interval_95": interval, "n": len(apart)}
            summary["success"] = {str(row["seed"]): row["success"] for row in rows[name]}
            found.setdefault(f"frames_{frames}", {})[name] = summary
            low, high = summary["wilson_95"]
            print(
                f"{frames} frames, {name:12} {summary['rate']:.0%} of {summary['n']} ({low:.0%} to {high:.0%}), "
                f"{summary['seconds_per_plan_median']:.2f} s a plan of {summary['frames_per_plan']:.0f} frames",
                file=sys.stderr,
                flush=True,
            )
    return found


def main() -> None:
    """Measures, and prints JSON or writes it where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planners", description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=50, help="of each planner at each budget")
    parser.add_argument("--frames", type=int, nargs="+", default=[512, 1536], help="predicted frames a plan, at most")
    parser.add_argument("--planners", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--oracle", action="store_true", help="imagine in the true simulator")
    parser.add_argument("--workers", type=int, default=1, help="processes; more of them make seconds a plan longer")
    parser.add_argument("--folder", type=Path, help="keep each episode here as it finishes, and go on from there")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    arguments = parser.parse_args()
    names = [name for name in arguments.planners if not (arguments.oracle and name == "gradient")]
    seeds = range(SEED, SEED + arguments.episodes)
    job = (names, arguments.frames, seeds, arguments.oracle, arguments.folder, arguments.workers)
    result = {
        "planning": measure(*job),
        "dynamics": "simulator" if arguments.oracle else weights_label(CHECKPOINT, 1),
        "episodes": arguments.episodes,
        "seed": SEED,
        "workers": arguments.workers,
    }
    publish(result, arguments.out, ("mujoco", "gymnasium"))


if __name__ == "__main__":
    main()
