"""Which episodes are worth training on, and why the others are not. Knows arrays, and no file format."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAME = 2  # levels of 255 by which pixels of a frozen picture may still differ, after a video codec
LIMIT = 0.999  # of [-1, 1], from where on an action counts as clipped


@dataclass(frozen=True)
class QualityConfig:
    """What an episode must be to be kept.

    Attributes:
        min_frames: fewest frames; two make one step.
        frozen: largest share of steps whose frame is the one before once more.
        clipped: largest share of action values at their limits. Values that only ever take two levels (grippers) do not count.
        duplicates: whether an episode with the actions and the first frame of an earlier one is dropped.
    """

    min_frames: int = 2
    frozen: float = 0.9
    clipped: float = 0.9
    duplicates: bool = True


@dataclass(frozen=True)
class Dropped:
    """An episode that is not trained on.

    Attributes:
        episode: its number in the dataset.
        key: the column or file at fault.
        reason: "unreadable", "incomplete", "not finite", "too short", "frozen", "clipped" or "duplicate".
        detail: what was found.
        dataset: which dataset, where several are mixed.
    """

    episode: int
    key: str
    reason: str
    detail: str
    dataset: str = ""

    def __str__(self) -> str:
        return f"episode {self.episode}, {self.key}: {self.reason}, {self.detail}"


class Judge:
    """Looks at one episode after the other, and remembers what it has seen.

    Args:
        config: the limits.
        camera, action: names of the columns at fault.
        continuous: (A,) bool, which action values have limits that tell.
    """

    def __init__(self, config: QualityConfig, camera: str, action: str, continuous: np.ndarray) -> None:
        self.config, self.camera, self.action, self.continuous = config, camera, action, continuous
        self.seen: dict[bytes, int] = {}

    def __call__(self, episode: int, pixels: np.ndarray, actions: np.ndarray) -> Dropped | None:
        """What is wrong with an episode of frames (T, H, W, 3) uint8 and actions (T - 1, A) in [-1, 1]; None: nothing."""
        c = self.config
        still = frozen_share(pixels)
        if still > c.frozen:
            return Dropped(episode, self.camera, "frozen", f"{still:.0%} of the steps show no change")
        clipped = float((np.abs(actions[:, self.continuous]) >= LIMIT).mean()) if self.continuous.any() else 0.0
        if clipped > c.clipped:
            return Dropped(episode, self.action, "clipped", f"{clipped:.0%} of the values are at their limits")
        key = hashlib.sha256(actions.tobytes() + pixels[0].tobytes()).digest()
        first = self.seen.setdefault(key, episode)
        if c.duplicates and first != episode:
            return Dropped(episode, self.action, "duplicate", f"actions and first frame are those of episode {first}")
        return None


def frozen_share(pixels: np.ndarray) -> float:
    """The share of steps between frames (T, H, W, 3) uint8 whose picture stays the same."""
    same = [
        np.array_equal(now, then) or np.abs(now.astype(np.int16) - then).max() <= SAME
        for then, now in zip(pixels[:-1], pixels[1:], strict=True)
    ]
    return float(np.mean(same)) if same else 0.0


def continuous_values(actions: np.ndarray) -> np.ndarray:
    """Which of the values of actions (F, A) take more than two levels: (A,) bool."""
    return np.array([len(np.unique(column[:10_000])) > 2 for column in actions.T], bool)


def count_reasons(dropped: Sequence[Dropped]) -> dict[str, int]:
    """How many episodes each reason cost, the commonest first."""
    reasons = [d.reason for d in dropped]
    return dict(sorted(((r, reasons.count(r)) for r in set(reasons)), key=lambda pair: (-pair[1], pair[0])))
