"""How fast are the worlds? Dreams one by one and many at once, and scripted episodes recorded in MuJoCo.

    python -m benchmarks.worlds [--checkpoint nano-tabletop] [--envs 64] [--episodes 100] [--quick] [--out FILE]

A dream's speed is that of `env.step` alone, actions drawn and nothing rendered beside the observation; single and vector
envs are timed in turn, so that both see the same machine. "beliefs" are dreams that observe no pixels. Recording is `emu-
embodied collect`: simulating, rendering and writing PNGs, by two processes, from its start to the finished dataset.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch

import emu_embodied.envs  # noqa: F401  registers them
from benchmarks.timing import machine, versions
from emu_embodied.checkpoint import fingerprint
from emu_embodied.loading import checkpoint_path, load
from emu_embodied.metrics import bootstrap_interval
from emu_embodied.rollouts.collection.collect import collect
from emu_embodied.storage.atomic import write_json
from emu_embodied.types import AGENT_POS, BELIEFS, INSTRUCTION

SEED = 13_000_000
BELIEVED = (AGENT_POS, BELIEFS, INSTRUCTION)


def frames_per_second(env, batch: int, steps: int) -> float:
    """Of `steps` steps in a row, after one that does not count; the dreams do not end meanwhile."""
    env.reset(seed=SEED)
    rng, shape = np.random.default_rng(0), env.action_space.shape
    actions = rng.uniform(-1, 1, (steps + 1, *shape)).astype(np.float32)
    env.step(actions[0])
    began = time.perf_counter()
    for action in actions[1:]:
        env.step(action)
    return batch * steps / (time.perf_counter() - began)


def time_dreams(model, envs: int, rounds: int) -> dict[str, dict]:
    """Frames a second of single and vector envs."""
    real = gymnasium.make(model.world.env_id)
    options = {"world_model": model, "real_env": real, "terminate_on_success": False, "max_episode_steps": 1_000}
    made = {
        "single": (gymnasium.make("emu_embodied/Imagined-v0", **options), 1, 30),
        "vector": (gymnasium.make_vec("emu_embodied/Imagined-v0", envs, **options), envs, 4),
        "vector, beliefs": (gymnasium.make_vec("emu_embodied/Imagined-v0", envs, observe=BELIEVED, **options), envs, 4),
    }
    speeds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, job in made.items():
            speeds[name].append(frames_per_second(*job))
    real.close()
    return {name: _summary(values) for name, values in speeds.items()}


def time_collecting(episodes: int, rounds: int) -> dict:
    """Steps a second of recording the table-top at 64 px."""
    speeds = []
    for i in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            options = {"image_size": 64}
            collect(
                "emu_embodied/TabletopPush-v0",
                options,
                episodes,
                40,
                Path(folder) / "data",
                SEED + i * episodes,
                2,
                False,
            )
            speeds.append(episodes * 40 / (time.perf_counter() - began))
    return _summary(speeds) | {"episodes": episodes}


def _summary(values: list[float]) -> dict:
    return {"per_second": statistics.median(values), "bootstrap_95": list(bootstrap_interval(values)), "n": len(values)}


def main() -> None:
    """Measures, and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano-tabletop")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="one round of everything")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/worlds-cpu.json"))
    options = parser.parse_args()
    model, rounds = load(options.checkpoint), 1 if options.quick else 7
    dreams = time_dreams(model, options.envs, rounds)
    result = {
        "checkpoint": {"name": options.checkpoint, "sha256": fingerprint(checkpoint_path(options.checkpoint))},
        "envs": options.envs,
        "dreams": dreams,
        "vector_over_single": dreams["vector"]["per_second"] / dreams["single"]["per_second"],
        "collect": time_collecting(options.episodes, 1 if options.quick else 3),
        "seed": SEED,
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
    }
    write_json(options.out, result)
    for name, row in (*dreams.items(), ("collect", result["collect"])):
        print(f"{name}: {row['per_second']:.0f} a second, {row['bootstrap_95'][0]:.0f} to {row['bootstrap_95'][1]:.0f}")


if __name__ == "__main__":
    main()
