"""How right dreams of unlabelled frames are: PSNR against the true frames, beside that of repeating the last one."""

from __future__ import annotations

import numpy as np
import torch

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.metrics import bootstrap_interval, decibel, moving_psnr
from emu_embodied.metrics import psnr as frame_psnr
from emu_embodied.types import Observation

from .prediction import OpenLoop, Truth, tokenizer_codes
from .tables import Figure

FRAMES, WINDOWS, STEPS = 512, 32, 8
START = 4  # frame of each episode from which the table's dreams start


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


def frame_table(model, truth: Truth, steps: int) -> list[Figure]:
    """The figures of held-out episodes without labelled objects: tokenizer, one step, many steps, and actions followed.

    Args:
        model: a `TokenWorldModel`.
        truth: held-out episodes of more than `START` + `steps` frames.
        steps: length of the open loop.
    """
    loops = [OpenLoop(model, truth, (START,), steps, shuffle) for shuffle in (False, True)]
    real, context = loops[0].real, truth.pixels[:, START]
    trip = model.decode(tokenizer_codes(model.tokenizer, real))
    decoded = model.decode(tokenizer_codes(model.tokenizer, truth.pixels[:, START]))
    figures = [_figure("tokenizer: PSNR, dB", frame_psnr(decoded, context), None, None)]
    for k in sorted({1, steps}):
        at = [frames[:, k - 1] for frames in (loops[0].frames, trip)]
        measures = {
            "PSNR, dB": lambda frames, k=k: frame_psnr(frames, real[:, k - 1]),
            "PSNR of what moves, dB": lambda frames, k=k: moving_psnr(frames, real[:, k - 1], context),
        }
        for name, measure in measures.items():
            value, round_trip, copied = (measure(frames) for frames in (*at, context))
            figures.append(_figure(f"{k} step{'s' if k > 1 else ''}: {name}", value, copied, round_trip))
    true, wrong = (np.square(loop.frames[:, 0].astype(np.float64) - real[:, 0]).mean((1, 2, 3)) for loop in loops)
    ratio = float(wrong.mean() / max(true.mean(), 1e-9))
    name = "1 step, shuffled over true actions: squared error of the frame"
    return [*figures, Figure(name, ratio, None, len(true), 1.0, None, "-", "-")]


def _figure(name: str, value: np.ndarray, copied: np.ndarray | None, round_trip: np.ndarray | None) -> Figure:
    """A row of means over windows; of windows in which nothing moves none counts."""
    means = [None if x is None or np.isnan(x).all() else float(np.nanmean(x)) for x in (value, copied, round_trip)]
    known = value[np.isfinite(value)]
    interval = bootstrap_interval(known, np.mean) if len(known) else None
    return Figure(name, means[0], interval, len(known), means[1], means[2], "-", "-")
