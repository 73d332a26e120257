"""How right a world model is: the tokenizer's round trip and open-loop rollouts against the simulator's truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import DatasetError, InputError
from emu_embodied.metrics import bootstrap_interval, colour_centroids
from emu_embodied.rollouts.pictures import strip
from emu_embodied.types import Observation

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
        for name in self.names:
            if f"{name}.x" not in columns:
                raise DatasetError(
                    "state names", columns, f'there is no "{name}.x": name objects that the dataset labels'
                )
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
    codes = tokenizer_codes(tokenizer, pixels)
    flat = codes.reshape(-1, codes.shape[-1])
    decoded = torch.cat([tokenizer.decode(part).cpu() for part in flat.split(256)]).numpy().reshape(pixels.shape)
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
        "frames": int(np.prod(pixels.shape[:2])),
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
        true: (W, steps, O, 2) px, the true positions.
        codes: (W, steps, N) dreamt.
        frames: (W, steps, H, W, 3) uint8, the same as pixels; real: those of truth.
    """

    def __init__(self, model, truth: Truth, starts=(4, 16, 28), steps: int = 8, shuffle: bool = False) -> None:
        where = [(e, t) for e in range(truth.episodes) for t in starts if t + steps < truth.length]
        if not where:
            remedy = f"give episodes of more than {min(starts) + steps} steps, or a shorter horizon"
            raise InputError("steps", truth.length - 1, remedy)
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
        self.codes = rollout.codes_BSTN[:, 0].cpu().numpy()
        self.frames = model.decode(rollout.codes_BSTN[:, 0])
        self.real = truth.pixels[e[:, None], ahead + 1]
        self.true = true = truth.positions[e[:, None], ahead + 1]
        start = truth.positions[e, t][:, None]
        self.present = truth.present[e, t]
        seen, self.found = truth.see(self.frames)
        self.errors = position_errors(seen, self.found, true)
        scale = np.array(model.world.position_scale)
        head = 32 + 32 * rollout.positions_BSTOD[:, 0].cpu().numpy() / scale
        self.head_errors = np.linalg.norm(head - true, axis=-1)
        self.moved = self.copy_errors = np.linalg.norm(true - start, axis=-1)


def quick_quality(model, truth: Truth) -> dict[str, float]:
    """The few figures shown while training: one step and eight steps, by eye and by the position head.

    Those of cubes that move are left out where none does.
    """
    loop = OpenLoop(model, truth, starts=(12,) if truth.length > 20 else (1,))
    cubes = loop.present[:, None] & (np.arange(len(truth.names)) > 0)
    one = cubes[:, 0] & (loop.moved[:, 0] >= 1)
    eight = cubes[:, 0] & (loop.moved[:, -1] >= 4)
    wrong = (loop.found[:, -1, 1:] != loop.present[:, 1:]).sum() / max(1, loop.present[:, 1:].sum())
    figures = {"robot_px_1": float(loop.errors[:, 0, 0].mean()), "missing_or_invented_8": float(wrong)}
    if one.any():
        figures["moved_ratio_1"] = float(loop.errors[:, 0][one].mean() / loop.copy_errors[:, 0][one].mean())
    if eight.any():
        figures["moved_median_px_8"] = float(np.median(loop.errors[:, -1][eight]))
        figures["head_median_px_8"] = float(np.median(loop.head_errors[:, -1][eight]))
        figures["copy_median_px_8"] = float(np.median(loop.copy_errors[:, -1][eight]))
    return figures


@dataclass(frozen=True)
class Figure:
    """One row of the quality table.

    Attributes:
        name: what is measured, with its unit.
        value: the figure; None where there was nothing to measure.
        interval: bootstrap or Wilson 95% interval; None where there is none.
        n: windows, objects or episodes it rests on.
        copy_last: the same figure for a model that repeats the last real frame; None where it makes no sense.
        round_trip: the same figure for the true frames after the tokenizer; None where it makes no sense.
        must, aim: the bars, as text.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    n: int
    copy_last: float | None
    round_trip: float | None
    must: str
    aim: str


def quality_table(model, truth: Truth, steps: int = 8) -> list[Figure]:
    """The figures of the held-out episodes: tokenizer, one step, eight steps open loop, and whether actions are followed.

    Args:
        model: a `TokenWorldModel`.
        truth: held-out episodes.
        steps: length of the open loop.
    """
    tokenizer = model.tokenizer
    real, shuffled = OpenLoop(model, truth, steps=steps), OpenLoop(model, truth, steps=steps, shuffle=True)
    trip = tokenizer_quality(tokenizer, truth, truth.episodes)
    seen, found = truth.see(model.decode(tokenizer_codes(tokenizer, real.real)))
    trip_errors = position_errors(seen, found, real.true)
    cubes = real.present & (np.arange(len(truth.names)) > 0)
    one, far = cubes & (real.moved[:, 0] >= 1), cubes & (real.moved[:, -1] >= 4)
    of_tokenizer = (
        ("robot position, p95 px", trip["robot_p95_px"], "<= 1.0", "0.5"),
        ("object position, p95 px", trip["object_p95_px"], "<= 1.0", "0.5"),
        ("codes that change in static patches, %", 100 * trip["static_flicker"], "<= 1", "0.2"),
    )
    rows = [
        Figure(f"tokenizer: {name}", value, None, trip["frames"], None, None, must, aim)
        for name, value, must, aim in of_tokenizer
    ]
    ratio = _paired_ratio(real.errors[:, 0][one], real.copy_errors[:, 0][one])
    floor = float(trip_errors[:, 0][one].mean() / real.copy_errors[:, 0][one].mean())
    rows.append(
        Figure(
            "1 step, cubes that move >= 1 px: error over copy-last's",
            *ratio,
            int(one.sum()),
            1.0,
            floor,
            "<= 0.35",
            "0.15",
        )
    )
    for name, errors in (("by eye", real.errors), ("by the position head", real.head_errors)):
        e = errors[:, -1][far]
        rows.append(
            Figure(
                f"{steps} steps, cubes that move >= 4 px: median error {name}, px",
                float(np.median(e)),
                bootstrap_interval(e),
                int(far.sum()),
                float(np.median(real.copy_errors[:, -1][far])),
                float(np.median(trip_errors[:, -1][far])),
                "<= 2.5",
                "1.0",
            )
        )
    there = real.present[:, 1:].sum(-1)
    wrong, trip_wrong = ((x[:, -1, 1:] != real.present[:, 1:]).sum(-1) for x in (real.found, found))
    share, interval = _paired_ratio(100.0 * wrong, there)
    lost = f"missing or invented cubes at step {steps}, % of cubes"
    trip_share = float(100 * trip_wrong.sum() / max(1, there.sum()))
    rows.append(Figure(lost, share, interval, int(there.sum()), 0.0, trip_share, "<= 2", "0.2"))
    robot = _paired_ratio(shuffled.errors[:, 0, 0], real.errors[:, 0, 0])
    moved = _paired_ratio(shuffled.errors[:, 0][one], real.errors[:, 0][one])
    rows.append(
        Figure("1 step, shuffled over true actions: robot error", *robot, len(real.errors), 1.0, None, ">= 6", "15")
    )
    rows.append(
        Figure("1 step, shuffled over true actions: moved-cube error", *moved, int(one.sum()), 1.0, None, ">= 2", "4")
    )
    return rows


def tokenizer_codes(tokenizer, frames: np.ndarray) -> torch.Tensor:
    """Codes (..., N) of frames (..., H, W, 3) uint8."""
    flat = torch.from_numpy(np.ascontiguousarray(frames.reshape(-1, *frames.shape[-3:])))
    device = next(tokenizer.parameters()).device
    codes = torch.cat([tokenizer.encode(part.to(device)) for part in flat.split(256)])
    return codes.reshape(*frames.shape[:-3], -1)


def _paired_ratio(top: np.ndarray, bottom: np.ndarray) -> tuple[float | None, tuple[float, float] | None]:
    """Ratio of means of paired values, and its bootstrap interval."""
    if len(top) == 0:
        return None, None
    pairs = np.stack([top, bottom], -1)
    return float(top.mean() / bottom.mean()), bootstrap_interval(pairs, lambda p: p[:, 0].mean() / p[:, 1].mean())


def as_cells(figure: Figure) -> tuple[str, ...]:
    """A figure as the cells of a table's row."""

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.3g}"

    interval = "-" if figure.interval is None else "{:.3g} to {:.3g}".format(*figure.interval)
    middle = (number(figure.value), interval, str(figure.n), number(figure.copy_last), number(figure.round_trip))
    return (figure.name, *middle, figure.must, figure.aim)


def as_markdown(figures: list[Figure]) -> str:
    """The quality table as Markdown."""
    head = ("figure", "value", "95% interval", "n", "copy-last", "round trip", "must", "aim")
    lines = [head, ("---",) * len(head), *map(as_cells, figures)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def picture_worst(model, truth: Truth, count: int, folder: Path, steps: int = 8) -> int:
    """Strips real | imagined | difference of the windows whose objects are furthest off at the last step.

    Returns:
        The number of PNG files written to `folder` as worst-01.png, ...
    """
    if not count:
        return 0
    loop = OpenLoop(model, truth, steps=steps)
    worst = np.where(loop.present, loop.errors[:, -1], 0).max(-1).argsort()[::-1][:count]
    for rank, window in enumerate(worst, 1):
        error = loop.errors[window, -1][loop.present[window]].max()
        strip(
            loop.real[window],
            loop.frames[window],
            folder / f"worst-{rank:02d}.png",
            f"{error:.1f} px off at step {steps}",
        )
    return len(worst)
