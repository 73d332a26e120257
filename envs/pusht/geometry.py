"""The shape of PushT's T, its mark, and the units of its world. Knows no simulator and no pixels.

PushT has no unit of length; its square of 512 px counts as 32 cm here, like the table-top. x points right, y down.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from emu_embodied.protocols import SimulatedWorld

TASK = "Push the T-shaped block onto the T-shaped target."
SIDE_PX, PX_PER_CM = 512, 16.0
ARENA_CM = 32.0
REACH_CM = 14.5  # where the pusher is sent to, per axis: its rim then just clears the walls
STEP_CM = 0.6  # the pusher's largest displacement per axis and control step
PUSHER_CM = 15 / PX_PER_CM  # radius
# The T about its centroid at yaw 0, (x0, y0, x1, y1) cm: bar and stem. Its tip is the middle of the stem's end.
CENTROID_CM = np.array([0.0, (3600 * 15 + 2700 * 75) / 6300]) / PX_PER_CM  # from gym_pusht's origin of the T
BOXES_CM = np.array([[-60, 0, 60, 30], [-15, 30, 15, 120]]) / PX_PER_CM - np.tile(CENTROID_CM, 2)
TIP_CM = np.array([0.0, 120.0]) / PX_PER_CM - CENTROID_CM


def turn(yaw: float) -> np.ndarray:
    """The rotation (2, 2) by a yaw in rad: from x to y, so clockwise in the frame, whose y points down."""
    return np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])


# Where the T's centroid and tip belong: the mark's origin is in the middle, turned by 45 degrees.
AIMS_CM = np.stack([CENTROID_CM, CENTROID_CM + TIP_CM]) @ turn(np.pi / 4).T


def to_cm(px) -> np.ndarray:
    """gym_pusht's px (..., 2) as cm from the middle, float64."""
    return np.array(px, np.float64) / PX_PER_CM - ARENA_CM / 2


def to_px(cm) -> np.ndarray:
    """cm from the middle (..., 2) as gym_pusht's px, float64."""
    return (np.asarray(cm, np.float64) + ARENA_CM / 2) * PX_PER_CM


def outside(points: np.ndarray) -> np.ndarray:
    """Distance (...) in cm of points (..., 2) from the T in its own frame; negative inside: of its nearer box's rim."""
    gaps, (x, y) = [], np.moveaxis(points, -1, 0)
    for x0, y0, x1, y1 in BOXES_CM:
        across, down = np.abs(x - (x0 + x1) / 2) - (x1 - x0) / 2, np.abs(y - (y0 + y1) / 2) - (y1 - y0) / 2
        gaps.append(np.hypot(np.maximum(across, 0), np.maximum(down, 0)) + np.minimum(np.maximum(across, down), 0))
    return np.minimum(*gaps)


@runtime_checkable
class MarkedWorld(SimulatedWorld, Protocol):
    """PushT, as far as its mark goes."""

    def aims(self) -> np.ndarray:
        """Where the T's centroid and tip belong: (2, 2) float64 in cm."""
        ...
