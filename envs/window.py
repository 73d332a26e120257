"""A window on the screen for render_mode="human". Knows OpenCV, and neither an env nor a model."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence

import numpy as np

from emu_embodied.errors import InputError

TILES_PX = 1024  # most px a side that many pictures take together


def has_screen() -> bool:
    """Whether a window can be shown here."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def render_modes() -> list[str]:
    """The modes that work here: "human" needs a screen."""
    return ["rgb_array", "human"] if has_screen() else ["rgb_array"]


class Window:
    """Shows frames at their own pace; opened by the first.

    Args:
        title: of the window.
        fps: frames a second, as fast as it goes at most.

    Raises:
        InputError: there is no screen, or OpenCV was built without windows.
    """

    def __init__(self, title: str, fps: float) -> None:
        if not has_screen():
            raise InputError("render_mode", "human", "there is no screen (DISPLAY is not set): choose 'rgb_array'")
        self.title, self.fps, self._due, self._open = title, fps, 0.0, False

    def show(self, frames: Sequence[np.ndarray]) -> None:
        """Shows pictures (H, W, 3) uint8 of one size, side by side, and waits until it is time for the next."""
        import cv2

        try:
            cv2.imshow(self.title, tiled(frames)[..., ::-1])
            cv2.waitKey(max(1, round(1e3 * (self._due - time.monotonic()))))
        except cv2.error as error:
            raise InputError(
                "render_mode", "human", f"choose 'rgb_array': OpenCV has no windows here ({error})"
            ) from error
        self._due, self._open = time.monotonic() + 1 / self.fps, True

    def close(self) -> None:
        """Closes the window, if one was opened."""
        if self._open:
            import cv2

            cv2.destroyWindow(self.title)
            self._open = False


def tiled(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) as one, row by row in a square, made smaller where they would be more than `TILES_PX` a side."""
    side = math.ceil(math.sqrt(len(frames)))
    height, width = frames[0].shape[:2]
    grid = np.zeros((side * side, height, width, 3), np.uint8)
    grid[: len(frames)] = frames
    grid = grid.reshape(side, side, height, width, 3).swapaxes(1, 2).reshape(side * height, side * width, 3)
    step = math.ceil(max(grid.shape[:2]) / TILES_PX)
    return np.ascontiguousarray(grid[::step, ::step])
