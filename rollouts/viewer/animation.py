"""A moving picture of a planned episode: real, imagined, and each plan's candidates. Knows records, no model and no env."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from emu_embodied.errors import DatasetError
from emu_embodied.rollouts.agents.trace import PlanRecord, PlanTrace
from emu_embodied.rollouts.figures import film
from emu_embodied.rollouts.viewer.episode_record import Record

SCALE, FPS = 4, 4  # enlargement of the frames; steps a second
GREY, FADED = (120, 120, 120), 0.55  # of candidates that were not chosen; how far the frame below them is faded
FRACTION = 4  # bits after the point in which lines are drawn


def animate(record: Record, path: str | Path) -> Path:
    """Writes a GIF of an episode: what happened, what had been imagined of it, and what each plan was chosen among.

    Args:
        record: of an agent that planned in a model.
        path: the file, ending in .gif; its folder exists. A file there is replaced whole.

    Returns:
        The path.

    Raises:
        DatasetError: an episode of which nothing was imagined, or a file of another kind.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise DatasetError("gif", str(path), "give a file that ends in .gif")
    if record.trace is None or not len(record.imagined):
        raise DatasetError("gif", "an episode without plans", "give a run of agent=model")
    real, imagined = (frames.repeat(SCALE, 1).repeat(SCALE, 2) for frames in (record.real, record.imagined))
    sides = {"real": real, "imagined before": imagined, "candidates": _considered(record.trace, real)}
    return film(sides, path, str(record.facts.get("instruction", "")), FPS, scale=1)


def _considered(trace: PlanTrace, frames: np.ndarray) -> np.ndarray:
    """For each frame the one from which the last plan was made, faded, with the plan and what it was chosen among."""
    shown, plans = [], {plan.at: plan for plan in trace.plans}
    canvas = _fade(frames[0])
    for t, frame in enumerate(frames):
        if t in plans:
            canvas = _draw(plans[t], trace, _fade(frame))
        shown.append(canvas)
    return np.stack(shown)


def _draw(plan: PlanRecord, trace: PlanTrace, canvas: np.ndarray) -> np.ndarray:
    """The robot's way in each candidate thin, every object's way in the chosen plan thick and in its colour."""
    for path_TO2 in plan.paths[::-1]:
        _line(canvas, path_TO2[:, 0], trace.scale, GREY, 1)
    for place, name in enumerate(trace.objects):
        if plan.present[place]:
            _line(canvas, plan.chosen[:, place], trace.scale, trace.colours.get(name, GREY), 3)
    return canvas


def _line(canvas: np.ndarray, way_T2: np.ndarray, scale: tuple[float, float], colour: tuple, thickness: int) -> None:
    """Draws a way in world units; `scale` are those at the right and lower edge, 0 is the middle."""
    px_T2 = (way_T2 / np.array(scale) + 1) / 2 * np.array(canvas.shape[1::-1])
    points = np.round(px_T2 * (1 << FRACTION)).astype(np.int32)
    cv2.polylines(canvas, [points], False, colour, thickness, cv2.LINE_AA, FRACTION)


def _fade(frame: np.ndarray) -> np.ndarray:
    return np.round(255 * FADED + (1 - FADED) * frame).astype(np.uint8)
