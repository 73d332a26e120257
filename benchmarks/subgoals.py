"""Subgoals from words, judged: do they show what was asked for, can they be reached, does a robot that follows them succeed?

    python -m benchmarks.subgoals [--checkpoint NAME] [--recordings DATASET.frames] [--episodes 100] [--images 250]
        [--proposers learnt filtered true none copy retrieved shuffled random] [--splits seen held_out] [--folder FOLDER]
        [--reach 100] [--out FILE]

All play the same scenes, seeds from 12,000,000, and plan with the same budget in the same world model. What is counted is in
`rollouts/subgoal_evaluation.py`. "learnt" is the checkpoint's proposer, "filtered" the same with drawings rejected, "none" the
planner without subgoals, in the checkpoint's own dreams and by its own reward. Without `--checkpoint` both learnt ones are left
out, and "shuffled" tells the truth something else. With `--folder`, an interrupted run goes on where it stopped; `--report`
plays nothing.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import publish
from emu_embodied.errors import EmuEmbodiedError
from emu_embodied.loading import load, weights_label
from emu_embodied.policies.planners.cem import CEMConfig
from emu_embodied.rollouts.evaluation import subgoals as evaluation
from emu_embodied.rollouts.evaluation.harness import difference, rate, ratio
from emu_embodied.rollouts.evaluation.instruction_sampling import sampled_starts
from emu_embodied.rollouts.evaluation.journal import open_journal
from emu_embodied.rollouts.evaluation.subgoals import Bench, ImageSettings, LoopSettings
from emu_embodied.rollouts.goals.subgoal_setup import Following

PROPOSERS = ("learnt", "filtered", "true", "none", "copy", "retrieved", "shuffled", "random")
TRIES = 4  # drawings of "filtered"
# Instructions: the env's own draw; all that can be said but what was held out of training; what was held out.
SPLITS = ("own", "seen", "held_out")


def following(options: argparse.Namespace, name: str) -> Following:
    """Who a proposer of this benchmark is."""
    if name in ("learnt", "filtered"):
        label = weights_label(options.checkpoint, options.passes)
        label += f" temperature={options.temperature} guidance={options.guidance} samples={options.samples}"
        return Following(label, tries=TRIES if name == "filtered" else 1, imagine=name == "filtered")
    recordings = str(options.recordings or "") if name in ("retrieved", "random") else ""
    return Following(name, recordings)


def loop_settings(options: argparse.Namespace, name: str, split: str) -> LoopSettings:
    """How a proposer plays; "random" are random actions here."""
    agent = {"none": "reward", "random": "random"}.get(name, "follow")
    planner = CEMConfig(
        candidates=options.candidates, iterations=options.iterations, elites=6, horizon=8, execute=options.execute
    )
    judge = options.checkpoint or options.model
    label = "" if agent == "random" else weights_label(judge if agent == "reward" else options.model, 1)
    followed = following(options, name) if agent == "follow" else None
    return LoopSettings(agent, followed, split, planner, model=label)


def image_settings(options: argparse.Namespace, name: str, split: str) -> ImageSettings:
    """How a proposer's subgoals are judged; "random" are the ends of any recorded episodes here."""
    label = weights_label(options.model, 1) if name == "filtered" else ""
    return ImageSettings(following(options, name), split, model=label)


def run(options: argparse.Namespace, part: str, name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one proposer, played or read from its journal."""
    make = loop_settings if part == "loop" else image_settings
    settings = make(options, name, split)
    journal = options.folder / f"{part}-{split}-{name}.jsonl" if options.folder else None
    if options.report:
        there = journal is not None and journal.is_file()
        return list(open_journal(journal, asdict(settings)).values()) if there else []
    count = options.episodes if part == "loop" else options.images
    bench = make_bench(options)
    seeds, said = range(options.seed, options.seed + count), evaluation.own_draw
    if split != "own":
        starts = sampled_starts(bench.env, count, split == "held_out", options.seed)
        seeds, said = list(starts), starts.__getitem__
    if part == "loop":
        return evaluation.play_loop(bench, settings, seeds, said, journal)
    return evaluation.judge_images(bench, settings, seeds, said, journal, options.reach)


def account(part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is reported of one proposer: rates, and what they cost."""
    if part == "loop":
        plans = [second for row in rows for second in row["plan_seconds"]]
        stops = [row for row in rows if row.get("stopped_at") is not None]
        return {
            **rate(row["success"] for row in rows),
            "by_kind": {
                kind: rate(r["success"] for r in rows if r["kind"] == kind)
                for kind in sorted({r["kind"] for r in rows})
            },
            "stopped_unfinished": sum(not row["success"] for row in stops),
            "steps_mean": sum(row["steps"] for row in rows) / max(1, len(rows)),
            "plan_seconds_mean": sum(plans) / len(plans) if plans else None,
        }
    whole = [{"all": row["fulfilled"] and row["identity_kept"] and row.get("reachable", True)} for row in rows]
    judged = {name: [row for row in rows if name in row] for name in evaluation.CRITERIA}
    return {name: rate(row[name] for row in those) for name, those in judged.items() if those} | {
        "all": rate(row["all"] for row in whole),
        "proposing_seconds_mean": sum(row["seconds"] for row in rows) / max(1, len(rows)),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All proposers asked for, on all splits: in closed loop, and their images by themselves."""
    found: dict[str, Any] = {}
    for part, split in ((part, split) for part in options.parts for split in options.splits):
        rows: dict[str, list[dict[str, Any]]] = {}
        place = found.setdefault(part, {}).setdefault(split, {})
        for name in options.proposers:
            if part == "images" and (name == "none" or (name == "random" and not options.recordings)):
                continue
            began = time.perf_counter()
            rows[name] = run(options, part, name, split)
            if not rows[name]:
                continue
            place[name] = account(part, rows[name])
            shown = place[name] if part == "loop" else place[name]["all"]
            low, high = shown["wilson_95"]
            print(
                f"{part}, {split}, {name}: {shown['rate']:.0%} of {shown['n']} ({low:.0%} to {high:.0%}), "
                f"{(time.perf_counter() - began) / shown['n']:.1f} s each",
                file=sys.stderr,
                flush=True,
            )
        judged = "success" if part == "loop" else "fulfilled"
        first = next((name for name in options.proposers if rows.get(name)), None)
        place["differences"] = {
            f"{first} - {name}": difference(rows[first], theirs, judged)
            for name, theirs in rows.items()
            if name != first and theirs
        }
        if part == "loop":
            place["ratios"] = {
                f"{first} / {name}": ratio(rows[first], theirs)
                for name, theirs in rows.items()
                if name != first and theirs
            }
        place["rows"] = rows
    return found


def load_learnt(options: argparse.Namespace):
    """The learnt proposer."""
    from emu_embodied.loading import load_proposer

    how = {"temperature": options.temperature, "caption_temperature": options.temperature, "guidance": options.guidance}
    return load_proposer(options.checkpoint, passes=options.passes, samples=options.samples, **how)


def make_bench(options: argparse.Namespace) -> Bench:
    """What proposers are played with."""
    make_model = functools.partial(load, options.model, device="cpu")
    if not options.checkpoint:
        return Bench(make_model)
    reward_model = functools.partial(load, options.checkpoint, device="cpu")
    return Bench(make_model, functools.partial(load_learnt, options), reward_model)


def main() -> None:
    """Measures, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subgoals", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", help="of the learnt proposer, a name or a folder")
    parser.add_argument("--passes", type=int, default=1, help="the learnt proposer's, a frame")
    parser.add_argument("--temperature", type=float, default=0.0, help="of its frames and captions")
    parser.add_argument("--guidance", type=float, default=1.0, help="of its frames")
    parser.add_argument("--samples", type=int, default=1, help="chains it draws side by side, to propose the likeliest")
    parser.add_argument("--model", default="nano-tabletop", help="the world model to plan in")
    parser.add_argument("--recordings", type=Path, help="frame cache that the recorded controls take frames from")
    parser.add_argument("--proposers", nargs="+", choices=PROPOSERS, default=list(PROPOSERS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["seen", "held_out"])
    parser.add_argument("--parts", nargs="+", choices=("images", "loop"), default=["images", "loop"])
    parser.add_argument("--episodes", type=int, default=100, help="of each split, in closed loop")
    parser.add_argument("--images", type=int, default=250, help="of each split")
    parser.add_argument(
        "--reach", type=int, default=100, help="images of which it is looked whether they can be reached"
    )
    parser.add_argument("--candidates", type=int, default=evaluation.BUDGET.candidates)
    parser.add_argument("--iterations", type=int, default=evaluation.BUDGET.iterations)
    parser.add_argument("--execute", type=int, default=evaluation.BUDGET.execute)
    parser.add_argument("--seed", type=int, default=evaluation.FIRST)
    parser.add_argument("--folder", type=Path, help="keep each episode here as it finishes, and go on from there")
    parser.add_argument("--report", action="store_true", help="play nothing, report what the folder holds")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    if not options.checkpoint:
        options.proposers = [name for name in options.proposers if name not in ("learnt", "filtered")]
    if not options.recordings:
        options.proposers = [name for name in options.proposers if name != "retrieved"]
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        found = measure(options)
    except EmuEmbodiedError as error:
        raise SystemExit(f"subgoals: {error}") from None
    result = {
        "seeds_from": options.seed,
        "planner": asdict(replace(evaluation.BUDGET, candidates=options.candidates, iterations=options.iterations)),
        "execute": options.execute,
        "slack_cm": evaluation.SLACK_CM,
        "others_within_cm": evaluation.STRAY_CM,
        "reached_within_cm": evaluation.REACH_CM,
        **found,
    }
    publish(result, options.out, ("mujoco", "gymnasium"))


if __name__ == "__main__":
    main()
