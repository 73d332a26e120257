"""Scripted pushers that make data: an expert, a noisy pusher, random motion. They read true positions, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PusherConfig:
    """Geometry and settings of the scripted pushers.

    Attributes:
        step_cm: displacement per axis of an action of 1.
        standoff_cm: distance from the cube's centre at which the pusher takes its run.
        contact_cm: distance of the centres while pushing.
        aligned_cm: sideways error below which it pushes.
        reach_cm: bound of the pusher's own position per axis.
    """

    step_cm: float = 2.5
    standoff_cm: float = 5.4
    contact_cm: float = 3.9
    aligned_cm: float = 1.0
    reach_cm: float = 11.0


class Expert:
    """Walks around a cube until the cube lies between itself and the target, then pushes it there."""

    def __init__(self, config: PusherConfig | None = None) -> None:
        self.config = config or PusherConfig()

    def act(self, pusher: np.ndarray, cube: np.ndarray, target: np.ndarray) -> np.ndarray:
        """One action (2,) in [-1, 1] from the positions (2,) in cm of pusher, cube and the cube's target."""
        c = self.config
        way = target - cube
        left = np.linalg.norm(way)
        if left < 0.2:
            return np.zeros(2, np.float32)
        along = way / left
        side = np.array([-along[1], along[0]])
        offset = pusher - cube
        behind, sideways = -offset @ along, offset @ side
        if behind > 0 and abs(sideways) < c.aligned_cm + 0.25 * max(0.0, behind - c.contact_cm):
            forward = min(behind - c.contact_cm + left, c.step_cm)
            move = along * forward - side * np.clip(sideways, -1.2, 1.2)
        else:
            move = self._around(offset, -along)
        return np.clip(move / c.step_cm, -1, 1).astype(np.float32)

    def _around(self, offset: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The next move around the cube towards direction `wanted`; straight where nothing is in the way."""
        c = self.config
        goal = wanted * c.standoff_cm
        line = goal - offset
        length = np.linalg.norm(line)
        nearest = offset + line * np.clip(-(offset @ line) / max(length**2, 1e-9), 0, 1)
        if np.linalg.norm(nearest) > c.standoff_cm - 0.9:
            return line * min(1.0, c.step_cm / max(length, 1e-9))
        angle = np.arctan2(offset[1], offset[0])
        turn = (np.arctan2(wanted[1], wanted[0]) - angle + np.pi) % (2 * np.pi) - np.pi
        angle += np.clip(turn, -0.5, 0.5)
        return np.array([np.cos(angle), np.sin(angle)]) * (c.standoff_cm + 0.3) - offset


class Collector:
    """The mix of behaviours that the data are made of; one instance per episode.

    Args:
        style: "expert" (follows the instruction with a little noise, then plays on as "noisy"), "noisy" (pushes any
            cube anywhere, much noise) or "random" (correlated random motion).
        rng: source of all its choices.
    """

    STYLES = ("expert", "noisy", "random")

    def __init__(self, style: str, rng: np.random.Generator) -> None:
        self.style, self.rng, self.expert = style, rng, Expert()
        self.noise = {"expert": 0.12, "noisy": 0.2, "random": 0.7}[style]
        self.drift = rng.normal(0, 0.5, 2)
        self.steps_left = 0
        self.cube, self.target = 0, np.zeros(2)

    def act(self, positions: np.ndarray, present: np.ndarray, cube: int, target: np.ndarray) -> np.ndarray:
        """One action (2,) float32 in [-1, 1].

        Args:
            positions: (O, 2) true positions in cm, the pusher first.
            present: (O,) bool.
            cube: index of the instruction's cube.
            target: (2,) cm, where the instruction wants it.
        """
        if self.style == "random":
            self.drift = 0.8 * self.drift + 0.6 * self.rng.normal(0, self.noise, 2)
            return np.clip(self.drift, -1, 1).astype(np.float32)
        if self.style == "expert" and np.linalg.norm(target - positions[cube]) < 1.0:
            self.style = "noisy"
        if self.style == "noisy":
            self.steps_left -= 1
            if self.steps_left < 0 or np.linalg.norm(self.target - positions[self.cube]) < 0.5:
                self._choose(positions, present)
            cube, target = self.cube, self.target
        action = self.expert.act(positions[0], positions[cube], target) + self.rng.normal(0, self.noise, 2)
        return np.clip(action, -1, 1).astype(np.float32)

    def _choose(self, positions: np.ndarray, present: np.ndarray) -> None:
        """Another cube and a random place for it, mostly one ahead of the pusher, so that it need not walk far."""
        cubes = np.flatnonzero(present)[1:]
        gaps = np.linalg.norm(positions[cubes] - positions[0], axis=-1)
        self.cube = int(cubes[gaps.argmin()] if self.rng.random() < 0.6 else self.rng.choice(cubes))
        self.steps_left = int(self.rng.integers(5, 14))
        ahead = positions[self.cube] - positions[0]
        places = self.rng.uniform(-9, 9, (8 if self.rng.random() < 0.7 else 1, 2))
        ways = places - positions[self.cube]
        self.target = places[np.argmax(ways @ ahead / (np.linalg.norm(ways, axis=-1) + 1e-6))]
