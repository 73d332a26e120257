"""What must not change: the same seed elsewhere, a dream in another batch, memory over many steps, a clock that jumps."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tiny import tiny_world_model

from .battery import Job, NotRun, Trial, battery
from .kills import BUDGET, tiny_checkpoint
from .processes import ROOT, call_main, in_child

STEPS = 6  # of each episode that is compared
LEAK_STEPS, LEAK_BYTES = 200, 32 << 20  # steps a trial of memory, and what they may add
# Prints, for each seed, a digest of the frames of a real episode and of a dream with passes, and of the scripted actions.
PLAY = """
import json, sys
from benchmarks.torture.steadiness import play
print(json.dumps([play(int(seed)) for seed in sys.argv[1:]]))
"""


@battery(
    "same_seed",
    fault="same seed, two processes",
    expected="same frames and actions, of the simulator and of the dream (warm ones too)",
    bar="50/50",
    n=50,
)
def same_seed(job: Job) -> Iterator[Trial]:
    """Two processes with different hash seeds play the same seeds."""
    seeds = [str(job.chance.randrange(2**31)) for _ in range(job.n)]
    paths = f"{ROOT}:{ROOT / 'tests'}"
    command = [sys.executable, "-c", PLAY, *seeds]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment(paths, str(salt)))
        for salt in (1, 2)
    ]
    answers = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        raise NotRun(f"the players ended with {[run.returncode for run in runs]}")
    for seed, one, other in zip(seeds, *map(json.loads, answers), strict=True):
        found = ", ".join(name for name in one if one[name] != other[name])
        yield Trial(f"seed {seed}", not found, found=f"other {found}" if found else "")


def _environment(paths: str, salt: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": salt}


def play(seed: int) -> dict[str, str]:
    """Digests of an episode: scripted in the simulator, random in a warm dream of two passes."""
    import gymnasium

    import emu_embodied.envs  # noqa: F401
    from emu_embodied.rollouts.collection.episodes import collect_episode

    real = gymnasium.make("emu_embodied/TabletopPush-v0")
    episode = collect_episode(real, seed, STEPS)
    model = tiny_world_model(passes=2, temperature=0.7)
    dream = gymnasium.make("emu_embodied/Imagined-v0", world_model=model, real_env=real)
    frames, rng = [dream.reset(seed=seed)[0]["pixels"]], np.random.default_rng(seed)
    for _ in range(STEPS):
        frames.append(dream.step(rng.uniform(-1, 1, 2).astype(np.float32))[0]["pixels"])
    real.close()
    return {"frames": _digest(episode.pixels), "actions": _digest(episode.actions), "dreamt frames": _digest(np.stack(frames))}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@battery(
    "batches",
    fault="greedy dreams in batches of other sizes",
    expected="the same tokens as alone",
    bar="100%",
    n=50,
)
def batches(job: Job) -> Iterator[Trial]:
    """Dreams a batch of a random size together, and each of it alone."""
    seeds = [job.chance.randrange(2**31) for _ in range(job.n)]
    ending = in_child(lambda: [_differs_alone(seed) for seed in seeds], 60 + 10 * job.n)
    if ending.kind != "done":
        raise NotRun(str(ending))
    for seed, found in zip(seeds, ending.value, strict=True):
        yield Trial(f"batch of seed {seed}", not found, found=found)


def _differs_alone(seed: int) -> str:
    from emu_embodied.types import Observation

    rng, model = np.random.default_rng(seed), tiny_world_model(seed % 7)
    size, texts = int(rng.integers(2, 18)), ("push the red cube to the left", "push the blue cube to the top")
    seen = [
        Observation(rng.integers(0, 256, (64, 64, 3), np.uint8), np.zeros(2, np.float32), texts[i % 2]) for i in range(size)
    ]
    actions = rng.uniform(-1, 1, (size, 1, 4, 2)).astype(np.float32)
    together = model.rollout(model.encode(seen), actions).codes_BSTN
    for i in range(size):
        alone = model.rollout(model.encode([seen[i]]), actions[i : i + 1]).codes_BSTN
        if not (alone[0] == together[i]).all():
            return f"dream {i} of {size}: {int((alone[0] != together[i]).sum())} tokens differ"
    return ""


@battery(
    "memory",
    fault="thousands of steps of a dream",
    expected=f"memory does not grow: at most {LEAK_BYTES >> 20} MiB over {LEAK_STEPS} steps and resets after warming up",
    bar="no leak over 5,000 steps",
    n=25,
)
def memory(job: Job) -> Iterator[Trial]:
    """Every trial makes 200 steps more of one dream, with resets among them."""
    ending = in_child(lambda: _resident_over(job.n), 120 + 60 * job.n)
    if ending.kind != "done":
        raise NotRun(str(ending))
    for index, (before, after) in enumerate(zip(ending.value, ending.value[1:], strict=False)):
        found = "" if after - before <= LEAK_BYTES else f"{(after - before) >> 20} MiB more"
        yield Trial(f"steps {LEAK_STEPS * index} to {LEAK_STEPS * (index + 1)}", not found, found=found)


def _resident_over(rounds: int) -> list[int]:
    import gymnasium

    import emu_embodied.envs  # noqa: F401

    real = gymnasium.make("emu_embodied/TabletopPush-v0")
    model = tiny_world_model(passes=2, temperature=0.7)
    dream = gymnasium.make("emu_embodied/Imagined-v0", world_model=model, real_env=real, max_episode_steps=40)
    action, sizes, page = np.array([0.5, -0.5], np.float32), [], resource.getpagesize()
    for turn in range(rounds + 1):
        for step in range(40 if turn == 0 else LEAK_STEPS):
            if step % 40 == 0:
                dream.reset(seed=step)
            dream.step(action)
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
    return sizes


@battery(
    "simulator",
    fault="simulator goes NaN or silently resets",
    expected="typed error",
    bar="100%",
    n=30,
)
def simulator(job: Job) -> Iterator[Trial]:
    """Puts NaN, inf or a huge number into a random position, velocity or force of a MuJoCo world, and steps it."""
    worlds = ("TabletopPush-v0", "Reacher-v0", "Pusher-v0")
    kinds = [
        (
            job.chance.choice(worlds),
            job.chance.choice(("qpos", "qvel", "qacc_warmstart", "xfrc_applied")),
            job.chance.choice(("nan", "inf", "-inf", "1e30")),
            job.chance.randrange(1 << 20),
        )
        for _ in range(job.n)
    ]
    for world, where, value, index in kinds:
        what = f"{world}: {where}[{index}] = {value}"
        ending = in_child(lambda job=(world, where, value, index): _poison(*job), 60)
        yield Trial(what, ending.kind in ("typed", "done"), found="" if ending.kind in ("typed", "done") else str(ending))


def _poison(world: str, where: str, value: str, index: int) -> str:
    import gymnasium

    import emu_embodied.envs  # noqa: F401

    env = gymnasium.make(f"emu_embodied/{world}", max_episode_steps=-1)
    env.reset(seed=1)
    inner = env.unwrapped
    data = getattr(inner, "data", None)
    if data is None:
        data = inner.inner.unwrapped.data
    array = getattr(data, where)
    array.flat[index % array.size] = float(value)
    for _ in range(3):
        observation, reward, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
        numbers = [reward, *(x for x in observation.values() if np.issubdtype(x.dtype, np.floating))]
        if not all(np.isfinite(x).all() for x in map(np.asarray, numbers)):
            raise AssertionError("numbers that are not finite came out in silence")
        if getattr(data, "time", 1.0) == 0.0:
            raise AssertionError("the simulator reset itself in silence")
    return "unharmed"


@battery(
    "clock",
    fault="the wall clock jumps, back and forth by up to a year",
    expected="plan, train and report end as always",
    bar="100%",
    n=10,
)
def clock(job: Job) -> Iterator[Trial]:
    """Commands under a `time.time` that jumps at every look."""
    tiny = tiny_checkpoint(job.folder / "tiny")
    from tiny_training import frames

    from emu_embodied.data.frame_cache import save_frame_cache

    save_frame_cache(job.folder / "frames", frames())
    for index in range(job.n):
        out, seed = job.folder / str(index), job.chance.randrange(1000)
        words = {
            "plan": ["plan", f"checkpoint={tiny}", "episodes=2", "steps=2", f"out={out}", *BUDGET],
            "train": ["train", "preset=tiny", f"frames={job.folder / 'frames'}", "threads=1", f"out={out}"],
        }
        verb = ("plan", "train")[index % 2]
        ending = in_child(lambda verb=verb, seed=seed, words=words: _under_jumps(words[verb], seed), 240)
        held = ending.kind == "done" and ending.value["code"] == 0
        yield Trial(f"{verb} under jumps of seed {seed}", held, found="" if held else str(ending))


def _under_jumps(words: list[str], seed: int) -> dict:
    import random
    import time

    chance, true = random.Random(seed), time.time
    time.time = lambda: true() + chance.uniform(-3e7, 3e7)
    return call_main(words)
