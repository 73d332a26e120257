"""Hindsight: recorded play, relabelled by what did happen, as instructions and key frames. Knows true states, no model.

Whatever a trajectory did to a cube becomes an instruction afterwards (hindsight experience replay, Andrychowicz et al., NeurIPS
2017; language from play, Lynch and Sermanet, RSS 2021). A goal that came true at frame e, by a push that began at b, gives

| group | from | to | caption |
|---|---|---|---|
| behind | the frames before b in which only the robot moved | b | "move behind the red cube" |
| push | frames of the push, more than `stride` before e | `stride` frames on | "push the red cube to the left at 20 31" |
| around | a push to where the way is free | `stride` on, or its end | "push the red cube around the blue cube at 20 31" |
| goal | frames of the push, at most `stride` before e | e | "the red cube is at the left edge at 17 31" |
| done | frames in which the goal is true | the same | "done" |
| edit | frames before e | e | "the red cube is at the left edge at 17 31" |
| next | any frame, without an instruction | `stride` frames on | what moved there, and where it is |

All but "done" end with "pusher 24 31". A place is given in whole px of a 64 px frame, x right and y down: where several places
would do, words decide for one before a frame is drawn, whose tokens then agree with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.subgoals import GROUPS, SubgoalRows
from emu_embodied.envs.tabletop.tasks import COLOURS, OBJECTS, SIDES, Task, goal_tasks
from emu_embodied.errors import DatasetError
from emu_embodied.policies.experts.tabletop_avoiding import gaps
from emu_embodied.types import DONE

from . import hindsight_pusht

HELD_OUT = (("red", "right"), ("green", "left"), ("blue", "top"))  # of 16 pairs of colour and direction
STILL_CM = 0.25  # a cube that moves less was not pushed
QUIET_CM = 0.5  # and others may have moved at most so far
PASS_CM = 5.4  # a cube nearer than that to a cube's straight way is in the way


@dataclass(frozen=True)
class HindsightConfig:
    """What counts as having been done on purpose.

    Attributes:
        stride: frames between key frames of a long push.
        before: most frames from a start to the push's beginning.
        least_cm: a goal counts that had at least so far to go when the push began.
        straight: least cosine between the push and the way to the goal.
        relations: times that rows count whose goal is about two cubes: there are more such goals, each with fewer rows.
        held_out: pairs of colour and direction that no sentence asks for.
    """

    stride: int = 5
    before: int = 12
    least_cm: float = 1.0
    straight: float = 0.85
    relations: int = 2
    held_out: tuple[tuple[str, str], ...] = HELD_OUT


def is_held_out(task: Task, held_out: tuple[tuple[str, str], ...] = HELD_OUT) -> bool:
    """Whether a task's cube and a direction in its goal are one of the pairs."""
    return any((task.cube, where) in held_out for where in task.where.split())


def captions_of(task: Task) -> dict[str, str]:
    """The captions of a goal's key frames, by group."""
    cube, other = f"the {task.cube} cube", f"the {task.other} cube"
    towards = {
        "edge": f"to the {task.where}",
        "corner": f"to the {task.where}",
        "middle": "to the middle",
        "next_to": f"to {other}",
        "beside": f"{SIDES.get(task.where, '')} {other}",
    }
    there = {
        "edge": f"at the {task.where} edge",
        "corner": f"in the {task.where} corner",
        "middle": "in the middle",
        "next_to": f"next to {other}",
        "beside": f"{SIDES.get(task.where, '')} {other}",
    }
    return {
        "behind": f"move behind {cube}",
        "push": f"push {cube} {towards[task.kind]}",
        "goal": f"{cube} is {there[task.kind]}",
        "done": DONE,
    }


def with_places(caption: str, positions_O2: np.ndarray) -> str:
    """A caption with the places of the cube that it names first, if it moves, and of the pusher."""
    if caption == DONE:
        return caption
    words = caption.split()
    cube = next((word for word in words if word in COLOURS), None)
    if cube and words[:2] != ["move", "behind"]:
        caption += " at {} {}".format(*in_px(positions_O2[OBJECTS.index(cube)]))
    return caption + " pusher {} {}".format(*in_px(positions_O2[0]))


def in_px(place_2: np.ndarray) -> tuple[int, int]:
    """A place in cm in whole px of a 64 px frame, x right and y down."""
    x, y = np.clip(np.round(32 + np.array([2, -2]) * place_2), 0, 63).astype(int)
    return int(x), int(y)


def relabel(cache: FrameCache, config: HindsightConfig | None = None) -> SubgoalRows:
    """What happened in a cache of the table-top, or of PushT (`tee_hindsight`), as instructions and key frames.

    Raises:
        DatasetError: states of another world, or in which no goal came true.
    """
    if tuple(cache.names["state"]) == hindsight_pusht.STATES and config is None:
        return hindsight_pusht.relabel_tee(cache)
    config = config or HindsightConfig()
    wanted = [f"{name}.{part}" for name in OBJECTS for part in ("x", "y", "yaw", "present")]
    if list(cache.names["state"]) != wanted:
        raise DatasetError("state names", cache.names["state"][:4], "hindsight reads the table-top's true states")
    tasks = [task for task in goal_tasks(COLOURS) if not is_held_out(task, config.held_out)]
    number = {(task.kind, task.cube, task.where, task.other): i for i, task in enumerate(tasks)}
    captions, rows = {}, []
    for first, last in zip(cache.episode_starts[:-1], cache.episode_starts[1:], strict=True):
        states_TO4 = cache.states[first:last].reshape(-1, len(OBJECTS), 4).astype(np.float64)
        for start, target, task, group, caption in _episode(states_TO4, tasks, config):
            caption = with_places(caption, states_TO4[target, :, :2])
            goal = len(tasks) if task is None else number[task.kind, task.cube, task.where, task.other]
            word = captions.setdefault(caption, len(captions))
            row = (first + start, first + target, goal, word, GROUPS.index(group))
            rows += [row] * (config.relations if task and task.other else 1)
    if not rows:
        raise DatasetError("frames", cache.episodes, "no goal came true in these episodes: record more, or an expert's")
    table = np.array(rows, np.int64).T
    goals = (*(task.phrases() for task in tasks), *(task.edits() for task in tasks))
    edits = table[4] == GROUPS.index("edit")
    table[2][table[4] == GROUPS.index("next")] = len(goals)
    table[2][edits] += len(tasks)
    return SubgoalRows(*table, goals=(*goals, ()), captions=tuple(captions), groups=GROUPS)


Found = Iterator[tuple[int, int, Task | None, str, str]]  # start, target, task, group, caption


def _episode(states_TO4: np.ndarray, tasks: list[Task], config: HindsightConfig) -> Found:
    """The rows of one episode, its frames counted from 0."""
    positions_TO2 = states_TO4[..., :2]
    there = {name for name, state in zip(OBJECTS, states_TO4[0], strict=True) if state[3] > 0}
    moved_TO = np.linalg.norm(np.diff(positions_TO2, axis=0), axis=-1) > STILL_CM
    for task in tasks:
        if {task.cube, task.other} - {""} <= there:
            left_T = task.distance(positions_TO2)
            for e in np.flatnonzero((left_T[1:] <= 0) & (left_T[:-1] > 0)) + 1:
                yield from _event(positions_TO2, moved_TO[:, OBJECTS.index(task.cube)], left_T, task, e, there, config)
    for start in range(0, len(states_TO4) - config.stride, 3):
        if caption := _what_moved(positions_TO2[start], positions_TO2[start + config.stride], there):
            yield start, start + config.stride, None, "next", caption


def _event(positions_TO2, moved_T, left_T, task: Task, e: int, there: set[str], config: HindsightConfig) -> Found:
    """The rows of one goal that came true at frame e."""
    b = e
    while b and moved_T[b - 1]:
        b -= 1
    cube = OBJECTS.index(task.cube)
    others = [o for o, name in enumerate(OBJECTS) if o and o != cube and name in there]
    in_way = _in_the_way(positions_TO2[b], task, others)
    push, ways = (
        positions_TO2[e, cube] - positions_TO2[b, cube],
        task.targets(positions_TO2[b]) - positions_TO2[b, cube],
    )
    ways = ways if in_way else ways[:1]
    along = ways @ push / np.maximum(np.linalg.norm(push) * np.linalg.norm(ways, axis=-1), 1e-9)
    if left_T[b] < config.least_cm or along.max() < config.straight:
        return
    strayed_T = np.linalg.norm(positions_TO2[:, others] - positions_TO2[e, others], axis=-1).max(-1, initial=0)
    captions = captions_of(task)
    legs = [(b, e, "push", captions["push"])]
    if leg := _leg_before(moved_T, b, config.before):
        if blocking := _in_the_way(positions_TO2[leg[0]], task, others):
            legs.append((*leg, "around", f"push the {task.cube} cube around the {blocking} cube"))
    for begin, end, group, caption in legs:
        for start in range(max(0, begin - config.before), end):
            if strayed_T[start : e + 1].max() > QUIET_CM:
                continue
            if start < begin:
                waits = (
                    np.linalg.norm(positions_TO2[start:begin, cube] - positions_TO2[begin, cube], axis=-1).max()
                    < STILL_CM
                )
                walks = np.linalg.norm(positions_TO2[start, 0] - positions_TO2[begin, 0]) > 1.0
                if not (waits and walks):
                    continue
                yield start, begin, task, "behind", captions["behind"]
            elif end - start > config.stride:
                yield start, start + config.stride, task, group, caption
            elif end < e:
                yield start, end, task, group, caption
            else:
                yield start, e, task, "goal", captions["goal"]
            yield start, e, task, "edit", captions["goal"]
    for frame in range(e, min(e + 3, len(left_T))):
        if left_T[frame] <= 0:
            yield frame, frame, task, "done", captions["done"]


def _in_the_way(positions_O2: np.ndarray, task: Task, others: list[int]) -> str:
    """The cube that is in a task's cube's straight way, if there is one."""
    if not others:
        return ""
    cube = positions_O2[OBJECTS.index(task.cube)]
    near = gaps(cube, task.target(positions_O2)[None], positions_O2[others])[0]
    return OBJECTS[others[near.argmin()]] if near.min() < PASS_CM else ""


def _leg_before(moved_T: np.ndarray, b: int, longest: int) -> tuple[int, int] | None:
    """The push before the one that begins at b, from frame to frame, if no more than a walk lies between them."""
    end = b
    while end and not moved_T[end - 1]:
        end -= 1
    if not end or b - end > longest:
        return None
    begin = end
    while begin and moved_T[begin - 1]:
        begin -= 1
    return begin, end


def _what_moved(before_O2: np.ndarray, after_O2: np.ndarray, there: set[str]) -> str:
    """Which thing moved most, and where to; of the cubes rather than of the robot."""
    ways = after_O2 - before_O2
    size = np.linalg.norm(ways, axis=-1) * [name in there for name in OBJECTS]
    which = int(size[1:].argmax()) + 1 if size[1:].max() > 1.0 else 0
    if size[which] < 1.0:
        return ""
    x, y = ways[which]
    where = ("right" if x > 0 else "left") if abs(x) > abs(y) else ("top" if y > 0 else "bottom")
    return f"the {OBJECTS[which]}{' cube' if which else ''} moves to the {where}"
