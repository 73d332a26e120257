"""Scripted arms that make data for worlds of others: what an expert would do, and how data stray from it. They read true
positions and joints, no pixels, and know no simulator. Lengths in cm, angles in rad."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Straying:
    """The mix of behaviours that an arm's data are made of; one instance per episode.

    Args:
        style: "expert" (the expert's actions with a little noise), "noisy" (spans of the expert's with much noise, and spans of
            correlated random motion) or "random" (correlated random motion only).
        size: elements of an action.
        strength: of the random motion, about the largest action it draws.
        rng: source of all its choices.
    """

    STYLES = ("expert", "noisy", "random")

    def __init__(self, style: str, size: int, strength: float, rng: np.random.Generator) -> None:
        self.style, self.strength, self.rng = style, strength, rng
        self.noise = {"expert": 0.05, "noisy": 0.15, "random": 0.0}[style] * min(1.0, 2 * strength) ** 2
        self.drift = rng.normal(0, 0.5, size)
        self.wandering, self.steps_left = style == "random", 0

    def act(self, expert: Callable[[], np.ndarray], rest: np.ndarray | float = 0.0) -> np.ndarray:
        """One action (A,) float32 in [-1, 1].

        Args:
            expert: gives the expert's action, asked every time so that it sees each step.
            rest: the action about which the random motion goes.
        """
        wanted = np.asarray(expert(), np.float64)
        self.steps_left -= 1
        if self.style == "noisy" and self.steps_left < 0:
            self.wandering, self.steps_left = self.rng.random() < 0.4, int(self.rng.integers(4, 12))
        self.drift = 0.8 * self.drift + 0.6 * self.rng.normal(0, 0.7, len(wanted))
        if self.wandering:
            wanted = rest + self.strength * self.drift
        return np.clip(wanted + self.rng.normal(0, self.noise, len(wanted)), -1, 1).astype(np.float32)


def reach_with_two_links(
    joints: np.ndarray,
    speeds: np.ndarray,
    target: np.ndarray,
    seconds: float,
    links=(10.0, 11.0),
    torque: float = 200.0,
) -> np.ndarray:
    """Torques (2,) that bring a planar arm's tip to the target (2,): the inverse kinematics, and a critically damped spring.

    Args:
        joints, speeds: (2,) rad and rad/s.
        target: from the shoulder.
        seconds: for which the torques are held.
        links: lengths.
        torque: acceleration that an action of 1 gives, rad/s^2.
    """
    first, second = links
    cosine = (target @ target - first**2 - second**2) / (2 * first * second)
    elbow = np.arccos(np.clip(cosine, -1, 1)) * (1.0 if joints[1] >= 0 else -1.0)
    shoulder = np.arctan2(target[1], target[0]) - np.arctan2(second * np.sin(elbow), first + second * np.cos(elbow))
    turn = (shoulder - joints[0] + np.pi) % (2 * np.pi) - np.pi
    way = np.array([turn, elbow - joints[1]])
    return np.clip((0.12 * way / seconds**2 - 0.7 * speeds / seconds) / torque, -1, 1)


def move_to(place: np.ndarray, target: np.ndarray, step: float) -> np.ndarray:
    """Displacement (3,) in [-1, 1] towards a target, straight; `step` is what 1 stands for."""
    return np.clip((target - place) / step, -1, 1)


def push_on_table(hand: np.ndarray, block: np.ndarray, target: np.ndarray, step: float) -> np.ndarray:
    """Displacement (3,) in [-1, 1] of a hand that goes over a block, down behind it, and pushes it to its target."""
    way = target[:2] - block[:2]
    left = np.linalg.norm(way)
    along = way / max(left, 1e-6)
    offset = hand[:2] - block[:2]
    behind, sideways = -offset @ along, offset - (offset @ along) * along
    start = np.array([*(block[:2] - 7.5 * along), block[2]])
    if left < 1.0:
        return np.zeros(3)
    if behind > 2.5 and np.linalg.norm(sideways) < 1.5 and hand[2] < block[2] + 2.5:
        move = np.array([*(along * min(left + 0.5, 4.0) - 0.7 * sideways), block[2] - hand[2]])
    elif np.linalg.norm(hand[:2] - start[:2]) < 1.5:
        move = start - hand
    elif hand[2] < block[2] + 6.0:
        move = np.array([0.0, 0.0, block[2] + 9.0 - hand[2]])
    else:
        move = np.array([*(start[:2] - hand[:2]), block[2] + 9.0 - hand[2]])
    return np.clip(move / step, -1, 1)


class ForkPusher:
    """Pusher-v5's arm: turns to the object, lowers its fork before it, and pushes outwards. A heuristic: it
    hits the object, and seldom brings it home."""

    BASE, UPPER, FOREARM, OFFSET, TABLE = np.array([0.0, -60.0]), 40.0, 32.1, 10.0, -27.5

    def act(self, joints: np.ndarray, speeds: np.ndarray, block: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Torques (7,) in [-1, 1] from joints, speeds (7,), and x, y of object and goal."""
        way = goal - block
        start = block - 15.0 * way / max(np.linalg.norm(way), 1e-6)
        hand, height = self._hand(joints)
        if np.linalg.norm(hand - start) < 7.0 or (height < self.TABLE + 8 and np.linalg.norm(hand - block) < 19.0):
            place, height = block + way * min(1.0, 6.0 / max(np.linalg.norm(way), 1e-6)) - 4.0 * way / 20.0, self.TABLE
        else:
            place, height = start, self.TABLE + 14.0 * (np.linalg.norm(hand - start) > 14.0)
        wanted = self._joints(place, height)
        return np.clip((9.0 * (wanted - joints) - 2.0 * speeds) / 2.0, -1, 1)

    def _hand(self, joints: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the wrist is (2,), and its height; as if the rolls were 0."""
        pan, lift, both = joints[0], joints[1], joints[1] + joints[3]
        radius = self.OFFSET + self.UPPER * np.cos(lift) + self.FOREARM * np.cos(both)
        height = -(self.UPPER * np.sin(lift) + self.FOREARM * np.sin(both))
        return self.BASE + radius * np.array([np.cos(pan), np.sin(pan)]), float(height)

    def _joints(self, place: np.ndarray, height: float) -> np.ndarray:
        """Joints (7,) that bring the wrist there."""
        line = place - self.BASE
        radius, down = np.linalg.norm(line) - self.OFFSET, -height
        cosine = (radius**2 + down**2 - self.UPPER**2 - self.FOREARM**2) / (2 * self.UPPER * self.FOREARM)
        elbow = -np.arccos(np.clip(cosine, -1, 1))
        lift = np.arctan2(down, radius) - np.arctan2(
            self.FOREARM * np.sin(elbow), self.UPPER + self.FOREARM * np.cos(elbow)
        )
        pan = np.arctan2(line[1], line[0])
        return np.array([pan, lift, 0.0, elbow, 0.0, -(lift + elbow) * 0.5, 0.0])


class HandOver:
    """ALOHA's two arms by waypoints: the right one takes the cube, lifts it to the middle, and the left one takes hold of it.

    The arms' plane geometry is solved exactly, but nothing is felt: the right arm reaches for the cube and may lift it, the
    cube mostly slips on the way, and no transfer has been seen. It makes motion of both arms about the task, no demonstrations.

    Args:
        seconds: of a step.
    """

    SHOULDER_X, MIDDLE_Y, SHOULDER_Z = 46.9, 50.0, 12.7
    UPPER, FOREARM, WRIST, FINGERS = np.array([5.955, 30.0]), 30.0, 6.97, 12.0
    MEET = np.array([0.0, 50.0, 28.0])

    def __init__(self, seconds: float) -> None:
        self.seconds, self.time = seconds, 0.0
        self.cube: np.ndarray | None = None

    def act(self, cube: np.ndarray) -> np.ndarray:
        """Wanted joints and openings (14,), left arm first, from the cube's x, y, z."""
        if self.cube is None:
            self.cube = cube.copy()
        self.time += self.seconds
        took, up = np.array([*self.cube[:2], 3.4]), np.array([0, 0, 12.0])
        right = (  # until when (s), where, pitch, opening
            (1.1, took + up, 1.1, 1.0),
            (2.1, took, 1.1, 1.0),
            (4.1, took, 1.1, 0.0),
            (5.1, took + up, 0.8, 0.0),
            (8.3, self.MEET, 0.0, 0.0),
            (99.0, self.MEET, 0.0, 1.0),
        )
        left = (
            (4.1, self.MEET - (18.0, 0, 0), 0.0, 1.0),
            (6.1, self.MEET - (12.0, 0, 0), 0.0, 1.0),
            (7.1, self.MEET - (0.5, 0, 0), 0.0, 1.0),
            (99.0, self.MEET - (0.5, 0, 0), 0.0, 0.0),
        )
        return np.concatenate([self._arm(left, -1.0, 1.5), self._arm(right, 1.0, 0.0)])

    def _arm(self, waypoints, side: float, roll: float) -> np.ndarray:
        """Joints and opening (7,) of the waypoint that is due, for the arm at `side` (1 right, -1 left)."""
        _, place, pitch, opening = next(point for point in waypoints if self.time <= point[0])
        across, along = side * (self.MIDDLE_Y - place[1]), self.SHOULDER_X - side * place[0]
        radius, height = np.hypot(across, along), place[2] - self.SHOULDER_Z
        hand = (self.WRIST + self.FINGERS) * np.array([np.cos(pitch), -np.sin(pitch)])
        wrist = np.array([radius, height]) - hand
        upper = np.linalg.norm(self.UPPER)
        cosine = (wrist @ wrist - upper**2 - self.FOREARM**2) / (2 * upper * self.FOREARM)
        bend = np.arccos(np.clip(cosine, -1, 1))  # between the two links, 0 stretched
        rise = np.arctan2(wrist[1], wrist[0]) + np.arctan2(
            self.FOREARM * np.sin(bend), upper + self.FOREARM * np.cos(bend)
        )
        shoulder = np.arctan2(self.UPPER[1], self.UPPER[0]) - rise
        elbow = bend - rise - shoulder
        return np.array([np.arctan2(across, along), shoulder, elbow, 0.0, pitch - shoulder - elbow, roll, opening])
