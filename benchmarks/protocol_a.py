"""Planning by protocol A: from a recorded scene to its trajectory's scene 25 control steps on, seen in one frame.

    python -m benchmarks.protocol_a --env tabletop|pusht [--budgets 1024 2048 4096 8192] [--goals expert|random|background]
        [--planner cem] [--cost positions] [--cloning FOLDER] [--episodes 50] [--seed 42] [--device cpu] [--folder FOLDER]
        [--out FILE]

What is an episode, and what is drawn with the seed 42, is in `rollouts/protocol.py`; what is success, in `rollouts/scenes.py`.
Beside the model stand random actions, the recorded actions once more ("expert"), the same planner in the true simulator
("oracle"), and with `--cloning` the policy that `emu-embodied train stage=cloning` made. With `--folder`, an interrupted run
goes on where it stopped, and runs of some `--agents` each add up: `--report` writes what the folder holds, however many
episodes of each. What a file that `--out` names already holds, of the same settings and weights, stays in it where it is not
played anew.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.timing import publish
from emu_embodied.baselines.goal_cloning import ClonedPolicy, load_policy
from emu_embodied.checkpoint import fingerprint
from emu_embodied.errors import ConfigError, EmuEmbodiedError
from emu_embodied.loading import checkpoint_path, load, weights_label
from emu_embodied.rollouts.evaluation.goal_reaching import (
    AGENTS,
    COSTS,
    GOALS,
    ProtocolSettings,
    budget_planner,
    play_protocol,
    summarise,
)
from emu_embodied.rollouts.evaluation.harness import ratio
from emu_embodied.rollouts.evaluation.journal import open_journal
from emu_embodied.rollouts.evaluation.scene_success import RULES

LOOSE = {"tabletop": ("rate_within_4_cm", 2.0), "pusht": ("rate_within_40_px_and_40_degrees", 2.0)}
SEED = 42  # the protocol's
PUSHED_CM = 1.25  # PushT's 20 px: nearer goals ask for no push


def play(options: argparse.Namespace, agent: str, budget: int | None, checkpoint: str) -> list[dict[str, Any]]:
    """The episodes of one agent at one budget of predicted frames a plan."""
    planner = budget_planner(options.planner, budget or 4096)
    label, load_agent = "", functools.partial(load, checkpoint, device=options.device)
    if agent == "model":
        label = weights_label(checkpoint, 1)
    elif agent == "cloning":
        policy = cloned(options)
        label, load_agent = fingerprint(options.cloning), lambda: policy
    settings = ProtocolSettings(options.env, agent, options.goals, options.cost, planner, options.seed, label)
    name = "-".join(
        [options.env, options.goals, agent, *([options.cost, options.planner, str(budget)] if budget else [])]
    )
    name += f"-seed-{options.seed}" if options.seed != SEED else ""
    journal = options.folder / f"{name}.jsonl" if options.folder else None

    if options.report:
        played = open_journal(journal, asdict(settings)) if journal and journal.is_file() else {}
        return list(played.values())

    def tell(row: dict[str, Any]) -> None:
        print(f"{name}: {row['seed']} {'yes' if row['success'] else 'no'}", file=sys.stderr, flush=True)

    return play_protocol(settings, options.episodes, load_agent, journal, tell)


def cloned(options: argparse.Namespace) -> ClonedPolicy:
    """The policy of `--cloning`.

    Raises:
        ConfigError: none is named.
        CheckpointError: it is missing, damaged, or of another format.
    """
    if options.cloning is None:
        raise ConfigError("cloning", None, "name the folder OUT/policy of  emu-embodied train stage=cloning")
    return load_policy(options.cloning)


def account(options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is reported of one agent's episodes."""
    name, tolerance = LOOSE[options.env]
    loose = summarise(rows, tolerance)
    found = {**summarise(rows), name: {key: loose[key] for key in ("rate", "wilson_95")}}
    if options.env == "pusht":
        pushed = summarise([row for row in rows if row["moved_cm"] >= PUSHED_CM])
        found["goals_that_ask_for_a_push"] = {key: pushed[key] for key in ("n", "rate", "wilson_95")}
    return found | {"episodes": rows}


def earlier_result(path: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """A file that is to be added to; empty where there is none.

    Raises:
        ConfigError: it is of other facts: another env, goals, or weights, or no result at all.
    """
    if path is None or not path.is_file():
        return {}
    try:
        earlier = json.loads(path.read_text())
        other = [name for name, value in facts.items() if name != "checkpoint" and earlier[name] != value]
        if earlier["checkpoint"]["sha256"] != facts["checkpoint"]["sha256"]:  # its name may be another
            other.append("checkpoint")
    except (ValueError, TypeError, KeyError):
        raise ConfigError("out", str(path), "it is no result of this benchmark: name another file") from None
    if other:
        raise ConfigError("out", str(path), f"it is of another {other[0]}: name another file")
    return earlier


def measure(options: argparse.Namespace, checkpoint: str, found: dict[str, Any]) -> dict[str, Any]:
    """All agents asked for, at their budgets, and the model's success over the oracle's, beside what was found before."""
    agents = options.agents or [agent for agent in AGENTS if agent != "cloning" or options.cloning]
    jobs = [(agent, None) for agent in ("random", "expert", "cloning")]
    jobs += [("oracle", budget) for budget in options.oracle] + [("model", budget) for budget in options.budgets]
    rows = {
        (agent, int(budget)): entry["episodes"]
        for agent in ("oracle", "model")
        for budget, entry in found.get(agent, {}).items()
    }
    for agent, budget in jobs:
        if agent not in agents:
            continue
        rows[agent, budget] = play(options, agent, budget, checkpoint)
        if not rows[agent, budget]:
            continue
        entry = account(options, rows[agent, budget])
        if agent == "model" and any(rows.get(("oracle", known)) for known in options.oracle):
            oracle = min(
                (known for known in options.oracle if rows["oracle", known]), key=lambda known: abs(known - budget)
            )
            entry["over_oracle"] = {"oracle_frames": oracle, **ratio(rows[agent, budget], rows["oracle", oracle])}
        place = found if budget is None else found.setdefault(agent, {})
        place[agent if budget is None else str(budget)] = entry
        low, high = entry["wilson_95"]
        frames = f", {budget} frames a plan" if budget else ""
        print(f"{agent}{frames}: {entry['rate']:.0%} of {entry['n']} ({low:.0%} to {high:.0%})", flush=True)
    for agent in ("oracle", "model"):
        if agent in found:
            found[agent] = dict(sorted(found[agent].items(), key=lambda item: int(item[0])))
    return found


def main() -> None:
    """Measures, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocol_a", description=__doc__.partition("\n")[0])
    parser.add_argument("--env", choices=list(RULES), required=True)
    parser.add_argument("--goals", choices=list(GOALS), default="expert", help="whose trajectories the goals are of")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="frames a plan")
    parser.add_argument("--oracle", type=int, nargs="+", default=[4096], help="the oracle's frames a plan")
    parser.add_argument("--planner", default="cem")
    parser.add_argument("--cost", choices=COSTS, default="positions")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, help="by default all that there are")
    parser.add_argument("--cloning", type=Path, help="folder of the cloned policy")
    parser.add_argument("--checkpoint", help="by default the env's nano")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of the draw of rows; another than the protocol's to tune on"
    )
    parser.add_argument(
        "--device", default="cpu", help="where the model imagines: cpu, or cuda for --budgets 45056 90112"
    )
    parser.add_argument("--folder", type=Path, help="keep each episode here as it finishes, and go on from there")
    parser.add_argument("--report", action="store_true", help="play nothing, report what the folder holds")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    checkpoint = options.checkpoint or f"nano-{options.env}"
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    rule = RULES[options.env]
    try:
        facts = {
            "env": rule.env_id,
            "goals": options.goals,
            "cost": options.cost,
            "planner": options.planner,
            "seed": options.seed,
            "success": rule.__doc__.partition("\n")[0],
            "tolerances": {name: getattr(rule, name) for name in ("reach", "least", "turn") if hasattr(rule, name)},
            "checkpoint": {"name": Path(checkpoint).name, "sha256": fingerprint(checkpoint_path(checkpoint))},
        }
        earlier = earlier_result(options.out, facts)
        found = measure(options, checkpoint, {agent: earlier[agent] for agent in AGENTS if agent in earlier})
        cloned_by = earlier.get("cloned") if options.cloning is None else {"sha256": fingerprint(options.cloning)}
    except EmuEmbodiedError as error:
        raise SystemExit(f"protocol_a: {error}") from None
    played = max((entry["episodes"] for entry in _entries(found)), key=len, default=[])
    result = {
        **facts,
        "rows": [[row["seed"], row["step"]] for row in played],
        **{agent: found[agent] for agent in AGENTS if agent in found},
        **({"cloned": cloned_by} if "cloning" in found else {}),
    }
    publish(result, options.out, ("mujoco", "gymnasium"), options.device)


def _entries(found: dict[str, Any]):
    """Each agent's account, whether it has budgets or not."""
    for entry in found.values():
        yield from [entry] if "episodes" in entry else entry.values()


if __name__ == "__main__":
    main()
