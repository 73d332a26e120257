"""The trajectory stage: a world model learns how frames follow from actions. Knows no run folder's facts and no checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from emu_embodied.checkpoint import World
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.model.noise import make_noise
from emu_embodied.model.token_model import TokenModel
from emu_embodied.tokenizers.frames import FrameTokenizer
from emu_embodied.training.datasets import WindowSampler
from emu_embodied.training.folder import TrainingRun
from emu_embodied.training.loop import train_stage
from emu_embodied.training.objectives import TrajectoryConfig, TrajectoryObjective


@dataclass(frozen=True)
class TrajectoryJob:
    """What the trajectory stage works on.

    Attributes:
        tokenizer, text, world: what turns the cache into tokens, ours or a released model's, and what its frames show.
        cache: the dataset; its last `recipe.held_out` episodes are left for evaluation.
        recipe: a `Recipe` or `stages.emu35.FineTuning`: `held_out`, `seed`, `trajectory` and `trajectory_loop` count here.
        run: where it is at work.
    """

    tokenizer: Any
    text: Any
    world: World
    cache: FrameCache
    recipe: Any
    run: TrainingRun


def train_trajectory(
    model: TokenModel,
    job: TrajectoryJob,
    *,
    teacher: TokenModel | None = None,
    temperature: float = 0.0,
) -> TokenModel:
    """The trajectory stage: the averaged model, in eval mode.

    Args:
        model: is trained in place, where its parameters are to be.
        job: what it is trained on.
        teacher, temperature: of `TrajectoryObjective`.
    """
    tokenizer, text, recipe, loop = job.tokenizer, job.text, job.recipe, job.recipe.trajectory_loop
    cache, _ = job.cache.split(recipe.held_out)
    codes_FN = encode_frames(tokenizer, cache, job.run.report)
    objective = trajectory_objective(
        model,
        tokenizer,
        text,
        job.world,
        cache,
        codes_FN,
        recipe.trajectory,
        loop.steps,
        recipe.seed,
        teacher,
        temperature,
    )
    evaluate, report = job.run.judge(tokenizer, text), job.run.report
    return train_stage("trajectory", model, objective, loop, job.run.folder, evaluate=evaluate, report=report)


def trajectory_objective(
    model: TokenModel,
    tokenizer,
    text,
    world: World,
    cache: FrameCache,
    codes_FN: torch.Tensor,
    trajectory: TrajectoryConfig,
    steps: int,
    seed: int,
    teacher: TokenModel | None = None,
    temperature: float = 0.0,
) -> TrajectoryObjective:
    """What windows of a cache teach about the dynamics.

    Args:
        model, tokenizer, text, world: what is trained, what turns the cache into tokens, and what its frames show.
        cache: the training episodes.
        codes_FN: visual codes of every frame.
        trajectory: what the windows hold and what counts in them.
        steps: length of the stage.
        seed: of the windows.
        teacher, temperature: of `TrajectoryObjective`.
    """
    instructions = text.batch(cache.instructions, model.config.text_length, model.config.vocabulary.pad)
    objects, places = tuple(world.objects), tokenizer.places()
    windows = WindowSampler(cache, codes_FN, instructions, objects, seed, trajectory.contact_share)
    noise = make_noise(model.config.noise, places)
    return TrajectoryObjective(windows, trajectory, steps, places, noise, teacher, temperature)


def encode_frames(
    tokenizer: FrameTokenizer, cache: FrameCache, report: Callable[[str], None], batch: int = 512
) -> torch.Tensor:
    """Codes (F, N) of every frame, in int16 where they fit, else in int32."""
    report(f"encoding {len(cache)} frames")
    pixels, device = torch.from_numpy(cache.pixels), next(tokenizer.parameters()).device
    kind = torch.int16 if tokenizer.config.codebook_size < 1 << 15 else torch.int32
    parts = [tokenizer.encode(pixels[i : i + batch].to(device)).cpu().to(kind) for i in range(0, len(pixels), batch)]
    return torch.cat(parts)
