"""How right a world model is: the tokenizer's round trip (a frame encoded, then decoded) and rollouts against the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import DatasetError, InputError
from emu_embodied.metrics import bootstrap_interval, psnr
from emu_embodied.rollouts.figures import strip
from emu_embodied.rollouts.object_detection import detector_named
from emu_embodied.types import Observation

from .tables import Figure

MISSING_PX = 64.0  # what a missing object counts
Bars = tuple[str, str]  # must and aim, as text


class Truth:
    """True positions of a dataset's objects in px of a 64 px frame, and what the world's object detector finds in frames.

    Of a world without objects (O = 0) the frames alone are there.

    Args:
        cache: held-out episodes; of longer ones the beginning counts.
        world: a `checkpoint.World`: names, scale and object detector.
        least: frames; shorter episodes are left out.

    Raises:
        DatasetError: no episode is long enough, or an object has no labels.

    Attributes:
        names: of the O objects, the robot first.
        bodies: (O,) bool, what the robot can move: neither the robot nor a landmark.
        landmarks: (object, landmark) as indices, for each object with an angle.
    """

    def __init__(self, cache: FrameCache, world, least: int = 1) -> None:
        self.names, self.palette = (
            tuple(world.objects),
            np.array([tuple(c) for c in world.objects.values()], np.float32),
        )
        self.detector = detector_named(world.eye) if self.names else None
        self.bodies = np.array([i > 0 and name not in world.landmarks for i, name in enumerate(self.names)])
        self.landmarks = [(self.names.index(body), self.names.index(name)) for name, body in world.landmarks.items()]
        lengths = np.diff(cache.episode_starts)
        kept = np.flatnonzero(lengths >= least)
        if not len(kept):
            rule = f"judging takes {least} frames: give longer episodes, or a smaller horizon="
            raise DatasetError("longest episode", f"{lengths.max()} frames", rule)
        self.episodes, self.length = len(kept), int(lengths[kept].min())
        rows = cache.episode_starts[kept, None] + np.arange(self.length)
        columns = cache.names["state"]
        for name in self.names:
            if f"{name}.x" not in columns:
                raise DatasetError(
                    "state names", columns, f'there is no "{name}.x": name objects that the dataset labels'
                )
        places = [columns.index(f"{name}.{axis}") for name in self.names for axis in ("x", "y")]
        xy = cache.states[:, places].reshape(len(cache.states), len(self.names), 2)
        self.positions = (32 + 32 * xy / np.array(world.position_scale))[rows]  # (E, T, O, 2)
        self.present = cache.states[:, [columns.index(f"{name}.present") for name in self.names]][rows] > 0
        self.pixels, self.actions = cache.pixels[rows], cache.actions[rows]
        self.instructions = tuple(cache.instructions[e] for e in kept)

    @property
    def words(self) -> tuple[str, str, str]:
        """What the bodies are called in the table: one, all, and what they do."""
        names = [name for name, body in zip(self.names, self.bodies, strict=True) if body]
        return ("cube", "cubes", "move") if len(names) > 1 else (names[0], names[0], "moves")

    def see(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (..., O, 2) in px, NaN where an object is not found, and whether it was found (..., O)."""
        flat, lead, see = frames.reshape(-1, *frames.shape[-3:]), (*frames.shape[:-3], len(self.names)), self.detector
        if see is None:
            return np.empty((*lead, 2)), np.empty(lead, bool)
        positions, found = zip(*(see(flat[i : i + 512], self.palette) for i in range(0, len(flat), 512)), strict=True)
        return np.concatenate(positions).reshape(*lead, 2), np.concatenate(found).reshape(lead)

    def angle_errors(self, seen: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Degrees (..., L) between seen and true angles of the objects with a landmark; a missing one counts 180."""
        turned = [_turn(seen, true, found, *pair) for pair in self.landmarks]
        return np.stack(turned, -1) if turned else np.empty((*found.shape[:-1], 0))


def _turn(seen: np.ndarray, true: np.ndarray, found: np.ndarray, body: int, landmark: int) -> np.ndarray:
    ways = [p[..., landmark, 0] - p[..., body, 0] + 1j * (p[..., landmark, 1] - p[..., body, 1]) for p in (seen, true)]
    return np.where(
        found[..., body] & found[..., landmark], np.degrees(np.abs(np.angle(ways[0] * ways[1].conj()))), 180.0
    )


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
    of_bodies = errors[..., truth.bodies][present[..., truth.bodies]]
    angles = truth.angle_errors(seen, found, truth.positions[:episodes])
    patch, grid = tokenizer.config.patch, tokenizer.config.grid
    change = np.abs(pixels[:, 1:].astype(np.int16) - pixels[:, :-1]).max(-1)
    change = change.reshape(*change.shape[:2], grid, patch, grid, patch).max((3, 5))
    codes = codes.cpu().numpy().reshape(*pixels.shape[:2], grid, grid)
    mse = ((decoded.astype(np.float32) - pixels) ** 2).mean()
    return {
        "robot_p95_px": float(np.percentile(errors[..., 0][present[..., 0]], 95)),
        "object_p95_px": float(np.percentile(of_bodies, 95)),
        **({} if not truth.landmarks else {"angle_p95_deg": float(np.percentile(angles, 95))}),
        "missing": float((~found)[present].mean()),
        "invented": float(found[~present].sum() / max(1, (~present).sum())),
        "static_flicker": float((codes[:, 1:] != codes[:, :-1])[change <= 8].mean()),
        "codes_used": float(len(np.unique(codes))),
        "frames": int(np.prod(pixels.shape[:2])),
        "psnr_db": float(10 * np.log10(255**2 / mse)),
    }


class OpenLoop:
    """Rollouts of a world model from held-out windows: positions at each step as detected, beside truth and copy-last.

    Args:
        model: a `protocols.WorldModel`.
        truth: held-out episodes.
        starts: frames of each episode to start from (at least 1).
        steps: model steps dreamt.
        shuffle: give each window another window's actions (seeded), to see whether actions are followed.

    Attributes:
        errors, copy_errors, head_errors: (W, steps, O) px of a 64 px frame.
        angle_errors, copy_angle_errors, head_angle_errors: (W, steps, L) degrees, of the objects with a landmark.
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
                Observation(truth.pixels[i, j], np.zeros(model.agent_dim, np.float32), truth.instructions[i])
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
        there = np.ones_like(self.found)
        self.angle_errors = truth.angle_errors(seen, self.found, true)
        self.copy_angle_errors = truth.angle_errors(np.broadcast_to(start, true.shape), there, true)
        self.head_angle_errors = truth.angle_errors(head, there, true)


def quick_quality(model, truth: Truth, steps: int = 8) -> dict[str, float]:
    """The few figures shown while training: one step and the open loop's end, by the object detector and by the position head.

    Those of objects that move are left out where none does.
    """
    loop, bodies = OpenLoop(model, truth, starts=(12,) if truth.length > 20 else (1,), steps=steps), truth.bodies
    one = loop.present & bodies & (loop.moved[:, 0] >= 1)
    far = loop.present & bodies & (loop.moved[:, -1] >= 4)
    wrong = (loop.found[:, -1] != loop.present)[:, bodies].sum() / max(1, loop.present[:, bodies].sum())
    figures = {"robot_px_1": float(loop.errors[:, 0, 0].mean()), f"missing_or_invented_{steps}": float(wrong)}
    if one.any():
        figures["moved_ratio_1"] = float(loop.errors[:, 0][one].mean() / loop.copy_errors[:, 0][one].mean())
    if far.any():
        figures[f"moved_median_px_{steps}"] = float(np.median(loop.errors[:, -1][far]))
        figures[f"head_median_px_{steps}"] = float(np.median(loop.head_errors[:, -1][far]))
        figures[f"copy_median_px_{steps}"] = float(np.median(loop.copy_errors[:, -1][far]))
    if truth.landmarks and (turned := far[:, [body for body, _ in truth.landmarks]]).any():
        figures[f"angle_median_deg_{steps}"] = float(np.median(loop.angle_errors[:, -1][turned]))
        figures[f"head_angle_median_deg_{steps}"] = float(np.median(loop.head_angle_errors[:, -1][turned]))
        figures[f"copy_angle_median_deg_{steps}"] = float(np.median(loop.copy_angle_errors[:, -1][turned]))
    return figures


def quality_table(
    model, truth: Truth, steps: int = 8, position: Bars = ("<= 2.5", "1.0"), angle: Bars = ("-", "-")
) -> list[Figure]:
    """The figures of the held-out episodes: tokenizer, one step, many steps open loop, and whether actions are followed.

    Args:
        model: a `TokenWorldModel`.
        truth: held-out episodes.
        steps: length of the open loop.
        position, angle: its bars, must and aim, as text.
    """
    real, shuffled = OpenLoop(model, truth, steps=steps), OpenLoop(model, truth, steps=steps, shuffle=True)
    trip = tokenizer_quality(model.tokenizer, truth, truth.episodes)
    seen, found = truth.see(model.decode(tokenizer_codes(model.tokenizer, real.real)))
    trip_errors = position_errors(seen, found, real.true)
    bodies, (_, things, move) = real.present & truth.bodies, truth.words
    one, far = bodies & (real.moved[:, 0] >= 1), bodies & (real.moved[:, -1] >= 4)
    rows = _tokenizer_figures(trip)
    ratio = _paired_ratio(real.errors[:, 0][one], real.copy_errors[:, 0][one])
    floor = float(trip_errors[:, 0][one].mean() / real.copy_errors[:, 0][one].mean())
    name = f"1 step, {things} that {move} >= 1 px: error over copy-last's"
    rows.append(Figure(name, *ratio, int(one.sum()), 1.0, floor, "<= 0.35", "0.15"))
    moving = f"{steps} steps, {things} that {move} >= 4 px: median"
    for name, errors in (("by eye", real.errors), ("by the position head", real.head_errors)):
        own, copied, trips = (e[:, -1][far] for e in (errors, real.copy_errors, trip_errors))
        rows.append(_median(f"{moving} error {name}, px", own, copied, trips, position))
    if truth.landmarks:
        turned = far[:, [body for body, _ in truth.landmarks]]
        trip_angles = truth.angle_errors(seen, found, real.true)
        for name, errors in (("by eye", real.angle_errors), ("by the position head", real.head_angle_errors)):
            own, copied, trips = (e[:, -1][turned] for e in (errors, real.copy_angle_errors, trip_angles))
            rows.append(_median(f"{moving} angle error {name}, degrees", own, copied, trips, angle))
    there = real.present[:, truth.bodies].sum(-1)
    wrong, trip_wrong = ((x[:, -1] != real.present)[:, truth.bodies].sum(-1) for x in (real.found, found))
    share, interval = _paired_ratio(100.0 * wrong, there)
    lost = f"missing or invented {things} at step {steps}, % of {things}"
    trip_share = float(100 * trip_wrong.sum() / max(1, there.sum()))
    rows.append(Figure(lost, share, interval, int(there.sum()), 0.0, trip_share, "<= 2", "0.2"))
    return rows + _action_figures(real, shuffled, one, truth.words[0])


def _tokenizer_figures(trip: dict[str, float]) -> list[Figure]:
    """The rows of `tokenizer_quality`."""
    found = [
        ("robot position, p95 px", trip["robot_p95_px"], "<= 1.0", "0.5"),
        ("object position, p95 px", trip["object_p95_px"], "<= 1.0", "0.5"),
        ("object angle, p95 degrees", trip.get("angle_p95_deg"), "-", "-"),
        ("codes that change in static patches, %", 100 * trip["static_flicker"], "<= 1", "0.2"),
    ]
    return [
        Figure(f"tokenizer: {name}", value, None, int(trip["frames"]), None, None, must, aim)
        for name, value, must, aim in found
        if value is not None
    ]


def _action_figures(real: OpenLoop, shuffled: OpenLoop, moving: np.ndarray, thing: str) -> list[Figure]:
    """Whether actions are followed: the errors of one step with another window's actions over those with its own."""
    robot = _paired_ratio(shuffled.errors[:, 0, 0], real.errors[:, 0, 0])
    moved = _paired_ratio(shuffled.errors[:, 0][moving], real.errors[:, 0][moving])
    name = "1 step, shuffled over true actions:"
    return [
        Figure(f"{name} robot error", *robot, len(real.errors), 1.0, None, ">= 6", "15"),
        Figure(f"{name} moved-{thing} error", *moved, int(moving.sum()), 1.0, None, ">= 2", "4"),
    ]


def _median(name: str, errors: np.ndarray, copied: np.ndarray, trip: np.ndarray, bars: Bars) -> Figure:
    """A row of medians (n,): the model's, with its interval, copy-last's and the tokenizer's."""
    middle = [float(np.median(values)) if len(values) else None for values in (errors, copied, trip)]
    return Figure(name, middle[0], bootstrap_interval(errors), len(errors), middle[1], middle[2], *bars)


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


def picture_worst(model, truth: Truth, count: int, folder: Path, steps: int = 8) -> int:
    """Strips real | imagined | difference of the windows whose objects, or without any whose frames, are furthest off at the
    last step.

    Returns:
        The number of PNG files written to `folder` as worst-01.png, ..., in place of those that were there.
    """
    for earlier in folder.glob("worst-*.png"):  # of another evaluation
        earlier.unlink()
    if not count:
        return 0
    loop = OpenLoop(model, truth, steps=steps)
    if truth.names:
        errors, unit = np.where(loop.present, loop.errors[:, -1], 0).max(-1), "px off"
    else:
        errors, unit = -psnr(loop.frames[:, -1], loop.real[:, -1]), "dB"
    worst = errors.argsort()[::-1][:count]
    for rank, window in enumerate(worst, 1):
        caption = f"{abs(errors[window]):.1f} {unit} at step {steps}"
        strip(loop.real[window], loop.frames[window], folder / f"worst-{rank:02d}.png", caption)
    return len(worst)
