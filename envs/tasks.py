"""What the table-top's instructions mean: text, and the distance in cm left to do. Knows geometry, not MuJoCo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emu_embodied.errors import InputError

COLOURS = ("red", "green", "blue", "yellow")
UNSEEN_COLOUR = "purple"
OBJECTS = ("pusher", *COLOURS, UNSEEN_COLOUR)

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}
EDGE_CM = 6.0  # "to the left": the cube's centre lies beyond x = -6 cm
CENTRE_CM = 3.0  # "into the middle": within 3 cm of the table's centre
NEXT_TO_CM = 6.5  # "next to": centres within 6.5 cm; cubes are 4.5 cm wide

TEMPLATES = {
    "edge": (
        "push the {cube} cube to the {where}",
        "move the {cube} cube to the {where}",
        "slide the {cube} block to the {where} side",
    ),
    "middle": ("push the {cube} cube into the middle", "move the {cube} block to the centre"),
    "next_to": ("push the {cube} cube next to the {other} cube", "bring the {cube} block to the {other} one"),
}


@dataclass(frozen=True)
class Task:
    """One instruction and its predicate on the true positions.

    Attributes:
        kind: "edge", "middle" or "next_to".
        cube: colour of the cube to move.
        where: a key of DIRECTIONS for "edge", else "".
        other: colour of the reference cube for "next_to", else "".
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
        goal = positions[OBJECTS.index(self.other)] if self.kind == "next_to" else np.zeros(2)
        radius = NEXT_TO_CM - 1.0 if self.kind == "next_to" else 0.0
        away = cube - goal
        return goal + away / max(np.linalg.norm(away), 1e-6) * min(radius, np.linalg.norm(away))


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


def parse_task(instruction: str) -> Task:
    """Finds the task that an instruction means.

    Raises:
        InputError: the instruction is none of the templates over the known colours.
    """
    for task in all_tasks((*COLOURS, UNSEEN_COLOUR)):
        if task.text == instruction:
            return task
    raise InputError("instruction", instruction, f'use a phrase like "{TEMPLATES["edge"][0]}" with cube in {COLOURS}')
