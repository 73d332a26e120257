"""Trains a policy that is given a goal frame, on recorded frames and actions alone. Knows no simulator and no world model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.baselines.goal_cloning import ClonedPolicy, CloningConfig, save_policy
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import DatasetError
from emu_embodied.training.checks import check_cache
from emu_embodied.training.folder import TrainingRun, facts_of, train_once
from emu_embodied.training.loop import LoopConfig, train_stage
from emu_embodied.units import ActionScale
from emu_embodied.validation import whole_number

JUDGED = 1000  # held-out frames that an error is measured on


class Pairs:
    """A cache's frames with goals in hindsight: what the same episode shows some steps later.

    Attributes:
        pixels: (F, H, W, 3) uint8; actions (F, A) float32.
        frames: those with an action and a frame after it.
        last: (F,) the last frame of each frame's episode.
    """

    def __init__(self, cache: FrameCache) -> None:
        self.pixels, self.actions = torch.from_numpy(cache.pixels), torch.from_numpy(cache.actions)
        self.last = np.repeat(cache.episode_starts[1:] - 1, np.diff(cache.episode_starts))
        self.frames = np.flatnonzero(np.arange(len(cache)) < self.last)

    def take(self, frames: np.ndarray, ahead: np.ndarray | int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames, goals `ahead` steps on, or at their episode's end if that is nearer, and the actions taken."""
        goals = np.minimum(frames + ahead, self.last[frames])
        return self.pixels[frames], self.pixels[goals], self.actions[frames]


def train_cloning(
    cache: FrameCache,
    loop: LoopConfig,
    run: TrainingRun,
    *,
    ahead: int = 6,
    batch: int = 64,
    held_out: int = 100,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
) -> Path:
    """Trains a policy from where it stopped, and writes `run.folder / policy`.

    Args:
        cache: the dataset; its last `held_out` episodes are kept for the policy's errors.
        loop: how it is optimised, on the actions' mean absolute error.
        run: where; on the CPU.
        ahead: goals are 1 up to so many steps ahead, each as often.
        batch: pairs a step.
        held_out, seed: as in `pipeline.train_checkpoint`.
        sizes: of `CloningConfig` other than its own.

    Raises:
        ConfigError: `ahead` below 1, or another training is at work in the folder.
        DatasetError: actions of a robot with units of its own, too few episodes, or none with two frames.
        CheckpointError: the run folder holds a damaged state, or another run.
    """
    whole_number("ahead", ahead, 1)
    if not all(ActionScale(*scale).is_identity for scale in cache.action_scale):
        rule = "a cloned policy acts in the table-top or PushT, and says values in [-1, 1]: take recordings of `collect`"
        raise DatasetError("actions", "in a robot's own units", rule)
    check_cache(cache, held_out, cache.pixels.shape[1], "cloning.held_out")
    trained, rest = cache.split(held_out)
    known, judged = Pairs(trained), None if rest is None else Pairs(rest)
    if not len(known.frames) or judged and not len(judged.frames):
        raise DatasetError("episodes", cache.episodes, "they have one frame each: record longer ones")
    config = CloningConfig(cache.pixels.shape[1], cache.actions.shape[1], **sizes or {})

    def loss(module: ClonedPolicy, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        frames, goals, actions = known.take(rng.choice(known.frames, batch), rng.integers(1, ahead + 1, batch))
        return F.l1_loss(module(frames, goals), actions), {}

    def evaluate(module: ClonedPolicy) -> dict[str, float]:
        return errors(module, judged, ahead) if judged else {}

    settings = {"held_out": held_out, "ahead": ahead, "batch": batch, "loop": asdict(loop), "seed": seed}

    def work() -> None:
        torch.manual_seed(seed)
        judge = evaluate if judged else None
        policy = train_stage("cloning", ClonedPolicy(config), loss, loop, run.folder, evaluate=judge, report=run.report)
        facts = {"episodes": cache.episodes} | settings | {"errors": evaluate(policy)}
        save_policy(run.folder / "policy", policy, facts)

    facts = facts_of("cloning", cache, settings | {"sizes": asdict(config)})
    return train_once(run, "policy", facts, work)


@torch.inference_mode()
def errors(policy: ClonedPolicy, pairs: Pairs, ahead: int) -> dict[str, float]:
    """Mean absolute error of an action by how many steps ahead the goal is, and of no action at all ("zero")."""
    some = pairs.frames[np.linspace(0, len(pairs.frames) - 1, min(JUDGED, len(pairs.frames))).astype(int)]
    found = {"zero": float(pairs.actions[some].abs().mean())}
    for steps in range(1, ahead + 1):
        frames, goals, actions = pairs.take(some, steps)
        found[f"{steps}_ahead"] = float(F.l1_loss(policy(frames, goals), actions))
    return found
