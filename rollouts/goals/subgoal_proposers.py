"""Proposers of subgoals that no model drew: the truth, and controls that tell what a learnt one is worth. They know the
simulators and recorded frames, no checkpoint."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.envs.tabletop.tasks import OBJECTS, Task, TaskWorld, all_tasks, parse_task, task_of
from emu_embodied.errors import DatasetError, InputError
from emu_embodied.protocols import NamedWorld, SimulatedWorld, SubgoalProposer
from emu_embodied.rollouts.simulator_model import PreservedState
from emu_embodied.types import Observation, Subgoal

from .task_costs import MAX_STEPS, expert_policy

STRIDE = 5  # model steps of pushing from key frame to key frame
STILL_CM = 0.2  # a thing that goes less far in a step stands still
PUSH_CM = 1.0  # and one that does not get so far was only touched
TRIES = (0.0, 0.2, 0.4, 0.6)  # of the expert, with so much noise in its actions
ABSENT_CM = 16.0  # what an object counts that is in one of two scenes only


class TrueSubgoals:
    """Key frames of the scripted expert's own way, played in the simulator from its present state, which is then put back.

    They are, for each push of the thing, the last frame before it, while more than `STRIDE` steps of it are left the frame so
    many steps on, and its end; and the first frame in which the predicate holds. Where the expert gets stuck it tries again
    with noise; where that does not help, none is `last`.

    Args:
        env: the table-top or PushT, after its reset. PushT it puts back but for its contact solver's memory.

    Raises:
        InputError: another env.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self.env, self.world = env, _truth(env)
        self.objects = objects_of(self.world)

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """See `protocols.SubgoalProposer`. Nothing is left to chance; of the observation only the instruction counts.

        Raises:
            InputError: an instruction that means nothing on the table-top, or is about a cube that is not there.
        """
        with PreservedState(self.world, np.random.default_rng(0)), TemporaryTask(self.world, observation.instruction) as thing:
            first, *more = TRIES
            states, path, done = self._play(self.objects.index(thing), first)
            for noise in more:
                if done:
                    break
                states, path, done = self._play(self.objects.index(thing), noise)
            end = len(states) - 1
            if done and not end:
                return []
            begins, steps = key_steps(path)
            name = f"{thing} cube" if thing in OBJECTS else thing
            captions = dict.fromkeys(begins, f"move behind the {name}")
            subgoals = []
            for t in steps[:count]:
                self.world.set_state(states[t])
                caption = captions.get(t, observation.instruction)
                subgoals.append(Subgoal(caption, *see_truth(self.world), 0.0, done and t == end))
            return subgoals

    def _play(self, thing: int, noise: float) -> tuple[list[np.ndarray], np.ndarray, bool]:
        """The expert's states up to success, T of them, the path (T, 2) of a thing, and whether it succeeded."""
        start, act, rng = self.world.get_state(), expert_policy(self.env, avoiding=True), np.random.default_rng(0)
        states, path = [start], [places_of(self.world)[thing, :2]]
        while len(states) <= MAX_STEPS and not self.world.judge()[1]:
            self.world.act(np.clip(act() + rng.normal(0, noise, 2), -1, 1))
            states.append(self.world.get_state())
            path.append(places_of(self.world)[thing, :2])
        done = self.world.judge()[1]
        self.world.set_state(start)
        return states, np.stack(path), done


def key_steps(path: np.ndarray) -> tuple[list[int], list[int]]:
    """Where pushes of a thing begin on its path (T, 2), and the steps of the key frames; see `TrueSubgoals`."""
    end = len(path) - 1
    moving = np.concatenate([[False], np.linalg.norm(np.diff(path, axis=0), axis=-1) > STILL_CM, [False]])
    pushes = np.flatnonzero(moving[1:] != moving[:-1]).reshape(-1, 2)  # from step to step
    pushes = [(b, e) for b, e in pushes.tolist() if e == end or np.linalg.norm(path[e] - path[b]) > PUSH_CM]
    begins = [b for b, _ in pushes if b > 0]
    steps = {step for b, e in pushes for step in (b, *range(b + STRIDE, e, STRIDE), e) if step > 0}
    return begins, sorted(steps | {end})


class CopyCurrent:
    """The frame seen now as the only subgoal: nothing is asked for.

    Args:
        env: the table-top or PushT, which tells where things are.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self.world = _truth(env)
        self.objects = objects_of(self.world)

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """See `protocols.SubgoalProposer`."""
        return [Subgoal(observation.instruction, observation.pixels, places_of(self.world), 0.0, True)]


class Retrieved:
    """The last frame of the recorded episode that had the same instruction and the most similar start.

    Where no episode had that instruction, all are looked through.

    Args:
        env: the table-top or PushT, which tells where things are.
        cache: the recorded episodes.
        nearest: False takes an episode by the proposal's seed instead: a frame of the same kind that has nothing to do with it.

    Raises:
        DatasetError: the recordings are of another world, or of frames of another size.
    """

    def __init__(self, env: gymnasium.Env, cache: FrameCache, nearest: bool = True) -> None:
        self.world, self.cache, self.nearest = _truth(env), cache, nearest
        self.objects = objects_of(self.world)
        names, size = cache.names.get("state"), self.world.config.image_size
        if list(names or ()) != list(self.world.state_names) or cache.pixels.shape[1] != size:
            rule = f"give frames of {size} px of this env's own states, as `emu-embodied collect` and `train` make them"
            raise DatasetError("recordings", f"{cache.pixels.shape[1]} px of {(names or [])[:4]}...", rule)
        self._starts, self._ends = cache.episode_starts[:-1], cache.episode_starts[1:] - 1

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """See `protocols.SubgoalProposer`."""
        same = [i for i, text in enumerate(self.cache.instructions) if text == observation.instruction]
        episodes = np.array(same if same and self.nearest else range(self.cache.episodes))
        if self.nearest:
            starts = self._places(self._starts[episodes])
            chosen = episodes[scene_distance(starts, places_of(self.world)).argmin()]
        else:
            chosen = np.random.default_rng([seed, 11]).choice(episodes)
        last = self._ends[chosen]
        places = self._places(np.array([last]))[0]
        return [Subgoal(self.cache.instructions[chosen], self.cache.pixels[last], places, 0.0, True)]

    def _places(self, frames: np.ndarray) -> np.ndarray:
        return _known(self.cache.states[frames])


class Reinstructed:
    """A proposer that is given another instruction than the episode's.

    Args:
        proposer: who proposes.
        instruction: what it is given in the place of the episode's.
    """

    def __init__(self, proposer: SubgoalProposer, instruction: str) -> None:
        self.proposer, self.instruction, self.objects = proposer, instruction, proposer.objects

    @property
    def again(self) -> Reinstructed:
        """What the proposer would draw after its first."""
        return Reinstructed(getattr(self.proposer, "again", self.proposer), self.instruction)

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """See `protocols.SubgoalProposer`."""
        instructed = Observation(observation.pixels, observation.agent_pos, self.instruction)
        return self.proposer.propose(instructed, count, seed)


def another_instruction(env: gymnasium.Env, seed: int) -> str:
    """An instruction about a cube that is there, with another meaning than the episode's, and not fulfilled yet if possible.

    Raises:
        InputError: an env that is not the table-top, or not reset: nothing else has several instructions.
    """
    world, own = env.unwrapped, task_of(env.unwrapped)
    if not isinstance(world, TaskWorld) or own is None:
        raise InputError(
            "env", type(world).__name__, "another instruction is known of the table-top only, after its reset"
        )
    present = world.environment_state().reshape(-1, 4)[:, 3] > 0.5
    colours = tuple(name for name, there in zip(OBJECTS[1:], present[1:], strict=True) if there)
    others = [task for task in all_tasks(colours) if _meaning(task) != _meaning(own)]
    undone = [task for task in others if task.distance(world.positions()) > 2.0]
    chosen = undone or others
    return chosen[np.random.default_rng([seed, 9]).integers(len(chosen))].text


def scene_distance(scenes: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """Mean way (N,) in world units between things of scenes (N, O, 3) and of one (O, 3), places and presence."""
    there, here = scenes[..., 2] > 0.5, scene[:, 2] > 0.5
    ways = np.linalg.norm(scenes[..., :2] - scene[:, :2], axis=-1)
    counted = np.where(there & here, ways, np.where(there | here, ABSENT_CM, 0.0))
    return counted.sum(-1) / np.maximum((there | here).sum(-1), 1)


def objects_of(world: NamedWorld) -> tuple[str, ...]:
    """The names of a simulator's objects."""
    return tuple(dict.fromkeys(name.partition(".")[0] for name in world.state_names))


def places_of(world: SimulatedWorld) -> np.ndarray:
    """Where a simulator's objects truly are: (O, 3) float32, x and y in world units and presence."""
    return _known(world.environment_state())


def see_truth(world: SimulatedWorld) -> tuple[np.ndarray, np.ndarray]:
    """A simulator's frame as it is now, and its places."""
    return world.frame(world.config.image_size), places_of(world)


def _known(states: np.ndarray) -> np.ndarray:
    return states.reshape(*states.shape[:-1], -1, 4)[..., [0, 1, 3]].astype(np.float32)


def _truth(env: gymnasium.Env) -> SimulatedWorld:
    world = env.unwrapped
    if not isinstance(world, SimulatedWorld):
        raise InputError("env", type(world).__name__, "the truth is known of the table-top and PushT only")
    return world


def _meaning(task: Task) -> tuple:
    """What is the same for instructions that mean the same."""
    return task.kind, *(sorted((task.cube, task.other)) if task.other else (task.cube, task.where))


class TemporaryTask:
    """Gives a simulator an instruction for a while; the thing that it is about."""

    def __init__(self, world: Any, instruction: str) -> None:
        self.world, self.own = world, task_of(world)
        self.task = parse_task(instruction) if self.own is not None else None
        if self.task is not None:
            there = dict(zip(objects_of(world), places_of(world)[:, 2], strict=True))
            missing = [name for name in (self.task.cube, self.task.other) if name and there[name] < 0.5]
            if missing:
                raise InputError("instruction", instruction, f"there is no {missing[0]} cube on the table")

    def __enter__(self) -> str:
        if self.task is None:
            return "T"
        self.world.task_spec = self.task
        return self.task.cube

    def __exit__(self, *_) -> None:
        if self.task is not None:
            self.world.task_spec = self.own
