"""Do dreams rank policies as reality does? Scripted experts that stray more and more, in both worlds from the same starts.

    python -m benchmarks.ranking [--env tabletop|pusht] [--checkpoint NAME] [--episodes 100] [--folder FOLDER] [--out FILE]

Each policy plays the same seeds in the simulator, where it goes by true places and the simulator's predicate decides, and in
dreams that start at the same frames, where it goes by the places that the model believes and the model's belief decides. A
policy is the scripted expert with a share of its steps replaced by uniform actions. Pearson's and Spearman's correlations and
the mean maximum rank violation (SIMPLER's) are of the success rates; intervals are bootstraps over the starts, drawn alike
for all policies and both worlds. Both at once: `emu-embodied evaluate-policy policy=expert stray=0.5 world=both`. With
`--folder`, an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import machine, versions
from emu_embodied.checkpoint import fingerprint
from emu_embodied.commands._config import compose_config
from emu_embodied.loading import checkpoint_path, load, weights_label
from emu_embodied.metrics import correlation, rank_correlation, rank_violation
from emu_embodied.rollouts.agents.scripted import ExpertAgent
from emu_embodied.rollouts.evaluation.policy_ranking import PolicySettings, evaluate_policy
from emu_embodied.rollouts.vector_envs import DreamtWorlds, RealWorlds
from emu_embodied.storage.atomic import write_json

STRAYS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)
SEED, ROUNDS = 14_000_000, 1000
FIGURES = {"pearson": correlation, "spearman": rank_correlation, "mmrv": rank_violation}


def play(world, label: str, settings: dict, seeds: range, folder: Path | None) -> np.ndarray:
    """Successes (P, N) of all policies in one world."""
    rows = []
    for stray in STRAYS:
        job = PolicySettings(f"expert stray={stray:g}", label, **settings)
        journal = folder / f"{label}-{stray:g}.jsonl" if folder else None
        played = evaluate_policy(job, seeds, world, ExpertAgent(stray), journal)
        rows.append([row["success"] for row in played])
        print(f"ranking: {label}, stray {stray:g}: {np.mean(rows[-1]):.0%} of {len(seeds)}", flush=True)
    return np.array(rows, np.float64)


def compare(real: np.ndarray, dreamt: np.ndarray) -> dict[str, dict]:
    """The figures with their bootstrap intervals over starts (N), of successes (P, N)."""
    found = {name: figure(real.mean(1), dreamt.mean(1)) for name, figure in FIGURES.items()}
    rng, draws = np.random.default_rng(0), {name: [] for name in FIGURES}
    for _ in range(ROUNDS):
        some = rng.integers(0, real.shape[1], real.shape[1])
        for name, figure in FIGURES.items():
            draws[name].append(figure(real[:, some].mean(1), dreamt[:, some].mean(1)))
    return {
        name: {"value": value, "bootstrap_95": np.nanpercentile(draws[name], [2.5, 97.5]).tolist()}
        for name, value in found.items()
    }


def main() -> None:
    """Plays, compares, and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", choices=("tabletop", "pusht"), default="tabletop")
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ranking.json"))
    options = parser.parse_args()
    name = options.checkpoint or f"nano-{options.env}"
    env, model = compose_config("plan", [f"env={options.env}"]).env, load(name)
    seeds = range(SEED, SEED + options.episodes)
    settings = {"env_id": env.id, "batch": options.batch}
    worlds = {"real": RealWorlds(env.id, {}, model.objects), "imagined": DreamtWorlds(model, env.id, {})}
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    played = {}
    for label, world in worlds.items():
        model_label = weights_label(name, 1, "eager") if label == "imagined" else ""
        played[label] = play(world, label, settings | {"model": model_label}, seeds, options.folder)
        world.close()
    result = {
        "checkpoint": {"name": name, "sha256": fingerprint(checkpoint_path(name))},
        "policies": [
            {"stray": stray, "real": float(a.mean()), "imagined": float(b.mean())}
            for stray, a, b in zip(STRAYS, played["real"], played["imagined"], strict=True)
        ],
        "n": options.episodes,
        **compare(played["real"], played["imagined"]),
        "same_verdict": float((played["real"] == played["imagined"]).mean()),
        "seeds": [SEED, SEED + options.episodes],
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, result)
    print(f"ranking: { ({name: result[name] for name in FIGURES}) }; {options.out}")


if __name__ == "__main__":
    main()
