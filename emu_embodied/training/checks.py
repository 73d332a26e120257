"""What a dataset must be for a training to take it, checked before anything is trained. Knows no loop."""

from __future__ import annotations

import numpy as np
import torch

from emu_embodied.checkpoint import World
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import DatasetError, InputError
from emu_embodied.model.config import TokenModelConfig
from emu_embodied.training.datasets import WindowSampler
from emu_embodied.validation import whole_number


def check_cache(cache: FrameCache, held_out: int, image_size: int, key: str = "recipe.held_out") -> None:
    """Refuses a dataset that a training cannot take.

    Args:
        cache: the whole dataset.
        held_out: episodes at its end that training never sees.
        image_size: px of a frame's side that is expected.
        key: by which `held_out` is given.

    Raises:
        DatasetError: too few episodes, or frames of another size.
    """
    whole_number(key, held_out, 0)
    if cache.episodes <= held_out:
        fewer = f"{key}={cache.episodes // 10}"
        raise DatasetError(
            "episodes", cache.episodes, f"{held_out} are held out: record more, or hold out fewer ({fewer})"
        )
    if cache.pixels.shape[1:3] != (image_size, image_size):
        raise DatasetError("frame size", cache.pixels.shape[1:3], f"the tokenizer takes {image_size} px")


def check_trajectories(cache: FrameCache, held_out: int, text, model: TokenModelConfig, world: World) -> None:
    """Refuses, before anything is trained, what a trajectory stage or its evaluation could not take.

    Args:
        cache: the whole dataset.
        held_out: episodes at its end that training never sees.
        text: the text tokenizer.
        model: the trajectory model's sizes.
        world: what the frames show.

    Raises:
        DatasetError: actions of another number of values, a text of any episode that is too long, labels that are not there, or
            a dataset without an episode to train on.
        ConfigError: sizes that do not fit together.
    """
    if cache.actions.shape[1] != model.action_dim:
        raise DatasetError(
            "action",
            cache.names.get("action", cache.actions.shape[1]),
            f"the checkpoint's have {model.action_dim} values: choose as many, action_keys=[...]",
        )
    for instruction in sorted(set(cache.instructions)):
        try:
            text.batch([instruction], model.text_length, model.vocabulary.pad)
        except InputError as error:
            where = f"instruction of episode {cache.instructions.index(instruction)}"
            remedy = f"{error.remedy}, or give recipe.text_length=... of a new model"
            raise DatasetError(where, instruction, remedy) from None
    known, _ = cache.split(held_out)
    no_codes, no_text = torch.zeros(len(known), 0, dtype=torch.int16), torch.zeros(known.episodes, 0, dtype=torch.int64)
    WindowSampler(known, no_codes, no_text, tuple(world.objects), seed=0)


def check_scale(cache: FrameCache, world: World) -> None:
    """Refuses actions in other units than a checkpoint's, which would keep its own.

    Raises:
        DatasetError: the scales differ.
    """
    identity = [[[0.0] * cache.actions.shape[1], [1.0] * cache.actions.shape[1]]]
    theirs = np.asarray(world.action_scale or identity, np.float64)
    if theirs.shape[-1] != cache.actions.shape[1] or not all(
        np.isclose(theirs, own).all(-1).all(-1).any() for own in cache.action_scale
    ):
        remedy = (
            f"the checkpoint's are {theirs.tolist()}: give its own data, or train it on with stage=trajectory first"
        )
        raise DatasetError("action scale", cache.action_scale.tolist(), remedy)
