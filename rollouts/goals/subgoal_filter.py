"""Which subgoals to reject: those that no push can lead to. Knows object detection and words, no proposer's insides.

A subgoal is drawn, so it may lose or invent a cube, change its colour, or move one that was not named; and a scene that looks
right may still be out of reach, which a small plan in a world model's imagination tells beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from emu_embodied.envs.tabletop.env import RGB, TABLE_CM
from emu_embodied.errors import ConfigError
from emu_embodied.policies.planners.base import SearchPlanner
from emu_embodied.policies.subgoal_manager import SubgoalConfig, SubgoalManager, see_places
from emu_embodied.protocols import SubgoalProposer, WorldModel
from emu_embodied.rollouts.agents.mpc import MPCAgent, MPCConfig
from emu_embodied.rollouts.object_detection import detector_named
from emu_embodied.types import History, Observation, Subgoal, short_repr

STRAY_CM = 2.0  # things that the instruction does not name may go so far
REACH_CM = 3.0  # a subgoal is reachable where imagination gets the named things so near
MOVED_CM = 1.0


@dataclass(frozen=True)
class Sight:
    """Where things are in a frame, read from its pixels by a fixed rule.

    Attributes:
        names: of the things, the robot first.
        palette: (O, 3) RGB in 0..255.
        scale: world units at the frame's right and lower edge.
        eye: one of `object_detection.DETECTORS`.
        landmarks: thing -> the thing whose second point it is.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    scale: tuple[float, float]
    eye: str = "colours"
    landmarks: Mapping[str, str] = field(default_factory=dict)

    __repr__ = short_repr

    @classmethod
    def of(cls, world: Any) -> Sight:
        """That of a model's world, a `checkpoint.World`."""
        palette = np.array([tuple(rgb) for rgb in world.objects.values()], np.float32)
        return cls(tuple(world.objects), palette, tuple(world.position_scale), world.eye, world.landmarks)

    @classmethod
    def of_tabletop(cls) -> Sight:
        """That of the table-top's cubes in their training colours, and of its dark pusher."""
        names = [name for name in RGB if name != "purple"]
        palette = np.array([(26, 26, 31), *(np.array(RGB[name]) * 255 for name in names)], np.float32)
        return cls(("pusher", *names), palette, (TABLE_CM / 2, -TABLE_CM / 2))

    def see(self, frame: np.ndarray) -> np.ndarray:
        """Places (O, 3) float32 in a frame (H, W, 3) uint8: x and y in world units, 0 where not found, and presence."""
        positions, found = detector_named(self.eye)(frame[None], self.palette)
        places = np.nan_to_num((positions[0] - 32) / 32 * np.array(self.scale))
        return np.concatenate([places, found[0][:, None]], -1).astype(np.float32)


def named_things(instruction: str, objects: Sequence[str], landmarks: Mapping[str, str] | None = None) -> list[str]:
    """The objects whose names are words of an instruction, in the order of the words, and their landmarks."""
    words = re.findall(r"\w+", instruction)
    named = [word for word in dict.fromkeys(words) if word in objects]
    return named + [point for point, thing in (landmarks or {}).items() if thing in named and point in objects]


def faults(start: Observation, subgoal: Subgoal, objects: Sequence[str], sight: Sight) -> list[str]:
    """What speaks against a subgoal: things lost, invented or moved that the instruction does not name; empty if nothing.

    Both are asked: the proposer's places, and the detector on the pixels.

    Args:
        start: what was seen when the subgoal was proposed, and the instruction.
        subgoal: what was proposed.
        objects: names of the proposer's objects.
        sight: reads frames.
    """
    named = named_things(start.instruction, sight.names, sight.landmarks)
    before = dict(zip(sight.names, sight.see(start.pixels), strict=True))
    proposed = dict(zip(objects, subgoal.places, strict=True))
    found = []
    for how, after in (
        ("by its places", proposed),
        ("by eye", dict(zip(sight.names, sight.see(subgoal.frame), strict=True))),
    ):
        for name in sight.names[1:]:
            if name not in after:
                continue
            was, now = before[name][2] > 0.5, after[name][2] > 0.5
            if was != now:
                found.append(f"{name} {'lost' if was else 'invented'} {how}")
            elif was and name not in named and np.linalg.norm(after[name][:2] - before[name][:2]) > STRAY_CM:
                found.append(f"{name} moved {how}")
    return found


class ScriptedSubgoals:
    """A proposer of what is given; whenever it is asked again it leaves out the first, and at the end all is done."""

    def __init__(self, subgoals: Sequence[Subgoal], objects: Sequence[str]) -> None:
        self.subgoals, self.objects = list(subgoals), tuple(objects)

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """See `protocols.SubgoalProposer`."""
        given, self.subgoals = self.subgoals, self.subgoals[1:]
        return given


def carry_out(
    model: WorldModel,
    history: History,
    subgoals: Sequence[Subgoal],
    objects: Sequence[str],
    planner: SearchPlanner,
    config: SubgoalConfig | None = None,
    steps: int = 40,
) -> np.ndarray:
    """Follows subgoals in turn in a model's own imagination, where what is planned is what happens.

    Args:
        model: where it happens: a world model, or the oracle, whose imagination is the true simulator.
        history: of one world.
        subgoals, objects: what is wanted, and the proposer's object names.
        planner: `config.execute` of its steps are between two looks.
        config: settings; a subgoal that is not reached in time is left out.
        steps: most model steps.

    Returns:
        Places (L, O, 3) of the model's objects at each look, the first before anything was done.
    """
    manager = SubgoalManager(ScriptedSubgoals(subgoals, objects), model.objects, config)
    agent = MPCAgent(model, planner, MPCConfig(planner.config.execute))
    agent.reset([history], [manager])
    pursuit = agent.pursuits[0]
    while manager.stopped_at is None and pursuit.steps < steps:
        agent.act([history])
        assert pursuit.last is not None
        history, _ = model.step(history, pursuit.last[None])
    last = [] if manager.stopped_at is not None else [see_places(model, history)]
    return np.stack(pursuit.looked + last)


def closest(path: np.ndarray, names: Sequence[str], wanted: Mapping[str, np.ndarray]) -> float:
    """The least, over a path (L, O, 3) of named things, of how far the worst of some is from its wanted place (3,)."""
    rows = [list(names).index(name) for name in wanted]
    places = np.stack([wanted[name] for name in wanted])
    return float(np.linalg.norm(path[:, rows, :2] - places[:, :2], axis=-1).max(-1).min())


class FilteredProposer:
    """Has subgoals drawn again until nothing speaks against them; else gives the best that came.

    The best has the fewest faults, then comes nearest in imagination, then is likeliest.

    Args:
        proposer: who draws; where it has `again`, that draws whatever comes after the first.
        sight: reads frames.
        tries: most drawings.
        model, planner: where they are tried out in imagination, by a small budget; None is not at all.
        config: settings of that trial.

    Attributes:
        drawn, rejected: chains so far.

    Raises:
        ConfigError: less than one try, or a model without a planner.
    """

    def __init__(
        self,
        proposer: SubgoalProposer,
        sight: Sight,
        tries: int = 4,
        model: WorldModel | None = None,
        planner: SearchPlanner | None = None,
        config: SubgoalConfig | None = None,
    ) -> None:
        if type(tries) is not int or tries < 1:
            raise ConfigError("tries", tries, "give a whole number of at least 1")
        if (model is None) != (planner is None):
            raise ConfigError("planner", planner, "imagination needs a model and a planner: give both or none")
        self.proposer, self.sight, self.tries, self.config = proposer, sight, tries, config
        self.model, self.planner, self.objects = model, planner, proposer.objects
        self.drawn = self.rejected = 0

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """See `protocols.SubgoalProposer`; that all is done is believed at the first drawing."""
        best: tuple[tuple[float, ...], list[Subgoal]] | None = None
        for attempt in range(self.tries):
            proposer = getattr(self.proposer, "again", self.proposer) if attempt else self.proposer
            chain = proposer.propose(observation, count, seed + 1_000_003 * attempt)
            if not chain:
                return []
            wrong = sum(len(faults(observation, subgoal, self.objects, self.sight)) for subgoal in chain)
            far = 0.0
            if self.model is not None and self.planner is not None and not wrong:
                far = self._miss(self.model, self.planner, observation, chain)
            self.drawn += 1
            if not wrong and far <= REACH_CM:
                return chain
            self.rejected += 1
            unlikely = -float(np.mean([subgoal.log_prob for subgoal in chain]))
            if best is None or (wrong, far, unlikely) < best[0]:
                best = (wrong, far, unlikely), chain
        assert best is not None  # of the first try
        return best[1]

    def _miss(
        self, model: WorldModel, planner: SearchPlanner, observation: Observation, chain: list[Subgoal]
    ) -> float:
        """How near in world units imagination brings the things that a chain moves to where its end has them."""
        history = model.encode([replace(observation, instruction="")])  # whose words it may not know
        before = dict(zip(model.objects, see_places(model, history), strict=True))
        wanted = dict(zip(self.objects, chain[-1].places, strict=True))
        named = named_things(observation.instruction, self.sight.names, self.sight.landmarks)
        things = [name for name in named if name in wanted and name in before]
        moved = [name for name in things if np.linalg.norm(wanted[name][:2] - before[name][:2]) > MOVED_CM]
        if not moved:
            return 0.0
        path = carry_out(model, history, chain, self.objects, planner, self.config)
        return closest(path, model.objects, {name: wanted[name] for name in moved})
