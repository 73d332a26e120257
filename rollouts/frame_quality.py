"""How right dreams of unlabelled frames are: PSNR against the true frames, beside that of repeating the last one."""

from __future__ import annotations

import numpy as np
import torch

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.metrics import decibel
from emu_embodied.types import Observation

FRAMES, WINDOWS, STEPS = 512, 32, 8


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures, at most 99."""
    return float(decibel(np.square(one.astype(np.float32) - other.astype(np.float32)).mean()))


def tokenizer_frames(tokenizer, cache: FrameCache) -> dict[str, float]:
    """The round trip of frames spread over the episodes."""
    some = np.linspace(0, len(cache) - 1, min(FRAMES, len(cache))).astype(int)
    codes = tokenizer.encode(torch.from_numpy(cache.pixels[some]).to(tokenizer.levels.device))
    decoded = torch.cat([tokenizer.decode(part).cpu() for part in codes.split(256)]).numpy()
    return {"psnr_db": psnr(decoded, cache.pixels[some]), "codes_used": float(len(codes.unique()))}


def dreamt_frames(model, cache: FrameCache) -> dict[str, float]:
    """One step and, where episodes are that long, eight, dreamt from the first frame of some episodes with their actions.

    Args:
        model: a `protocols.WorldModel`.
        cache: held-out episodes.
    """
    lengths, figures = np.diff(cache.episode_starts), {}
    for steps in (1, STEPS):
        chosen = np.flatnonzero(lengths > steps)[:WINDOWS]
        if not len(chosen):
            continue
        first = cache.episode_starts[chosen]
        starts = [
            Observation(cache.pixels[f], np.zeros(model.agent_dim, np.float32), cache.instructions[e])
            for e, f in zip(chosen, first, strict=True)
        ]
        actions = cache.actions[first[:, None] + np.arange(steps)]
        rollout = model.rollout(model.encode(starts), actions[:, None])
        dreamt, true = model.decode(rollout.codes_BSTN[:, 0, -1]), cache.pixels[first + steps]
        figures[f"psnr_db_{steps}"] = psnr(dreamt, true)
        figures[f"copy_psnr_db_{steps}"] = psnr(cache.pixels[first], true)
    return figures
