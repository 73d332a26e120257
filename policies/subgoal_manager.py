"""Follows subgoals: which one is pursued, when it is reached, when others are asked for, what it costs to be far from it.

A planner on top and one below, as in the hierarchies that follow images drawn from words (SuSIE, arXiv 2310.10639; HIP, arXiv
2309.08587): a proposer says what should be seen next, model predictive control gets there. It knows protocols only: no concrete
proposer or world model, no pixels, and no task. Objects are matched by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from emu_embodied.errors import InputError
from emu_embodied.policies.costs import BehindObject, ObjectLost, ObjectPositions, WeightedSum
from emu_embodied.protocols import Cost, SubgoalProposer, WorldModel
from emu_embodied.types import History, Observation, Subgoal, short_repr
from emu_embodied.validation import number_fields, whole_fields


@dataclass(frozen=True)
class SubgoalConfig:
    """Habits of who follows subgoals; lengths in world units (cm).

    Attributes:
        count: most subgoals that are asked for at once.
        patience: model steps on one subgoal after which others are asked for; at once where the robot was to walk to something
            that has been moved.
        near: a subgoal is reached where each object that it moves is so near to its place.
        home: the same for the last subgoal, which is to be met more exactly.
        robot_near: a subgoal that moves the robot alone is reached where the robot is so near to its place.
        moved: an object counts as moved by a subgoal from so far on.
        keep: weight of the ways of objects that a subgoal does not move, beside 1 for those that it does.
        still: the same where the robot alone is to move: it should not bump into anything.
        behind: weight of the robot's walk behind what it is to push.
        around: weight of the robot's walk around the thing that it is to stand at, where it alone is to move; beside 1 for
            its way as the crow flies.
        beside: weight of the robot's way to where a subgoal that moves objects shows it, where it does not walk behind them.
        radius: between the centres of robot and object when they touch; None where objects are no discs to walk around.
        robot: the robot's name among the objects.

    Raises:
        InputError: a value out of range.
    """

    count: int = 6
    patience: int = 12
    near: float = 1.8
    home: float = 0.8
    robot_near: float = 2.5
    moved: float = 1.0
    keep: float = 0.5
    still: float = 2.0
    behind: float = 0.15
    around: float = 1.0
    beside: float = 0.15
    radius: float | None = 4.2
    robot: str = "pusher"

    def __post_init__(self) -> None:
        whole_fields(self, dict.fromkeys(("count", "patience"), (1, None)), InputError)
        distances = ("near", "home", "robot_near", "moved", "keep", "still", "behind", "around", "beside")
        number_fields(self, dict.fromkeys(distances, (0, None)), InputError)


class Pursued(NamedTuple):
    """A subgoal, and the model step at which its pursuit began."""

    subgoal: Subgoal
    at: int

    __repr__ = short_repr


class PlacesGoal:
    """Things where they are wanted, over positions in a model's object order, as `costs` wants it.

    Args:
        places: (O, 2), where they are wanted, in world units.
        weights: (O,), of each one's way; 0 does not count.
    """

    def __init__(self, places: np.ndarray, weights: np.ndarray) -> None:
        self.rows = np.flatnonzero(weights).tolist()
        self.places, self.weights = (torch.from_numpy(np.asarray(x, np.float32)[self.rows]) for x in (places, weights))

    def distance(self, positions: torch.Tensor) -> torch.Tensor:
        """Length (...) of all weighted ways that are left, as one vector, from positions (..., O, 2)."""
        ways = positions[..., self.rows, :] - self.places.to(positions)
        return (ways * self.weights.to(positions)[:, None]).flatten(-2).norm(dim=-1)


class SubgoalManager:
    """Holds the subgoals of an episode and says, whenever it looks, what a planner should minimise now.

    Args:
        proposer: who is asked for subgoals.
        objects: names of the model's objects, in whose order places are given; what the proposer does not know never counts.
        config: settings.
        seed: of the proposals.

    Attributes:
        pursued: what was pursued so far, in turn.
        stopped_at: the model step at which the proposer believed that all is done; None as long as it does not.

    Raises:
        InputError: proposer or model knows no robot, or they have no other object in common.
    """

    def __init__(
        self, proposer: SubgoalProposer, objects: Sequence[str], config: SubgoalConfig | None = None, seed: int = 0
    ) -> None:
        self.proposer, self.config, self.seed = proposer, config or SubgoalConfig(), seed
        known = [(o, proposer.objects.index(name)) for o, name in enumerate(objects) if name in proposer.objects]
        self.rows, self._theirs = ([pair[i] for pair in known] for i in range(2))
        robot = self.config.robot
        if len(known) < 2 or robot not in objects or robot not in proposer.objects:
            rule = f"the model needs {robot!r} and another one of them; it knows {tuple(objects)}"
            raise InputError("the proposer's objects", tuple(proposer.objects), rule)
        self.robot, self.size = list(objects).index(robot), len(objects)
        self.pursued: list[Pursued] = []
        self.stopped_at: int | None = None
        self._subgoals: list[Subgoal] = []
        self._wanted: list[
            np.ndarray
        ] = []  # (O, 3) each, in the model's order, the scene in which they were drawn first
        self._index, self._since, self._asked = 0, 0, 0

    @property
    def subgoal(self) -> Subgoal | None:
        """What is pursued; None before the first look, and when all is done."""
        return self._subgoals[self._index] if self._subgoals else None

    def look(self, observation: Observation, places: np.ndarray, step: int) -> Cost | None:
        """Looks at the scene and decides what to pursue from here.

        Args:
            observation: what is seen, for the proposer.
            places: (O, 3) float32, x and y in world units and presence of the model's objects, as the model believes them.
            step: model steps of the episode so far.

        Returns:
            The cost to minimise, or None to stay where one is: the proposer believes that all is done.
        """
        if self.stopped_at is not None:
            return None
        late = False
        if self._subgoals:
            reached = [i for i in range(self._index, len(self._subgoals)) if self._reached(i, places)]
            if reached:
                self._pursue(reached[-1] + 1, step)
            late = step - self._since >= self.config.patience or self._spoilt(places)
        if not self._subgoals or self._index == len(self._subgoals) or late:
            self._ask(observation, places, step)
            if not self._subgoals:
                self.stopped_at = step
                return None
        return self._cost(places)

    def _ask(self, observation: Observation, places: np.ndarray, step: int) -> None:
        self._subgoals = list(self.proposer.propose(observation, self.config.count, 1000 * self.seed + self._asked))
        self._asked += 1
        self._wanted = [places]
        for subgoal in self._subgoals:
            wanted = np.zeros((self.size, 3), np.float32)
            wanted[self.rows] = subgoal.places[self._theirs]
            self._wanted.append(wanted)
        if self._subgoals:  # from the first that is not reached; where all are, the last one can still be met better
            ahead = (i for i in range(len(self._subgoals)) if not self._reached(i, places))
            self._pursue(next(ahead, len(self._subgoals) - 1), step)

    def _pursue(self, index: int, step: int) -> None:
        self._index, self._since = index, step
        if index < len(self._subgoals):
            self.pursued.append(Pursued(self._subgoals[index], step))

    def _moves(self, index: int) -> list[int]:
        """The objects, without the robot, that a subgoal moves from the scene before it; none where the robot only walks."""
        before, after = self._wanted[index : index + 2]
        ways = np.linalg.norm(after[:, :2] - before[:, :2], axis=-1)
        there = (before[:, 2] > 0.5) & (after[:, 2] > 0.5) & (np.arange(self.size) != self.robot)
        return np.flatnonzero(there & (ways > self.config.moved)).tolist()

    def _reached(self, index: int, places: np.ndarray) -> bool:
        c, wanted, moves = self.config, self._wanted[index + 1], self._moves(index)
        ways = np.linalg.norm(places[:, :2] - wanted[:, :2], axis=-1)
        last = self._subgoals[index].last
        if moves:
            return bool((ways[moves] <= (c.home if last else c.near)).all() and (places[moves, 2] > 0.5).all())
        there = (places[:, 2] > 0.5) & (wanted[:, 2] > 0.5)
        there[self.robot] = False
        return bool(ways[self.robot] <= c.robot_near and (ways[there] <= c.near).all())

    def _spoilt(self, places: np.ndarray) -> bool:
        """Whether the robot is to walk to something that is no longer where it was."""
        if self._index == len(self._subgoals) or self._moves(self._index):
            return False
        wanted = self._wanted[self._index + 1]
        there = (places[:, 2] > 0.5) & (wanted[:, 2] > 0.5) & (np.arange(self.size) != self.robot)
        return bool((np.linalg.norm(places[:, :2] - wanted[:, :2], axis=-1)[there] > self.config.near).any())

    def _cost(self, places: np.ndarray) -> Cost:
        """What is left to the pursued subgoal; see `SubgoalConfig` for its weights."""
        c, wanted, moves = self.config, self._wanted[self._index + 1], self._moves(self._index)
        weights = np.where(wanted[:, 2] > 0.5, c.keep if moves else c.still, 0.0)
        weights[moves] = 1.0
        walks = not moves or c.radius is None
        weights[self.robot] = (c.beside if moves else 1.0) * walks * (wanted[self.robot, 2] > 0.5)
        things = [o for o in np.flatnonzero(weights) if o != self.robot]
        terms: list[tuple[float, Cost]] = [(1.0, ObjectPositions(PlacesGoal(wanted[:, :2], weights).distance))]
        terms += [(5.0, ObjectLost(int(o))) for o in things]
        if c.radius is not None and moves:
            farthest = max(moves, key=lambda o: np.linalg.norm(places[o, :2] - wanted[o, :2]))
            terms.append((c.behind, self._walk_behind(farthest, wanted, c.radius)))
        if c.radius is not None and not moves and things and weights[self.robot]:
            nearest = min(things, key=lambda o: np.linalg.norm(wanted[o, :2] - wanted[self.robot, :2]))
            terms.append((c.around, self._walk_around(nearest, wanted, c.radius)))
        return WeightedSum(terms)

    def _walk_behind(self, thing: int, wanted: np.ndarray, radius: float) -> BehindObject:
        place = torch.from_numpy(wanted[thing, :2].copy())
        alone = np.zeros(self.size)
        alone[thing] = 1.0
        left = PlacesGoal(wanted[:, :2], alone)
        near = self.config.home

        def target(positions: torch.Tensor) -> torch.Tensor:
            return place.to(positions).expand(positions[..., thing, :].shape)

        return BehindObject(
            lambda positions: (left.distance(positions) - near).clamp(min=0),
            target,
            self.robot,
            thing,
            radius,
        )

    def _walk_around(self, thing: int, wanted: np.ndarray, radius: float) -> BehindObject:
        """The walk to where the robot is wanted, around the thing that it will stand at."""
        offset = torch.from_numpy(wanted[self.robot, :2] - wanted[thing, :2])

        def beyond(positions: torch.Tensor) -> torch.Tensor:
            return positions[..., thing, :] - offset.to(positions)

        never = PlacesGoal(wanted[:, :2], np.zeros(self.size))
        clear = max(float(offset.norm()), radius)
        return BehindObject(lambda x: never.distance(x) + 1, beyond, self.robot, thing, clear)


def see_places(model: WorldModel, history: History) -> np.ndarray:
    """Where a model believes its objects to be in a history's last frame, by a step of standing still.

    Returns:
        (O, 3) float32: x and y in world units, and presence.
    """
    rollout = model.step(history, np.zeros((1, model.action_dim), np.float32))[1]
    places, presence = rollout.positions_BSTOD[0, 0, 0], rollout.presence_BSTO[0, 0, 0]
    return torch.cat([places, presence[:, None]], -1).float().cpu().numpy()
