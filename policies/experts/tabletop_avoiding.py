"""A scripted pusher that walks and pushes around cubes that are not to be moved. It reads true positions, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import dijkstra

from .tabletop import Expert, PusherConfig

LENGTHS_CM = (2.5, 4.0, 5.5, 7.0, 9.0, 11.0)  # of a way to a place from which a goal is free
ANGLES = np.arange(24) * np.pi / 12
DETOUR_CM = 4.0  # what a second push is counted as, on top of its way


@dataclass(frozen=True)
class Distances:
    """What counts as free; distances of centres in cm, cubes are 4.5 wide and 6.4 across their corners.

    Attributes:
        cubes: at which one cube passes another, and
        close_calls: where there is no such way.
        side_by_side: that are left between cubes at the end of a push.
        pusher: at which the pusher passes a cube, and
        squeezes: where there is no such way.
    """

    cubes: float = 7.2
    close_calls: tuple[float, ...] = (6.4, 5.4, 4.8)
    side_by_side: float = 5.4
    pusher: float = 5.0
    squeezes: tuple[float, ...] = (4.5, 4.0)


class AvoidingExpert:
    """As `experts.tabletop.Expert`, among cubes that are not to be moved; one instance per episode.

    Of the places that will do it takes one that the cube can be pushed to past the others, over another place where that helps.
    Where nothing is free, it pushes straight to the first.
    """

    def __init__(self, config: PusherConfig | None = None, distances: Distances | None = None) -> None:
        self.config, self.free = config or PusherConfig(), distances or Distances()
        self.expert = Expert(self.config)
        self.route: list[np.ndarray] = []  # places (2,) that the cube is on its way to
        self.clear = self.free.cubes

    def act(self, pusher: np.ndarray, cube: np.ndarray, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
        """One action (2,) in [-1, 1] from positions in cm.

        Args:
            pusher, cube: (2,).
            targets: (K, 2), where the cube is wanted, any of them; the first is taken where it is free.
            others: (M, 2), cubes that are not to be moved; M may be 0.
        """
        self._find_route(cube, targets, others)
        target = self.route[0]
        action = self.expert.act(pusher, cube, target)
        way = target - cube
        along = way / max(np.linalg.norm(way), 1e-9)
        ahead, aside = (cube - pusher) @ along, abs((cube - pusher) @ [-along[1], along[0]])
        if not len(others) or (0 < ahead < self.config.standoff_cm + 0.5 and aside < 2.0):
            return action  # it pushes, or soon will
        behind = np.clip(cube - along * self.config.standoff_cm, -self.config.reach_cm, self.config.reach_cm)
        place = self._walk(pusher, behind, np.vstack([others, cube]))
        if place is None:
            return action
        move = (place - pusher) / self.config.step_cm
        return (move / max(1.0, np.abs(move).max())).astype(np.float32)

    def _find_route(self, cube: np.ndarray, targets: np.ndarray, others: np.ndarray) -> None:
        if not len(others) or self.can_push(cube, targets[:1], others)[0]:
            self.route = [targets[0]]
            return
        if self.route and np.linalg.norm(self.route[0] - cube) < 0.5:
            self.route.pop(0)
        if self.route and self.can_push(cube, self.route[0][None], others, self.clear)[0]:
            return
        route: list[np.ndarray] = []
        for clear in (self.free.cubes, *self.free.close_calls):
            self.clear = clear
            if route := self._shortest(cube, targets, others):
                break
        self.route = route or [targets[0]]

    def _shortest(self, cube: np.ndarray, targets: np.ndarray, others: np.ndarray) -> list[np.ndarray]:
        """The shortest route of one or two pushes; empty where there is none."""
        straight = targets[self.can_push(cube, targets, others, self.clear)]
        route = [min(straight, key=lambda end: np.linalg.norm(end - cube))] if len(straight) else []
        shortest = np.linalg.norm(route[0] - cube) if route else np.inf
        places = cube + np.array([length * np.array([np.cos(a), np.sin(a)]) for length in LENGTHS_CM for a in ANGLES])
        apart = np.linalg.norm(places[:, None] - others, axis=-1).min(-1) > self.clear
        places = places[apart & (np.abs(places).max(-1) < self.config.reach_cm - 2.5)]
        for place in places[self.can_push(cube, places, others, self.clear)]:
            first = np.linalg.norm(place - cube) + DETOUR_CM
            for end in targets[self.can_push(place, targets, others, self.clear)]:
                if (length := first + np.linalg.norm(end - place)) < shortest:
                    shortest, route = length, [place, end]
        return route

    def can_push(
        self, cube: np.ndarray, targets: np.ndarray, others: np.ndarray, clear_cm: float | None = None
    ) -> np.ndarray:
        """To which targets (K, 2) a cube can be pushed straight: past all others, with room for the pusher behind it."""
        ways, f = targets - cube, self.free
        behind = cube - ways / np.maximum(np.linalg.norm(ways, axis=-1, keepdims=True), 1e-9) * self.config.standoff_cm
        within = np.abs(behind).max(-1) < self.config.reach_cm + 1.5  # nearer it touches the cube already
        room = np.linalg.norm(others - behind[:, None], axis=-1).min(-1) > f.pusher - 0.8
        ends = np.linalg.norm(others - targets[:, None], axis=-1)
        clear_cm = clear_cm or f.cubes
        clear = np.minimum(clear_cm, np.minimum(ends, np.linalg.norm(others - cube, axis=-1)) - 0.1)
        past = (gaps(cube, targets, others) >= clear).all(-1)
        return within & room & past & (ends.min(-1) > min(clear_cm, f.side_by_side))

    def _walk(self, pusher: np.ndarray, goal: np.ndarray, cubes: np.ndarray) -> np.ndarray | None:
        """The next place (2,) on the shortest way around all cubes, over places beside them; None where there is no way."""
        for clear in (self.free.pusher, *self.free.squeezes):
            around = np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1) * (clear + 0.3)
            places = (cubes[:, None] + around).reshape(-1, 2)
            apart = np.linalg.norm(places[:, None] - cubes, axis=-1).min(-1) > clear
            places = np.vstack([pusher, goal, places[apart & (np.abs(places).max(-1) < self.config.reach_cm)]])
            own = np.linalg.norm(places[:, None] - cubes, axis=-1)
            allowed = np.minimum(clear, np.minimum(own[:, None], own) - 0.1)
            near = np.stack([gaps(place, places, cubes) for place in places])
            ways = np.linalg.norm(places[:, None] - places, axis=-1)
            graph = np.where((near >= allowed).all(-1), ways, 0)
            length, before = dijkstra(graph, indices=1, return_predecessors=True)
            if np.isfinite(length[0]):
                return places[before[0]]
        return None


def gaps(start: np.ndarray, ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distances (K, M) of places (M, 2) from the lines between a place (2,) and others (K, 2)."""
    lines = ends - start
    shares = lines @ (others - start).T / np.maximum((lines**2).sum(-1, keepdims=True), 1e-9)
    return np.linalg.norm(start + np.clip(shares, 0, 1)[..., None] * lines[:, None] - others, axis=-1)
