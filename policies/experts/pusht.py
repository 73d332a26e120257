"""The scripted pusher that makes PushT's data: it turns and moves a T by greedy pushes. It reads true poses, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TeeConfig:
    """Geometry and settings of the T's pusher; lengths in cm, the T in its own frame, about its centroid.

    Attributes:
        boxes: (x0, y0, x1, y1) of the T's bar and stem.
        pusher: the pusher's radius.
        step: displacement per axis of an action of 1.
        reach: bound of the pusher's own position per axis.
        standoff: gap between the rims where the pusher takes its run.
        aligned: sideways error below which it pushes.
        detour: distance from the centroid at which it walks around the T.
        lever: length that weighs turning against moving.
        persistence, patience: pushes and steps for one place before it looks for a better one.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    pusher: float = 0.94
    step: float = 3.0
    reach: float = 14.5
    standoff: float = 0.6
    aligned: float = 0.9
    detour: float = 6.3
    lever: float = 3.0
    persistence: int = 3
    patience: int = 12


class TeePusher:
    """Pushes the T where that moves and turns it most nearly the way it has to go, walking around it in between."""

    def __init__(self, config: TeeConfig, rng: np.random.Generator) -> None:
        self.config, self.rng = config, rng
        self.contacts, self.inwards = _outline(config)
        self.place: int | None = None  # the chosen one of these places and directions
        self.pushes = self.steps = 0

    def act(self, pusher: np.ndarray, tee: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """One action (2,) in [-1, 1] from the pusher (2,) cm, and x, y, yaw (3,) of the T and of its goal."""
        c, rotation = self.config, _rotation(tee[2])
        if self.place is None or self.pushes >= c.persistence or self.steps >= c.patience:
            self._choose(pusher, tee, goal)
        self.steps += 1
        contact, along = tee[:2] + rotation @ self.contacts[self.place], rotation @ self.inwards[self.place]
        offset = pusher - (contact - c.pusher * along)
        behind, sideways = -offset @ along, offset - (offset @ along) * along
        if behind > -1.0 and np.linalg.norm(sideways) < c.aligned:
            self.pushes += 1
            push = self._pushes(tee)[self.place]
            left = push @ _twist(tee, goal, c.lever) / (push @ push)
            if left < 0.1:
                self.pushes = c.persistence
            move = along * (max(behind, 0.0) + np.clip(left, 0.2, 0.8 * c.step)) - 0.5 * sideways
        else:
            move = self._walk(pusher, tee, contact - (c.pusher + c.standoff) * along)
        return np.clip(move / c.step, -1, 1).astype(np.float32)

    def _choose(self, pusher: np.ndarray, tee: np.ndarray, goal: np.ndarray) -> None:
        """The place on the outline and the direction of the best push, less for places that are far from the pusher."""
        c, rotation = self.config, _rotation(tee[2])
        arms, along, pushes = self.contacts @ rotation.T, self.inwards @ rotation.T, self._pushes(tee)
        wanted = _twist(tee, goal, c.lever)
        score = pushes @ wanted / (np.linalg.norm(pushes, axis=-1) * max(np.linalg.norm(wanted), 1e-6))
        starts = tee[:2] + arms - (c.pusher + c.standoff) * along
        score = score - 0.09 * np.linalg.norm(starts - pusher, axis=-1) + 0.15 * self.rng.normal(size=len(score))
        score[np.abs(starts).max(-1) > c.reach] -= 9
        self.place, self.pushes, self.steps = int(score.argmax()), 0, 0

    def _pushes(self, tee: np.ndarray) -> np.ndarray:
        """What a push of 1 cm at each place is good for: (P, 3) cm, along x, y, and its arm over the lever."""
        rotation = _rotation(tee[2])
        arms, along = self.contacts @ rotation.T, self.inwards @ rotation.T
        turning = arms[:, 0] * along[:, 1] - arms[:, 1] * along[:, 0]
        return np.column_stack([along, turning / self.config.lever])

    def _walk(self, pusher: np.ndarray, tee: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The next move (2,) cm towards `start`: straight where the T is not in the way, else around it."""
        c, rotation = self.config, _rotation(tee[2])
        line = start - pusher
        length = np.linalg.norm(line)
        step = line * min(1.0, c.step / max(length, 1e-9))
        path = pusher + line * np.linspace(0, 1, 12)[:, None]
        if (
            _gap((path - tee[:2]) @ rotation, c.boxes).min()
            > min(c.pusher, _gap((pusher - tee[:2]) @ rotation, c.boxes)) - 0.05
        ):
            return step
        offset, wanted = pusher - tee[:2], start - tee[:2]
        angle = np.arctan2(offset[1], offset[0])
        turn = (np.arctan2(wanted[1], wanted[0]) - angle + np.pi) % (2 * np.pi) - np.pi
        angle += np.clip(turn, -0.45, 0.45)
        return tee[:2] + np.array([np.cos(angle), np.sin(angle)]) * c.detour - pusher


class TeeCollector:
    """The mix of behaviours that PushT's data are made of; one instance per episode.

    Args:
        style: "expert" (pushes the T to its mark with a little noise, then plays on as "noisy"), "noisy" (to random poses, much
            noise) or "random" (correlated random motion).
        config: the T's geometry.
        rng: source of all its choices.
    """

    STYLES = ("expert", "noisy", "random")

    def __init__(self, style: str, config: TeeConfig, rng: np.random.Generator) -> None:
        self.style, self.rng, self.expert = style, rng, TeePusher(config, rng)
        self.noise = {"expert": 0.08, "noisy": 0.15, "random": 0.7}[style]
        self.drift = rng.normal(0, 0.5, 2)
        self.goal, self.steps_left = np.zeros(3), 0

    def act(self, pusher: np.ndarray, tee: np.ndarray, mark: np.ndarray) -> np.ndarray:
        """One action (2,) float32 in [-1, 1] from the pusher (2,) cm, and x, y, yaw (3,) of the T and of its mark."""
        lever = self.expert.config.lever
        if self.style == "random":
            self.drift = 0.8 * self.drift + 0.6 * self.rng.normal(0, self.noise, 2)
            return np.clip(self.drift, -1, 1).astype(np.float32)
        if self.style == "expert" and np.linalg.norm(_twist(tee, mark, lever)) < 0.3:
            self.style = "noisy"
        if self.style == "noisy":
            self.steps_left -= 1
            if self.steps_left < 0 or np.linalg.norm(_twist(tee, self.goal, lever)) < 0.5:
                self.goal = np.array([*self.rng.uniform(-8, 8, 2), tee[2] + self.rng.uniform(-2.0, 2.0)])
                self.steps_left, self.expert.place = int(self.rng.integers(6, 16)), None
            mark = self.goal
        action = self.expert.act(pusher, tee, mark) + self.rng.normal(0, self.noise, 2)
        return np.clip(action, -1, 1).astype(np.float32)


def _outline(config: TeeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Places (P, 2) on the T's outline that the pusher can touch, each with several inward directions (P, 2), T's frame."""
    places, inwards = [], []
    for x0, y0, x1, y1 in config.boxes:
        for share in np.linspace(0.06, 0.94, 9):
            x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
            for place, normal in (((x, y0), (0, 1)), ((x, y1), (0, -1)), ((x0, y), (1, 0)), ((x1, y), (-1, 0))):
                for angle in (-0.5, -0.25, 0.0, 0.25, 0.5):
                    places.append(place)
                    inwards.append(_rotation(angle) @ normal)
    places, inwards = np.array(places), np.array(inwards)
    touching, starts = (places - (config.pusher + gap) * inwards for gap in (0.1, config.standoff))
    free = (_gap(touching, config.boxes) > config.pusher - 0.1) & (_gap(starts, config.boxes) > config.pusher + 0.1)
    return places[free], inwards[free]


def _gap(points: np.ndarray, boxes) -> np.ndarray:
    """Distance (...) of points (..., 2) from the union of boxes; 0 inside."""
    boxes = np.asarray(boxes)
    beyond = np.maximum(boxes[:, :2] - points[..., None, :], points[..., None, :] - boxes[:, 2:])
    return np.linalg.norm(np.maximum(beyond, 0), axis=-1).min(-1)


def _twist(pose: np.ndarray, goal: np.ndarray, lever: float) -> np.ndarray:
    """What is left to go (3,): x, y in cm, and the turn times the lever, in cm too."""
    turn = (goal[2] - pose[2] + np.pi) % (2 * np.pi) - np.pi
    return np.array([*(goal[:2] - pose[:2]), turn * lever])


def _rotation(yaw: float) -> np.ndarray:
    return np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
