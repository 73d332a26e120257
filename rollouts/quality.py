"""How right a world model is: the tokenizer's round trip and open-loop rollouts against the simulator's truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.metrics import colour_centroids

MISSING_PX = 64.0  # what a missing object counts


class Truth:
    """True positions of a dataset's objects in px of a 64 px frame, and what the eye (a colour probe) makes of frames.

    Args:
        cache: held-out episodes, all of the same length.
        objects: name -> RGB; the robot first.
        position_scale: world units at the right and lower edge of the frame.
    """

    def __init__(self, cache: FrameCache, objects: Mapping[str, tuple[int, int, int]], position_scale) -> None:
        self.names, self.palette = tuple(objects), np.array([tuple(c) for c in objects.values()], np.float32)
        lengths = np.diff(cache.episode_starts)
        self.episodes, self.length = len(lengths), int(lengths.min())
        rows = cache.episode_starts[:-1, None] + np.arange(self.length)
        columns = cache.names["state"]
        xy = np.stack([cache.states[:, [columns.index(f"{n}.x"), columns.index(f"{n}.y")]] for n in self.names], 1)
        self.positions = (32 + 32 * xy / np.array(position_scale))[rows]  # (E, T, O, 2)
        self.present = np.stack([cache.states[:, columns.index(f"{n}.present")] for n in self.names], 1)[rows] > 0
        self.pixels, self.actions = cache.pixels[rows], cache.actions[rows]
        self.instructions = cache.instructions

    def see(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (..., O, 2) in px, `MISSING_PX` away where an object is not found, and whether it was found (..., O)."""
        positions, areas = colour_centroids(frames, self.palette)
        return positions, ~np.isnan(positions[..., 0]) & (areas > 4)


def position_errors(seen: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Distances (..., O) in px; a missing object counts `MISSING_PX`."""
    return np.where(found, np.linalg.norm(seen - true, axis=-1), MISSING_PX)


def tokenizer_quality(tokenizer, truth: Truth, episodes: int = 40) -> dict[str, float]:
    """The round trip: position error of each kind of object, missing ones, PSNR, and codes that flicker in static patches."""
    pixels = truth.pixels[:episodes]
    flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[2:]))
    device = tokenizer.levels.device
    codes = torch.cat([tokenizer.encode(part.to(device)) for part in flat.split(256)])
    decoded = torch.cat([tokenizer.decode(part).cpu() for part in codes.split(256)]).numpy().reshape(pixels.shape)
    seen, found = truth.see(decoded)
    errors, present = position_errors(seen, found, truth.positions[:episodes]), truth.present[:episodes]
    patch, grid = tokenizer.config.patch, tokenizer.config.grid
    change = np.abs(pixels[:, 1:].astype(np.int16) - pixels[:, :-1]).max(-1)
    change = change.reshape(*change.shape[:2], grid, patch, grid, patch).max((3, 5))
    codes = codes.cpu().numpy().reshape(*pixels.shape[:2], grid, grid)
    mse = ((decoded.astype(np.float32) - pixels) ** 2).mean()
    return {
        "robot_p95_px": float(np.percentile(errors[..., 0][present[..., 0]], 95)),
        "object_p95_px": float(np.percentile(errors[..., 1:][present[..., 1:]], 95)),
        "missing": float((~found)[present].mean()),
        "invented": float(found[~present].mean()),
        "static_flicker": float((codes[:, 1:] != codes[:, :-1])[change <= 8].mean()),
        "codes_used": float(len(np.unique(codes))),
        "psnr_db": float(10 * np.log10(255**2 / mse)),
    }


class OpenLoop:
    """Rollouts of a world model from held-out windows, read by eye: positions at each step, against truth and copy-last.

    Args:
        model: a `protocols.WorldModel`.
        truth: held-out episodes.
        starts: frames of each episode to start from (at least 1).
        steps: model steps dreamt.
        shuffle: give each window another window's actions (seeded), to see whether actions are followed.

    Attributes:
        errors, copy_errors, head_errors: (W, steps, O) px of a 64 px frame.
        found: (W, steps, O) bool; present: (W, O) bool.
        moved: (W, steps, O) px of true motion since the start.
        frames: (W, steps, H, W, 3) uint8 dreamt; real: the same of truth.
    """

    def __init__(self, model, truth: Truth, starts=(4, 16, 28), steps: int = 8, shuffle: bool = False) -> None:
        from emu_embodied.types import Observation

        where = [(e, t) for e in range(truth.episodes) for t in starts if t + steps < truth.length]
        e, t = np.array(where).T
        ahead = t[:, None] + np.arange(steps)
        actions = truth.actions[e[:, None], ahead]
        if shuffle:
            actions = actions[np.random.default_rng(0).permutation(len(actions))]

        def see(index):
            return [
                Observation(truth.pixels[i, j], np.zeros(2, np.float32), truth.instructions[i])
                for i, j in zip(e, index, strict=True)
            ]

        history = model.observe(model.encode(see(t - 1)), truth.actions[e, t - 1], see(t))
        rollout = model.rollout(history, actions[:, None])
        self.frames = model.decode(rollout.codes_BSTN[:, 0])
        self.real = truth.pixels[e[:, None], ahead + 1]
        true = truth.positions[e[:, None], ahead + 1]
        start = truth.positions[e, t][:, None]
        self.present = truth.present[e, t]
        seen, self.found = truth.see(self.frames)
        self.errors = position_errors(seen, self.found, true)
        scale = np.array(model.world.position_scale)
        head = 32 + 32 * rollout.positions_BSTOD[:, 0].cpu().numpy() / scale
        self.head_errors = np.linalg.norm(head - true, axis=-1)
        self.moved = self.copy_errors = np.linalg.norm(true - start, axis=-1)


def quick_quality(model, truth: Truth) -> dict[str, float]:
    """The few figures shown while training: one step and eight steps, by eye and by the position head."""
    loop = OpenLoop(model, truth, starts=(12,) if truth.length > 20 else (1,))
    cubes = loop.present[:, None] & (np.arange(len(truth.names)) > 0)
    one = cubes[:, 0] & (loop.moved[:, 0] >= 1)
    eight = cubes[:, 0] & (loop.moved[:, -1] >= 4)
    wrong = loop.found[:, -1, 1:] != loop.present[:, 1:]
    return {
        "robot_px_1": float(loop.errors[:, 0, 0].mean()),
        "moved_ratio_1": float(loop.errors[:, 0][one].mean() / loop.copy_errors[:, 0][one].mean()),
        "moved_median_px_8": float(np.median(loop.errors[:, -1][eight])),
        "head_median_px_8": float(np.median(loop.head_errors[:, -1][eight])),
        "copy_median_px_8": float(np.median(loop.copy_errors[:, -1][eight])),
        "missing_or_invented_8": float(wrong.mean()),
    }
