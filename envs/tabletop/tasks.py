"""What the table-top's instructions mean: text, and the distance in cm left to do. Knows geometry, not MuJoCo."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from emu_embodied.errors import InputError
from emu_embodied.protocols import SimulatedWorld

COLOURS = ("red", "green", "blue", "yellow")
UNSEEN_COLOUR = "purple"
OBJECTS = ("pusher", *COLOURS, UNSEEN_COLOUR)

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}
EDGE_CM = 6.0  # "to the left": the cube's centre lies beyond x = -6 cm
CENTRE_CM = 3.0  # "into the middle": within 3 cm of the table's centre
NEXT_TO_CM = 6.5  # "next to": centres within 6.5 cm; cubes are 4.5 cm wide
CORNER_CM = 5.0  # "in the top left corner": beyond 5 cm on both axes
BESIDE_CM = (4.0, 9.0)  # "left of": the centre lies so far to the left of the other's,
ABREAST_CM = 3.0  # and at most so far above or below it
GRID_CM = np.stack(np.meshgrid(*2 * [np.arange(-8.25, 9.0, 1.5)]), -1).reshape(-1, 2)  # places a cube can be pushed to
NEAR_CM = 0.7 * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])

TEMPLATES = {
    "edge": (
        "push the {cube} cube to the {where}",
        "move the {cube} cube to the {where}",
        "slide the {cube} block to the {where} side",
    ),
    "middle": ("push the {cube} cube into the middle", "move the {cube} block to the centre"),
    "next_to": ("push the {cube} cube next to the {other} cube", "bring the {cube} block to the {other} one"),
}

CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}
# All sentence templates, 40 without their colours and directions; an episode's own task is drawn from TEMPLATES alone.
PHRASES = {
    "edge": (
        *TEMPLATES["edge"],
        "shove the {cube} cube to the {where} edge",
        "push the {cube} block to the {where} edge of the table",
        "get the {cube} cube to the {where}",
        "bring the {cube} block to the {where} side",
        "put the {cube} cube at the {where} edge",
        "the {cube} cube should be at the {where}",
    ),
    "middle": (
        *TEMPLATES["middle"],
        "slide the {cube} cube to the middle of the table",
        "bring the {cube} cube to the centre",
        "get the {cube} block into the middle",
        "put the {cube} cube in the centre of the table",
    ),
    "next_to": (
        *TEMPLATES["next_to"],
        "move the {cube} cube to the {other} cube",
        "slide the {cube} block next to the {other} block",
        "shove the {cube} cube against the {other} one",
        "put the {cube} cube beside the {other} cube",
    ),
    "corner": (
        "push the {cube} cube into the {where} corner",
        "move the {cube} block to the {where} corner",
        "slide the {cube} cube to the {where} corner of the table",
        "bring the {cube} cube into the {where} corner",
        "put the {cube} block in the {where} corner",
        "the {cube} cube should be in the {where} corner",
    ),
    "beside": (
        "push the {cube} cube {side} the {other} one",
        "move the {cube} cube {side} the {other} cube",
        "slide the {cube} block {side} the {other} block",
        "bring the {cube} cube {side} the {other} one",
        "put the {cube} block {side} the {other} cube",
        "the {cube} cube should be {side} the {other} cube",
    ),
}
EDITS = {  # one change of the picture, without the way to it
    "edge": ("make the {cube} cube be at the {where} edge", "show the {cube} cube at the {where}"),
    "middle": ("make the {cube} cube be in the middle", "show the {cube} cube in the middle"),
    "next_to": ("make the {cube} cube be next to the {other} one",),
    "corner": ("make the {cube} cube be in the {where} corner",),
    "beside": ("make the {cube} cube be {side} the {other} one",),
}


@dataclass(frozen=True)
class Task:
    """One instruction and its predicate on the true positions.

    Attributes:
        kind: "edge", "middle", "next_to", "corner" or "beside".
        cube: colour of the cube to move.
        where: a key of DIRECTIONS for "edge" and "beside", one of CORNERS for "corner", else "".
        other: colour of the reference cube for "next_to" and "beside", else "".
        text: the instruction.
    """

    kind: str
    cube: str
    where: str = ""
    other: str = ""
    text: str = ""

    def distance(self, positions):
        """The distance the cube's centre still has to go, in cm; 0 means success.

        Args:
            positions: (..., O, 2) array or tensor of x, y in cm, O in the order of OBJECTS.

        Returns:
            (...) of the same kind.
        """
        cube = positions[..., OBJECTS.index(self.cube), :]
        if self.kind == "edge":
            dx, dy = DIRECTIONS[self.where]
            left = EDGE_CM - (cube[..., 0] * dx + cube[..., 1] * dy)
        elif self.kind == "middle":
            left = (cube**2).sum(-1) ** 0.5 - CENTRE_CM
        elif self.kind == "corner":
            dx, dy = corner_signs(self.where)
            across, up = (CORNER_CM - cube[..., 0] * dx).clip(0), (CORNER_CM - cube[..., 1] * dy).clip(0)
            left = (across**2 + up**2) ** 0.5
        elif self.kind == "beside":
            dx, dy = DIRECTIONS[self.where]
            away = cube - positions[..., OBJECTS.index(self.other), :]
            along, aside = away[..., 0] * dx + away[..., 1] * dy, away[..., 0] * dy - away[..., 1] * dx
            gap = (BESIDE_CM[0] - along).clip(0) + (along - BESIDE_CM[1]).clip(0)
            left = (gap**2 + ((aside**2) ** 0.5 - ABREAST_CM).clip(0) ** 2) ** 0.5
        else:
            other = positions[..., OBJECTS.index(self.other), :]
            left = ((cube - other) ** 2).sum(-1) ** 0.5 - NEXT_TO_CM
        return left.clip(0)

    def target(self, positions: np.ndarray) -> np.ndarray:
        """Where the cube should be pushed, (2,) cm, 1.5 cm inside the goal, from positions (O, 2)."""
        cube = positions[OBJECTS.index(self.cube)]
        if self.kind == "edge":
            direction = np.array(DIRECTIONS[self.where], np.float64)
            return cube + direction * max(0.0, EDGE_CM + 1.5 - cube @ direction)
        if self.kind == "corner":
            signs = np.array(corner_signs(self.where), np.float64)
            return signs * np.maximum(cube * signs, CORNER_CM + 1.0)
        if self.kind == "beside":
            direction, other = np.array(DIRECTIONS[self.where], np.float64), positions[OBJECTS.index(self.other)]
            aside, away = np.array([direction[1], -direction[0]]), cube - other
            along = np.clip(away @ direction, BESIDE_CM[0] + 1.5, BESIDE_CM[1] - 1.5)
            return other + along * direction + np.clip(away @ aside, 1.5 - ABREAST_CM, ABREAST_CM - 1.5) * aside
        goal = positions[OBJECTS.index(self.other)] if self.kind == "next_to" else np.zeros(2)
        radius = NEXT_TO_CM - 1.0 if self.kind == "next_to" else 0.0
        away = cube - goal
        return goal + away / max(np.linalg.norm(away), 1e-6) * min(radius, np.linalg.norm(away))

    def targets(self, positions: np.ndarray) -> np.ndarray:
        """Places (K, 2) in cm where the cube would be in its goal, all around it too; `target` comes first."""
        around = positions + np.zeros((len(NEAR_CM), len(GRID_CM), *positions.shape))
        around[..., OBJECTS.index(self.cube), :] = GRID_CM + NEAR_CM[:, None]
        inside = (self.distance(around) <= 0).all(0)
        return np.vstack([self.target(positions), GRID_CM[inside]])

    def phrases(self) -> tuple[str, ...]:
        """The sentences that ask for it."""
        return self._filled(PHRASES)

    def edits(self) -> tuple[str, ...]:
        """The sentences that ask for the picture in which it is done."""
        return self._filled(EDITS)

    def _filled(self, templates: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        names = {"cube": self.cube, "where": self.where, "other": self.other, "side": SIDES.get(self.where, "")}
        return tuple(text.format(**names) for text in templates[self.kind])


def all_tasks(colours: tuple[str, ...]) -> list[Task]:
    """Every task that makes sense for the cubes on the table, one per text."""
    tasks = []
    for cube in colours:
        for text in TEMPLATES["edge"]:
            tasks += [Task("edge", cube, where=w, text=text.format(cube=cube, where=w)) for w in DIRECTIONS]
        tasks += [Task("middle", cube, text=text.format(cube=cube)) for text in TEMPLATES["middle"]]
        for other in colours:
            if other != cube:
                tasks += [
                    Task("next_to", cube, other=other, text=text.format(cube=cube, other=other))
                    for text in TEMPLATES["next_to"]
                ]
    return tasks


def goal_tasks(colours: tuple[str, ...]) -> list[Task]:
    """Every distinct goal for the cubes on the table, without a text; `Task.say` gives it one."""
    tasks = []
    for cube in colours:
        tasks += [Task("edge", cube, where=where) for where in DIRECTIONS]
        tasks += [Task("corner", cube, where=where) for where in CORNERS]
        tasks.append(Task("middle", cube))
        for other in colours:
            if other != cube:
                tasks.append(Task("next_to", cube, other=other))
                tasks += [Task("beside", cube, where, other) for where in DIRECTIONS]
    return tasks


def corner_signs(where: str) -> tuple[int, int]:
    """Signs of x and y in a corner."""
    up, across = where.split()
    return DIRECTIONS[across][0], DIRECTIONS[up][1]


@functools.cache
def _sentences() -> dict[str, Task]:
    """All sentences about the known colours, and their tasks; where two tasks have the same, the env's own."""
    goals = goal_tasks((*COLOURS, UNSEEN_COLOUR))
    sentences = {text: replace(task, text=text) for task in goals for text in (*task.phrases(), *task.edits())}
    return sentences | {task.text: task for task in all_tasks((*COLOURS, UNSEEN_COLOUR))}


def parse_task(instruction: str) -> Task:
    """Finds the task that an instruction means.

    Raises:
        InputError: the instruction is none of the templates over the known colours.
    """
    if isinstance(instruction, str) and instruction in _sentences():
        return _sentences()[instruction]
    raise InputError("instruction", instruction, f'use a phrase like "{TEMPLATES["edge"][0]}" with cube in {COLOURS}')


@runtime_checkable
class TaskWorld(SimulatedWorld, Protocol):
    """The table-top, as far as its task goes.

    Attributes:
        task_spec: the episode's task; None before the first reset.
    """

    task_spec: Task | None

    def positions(self) -> np.ndarray:
        """True positions (O, 2) in cm, in the order of `OBJECTS`."""
        ...


def task_of(world: object) -> Task | None:
    """The task of the table-top's present episode; None of any other env."""
    return world.task_spec if isinstance(world, TaskWorld) else None
