"""Pictures and videos of what was real and what was imagined, side by side. Knows frames only, no env and no model."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from emu_embodied.errors import InputError
from emu_embodied.storage.atomic import write_bytes, writing
from emu_embodied.validation import whole_number

INK, PAPER, GAP = (40, 40, 40), 255, 2  # text colour, background, px between frames
FONT, LINE = cv2.FONT_HERSHEY_SIMPLEX, 22  # px per line of text
LINES = 3  # of text above a subgoal
HOLD_SECONDS = 1.0  # a video rests on its last frame, for people


def strip(
    real: np.ndarray,
    imagined: np.ndarray,
    path: str | Path,
    title: str = "",
    columns: int = 8,
    scale: int = 3,
    subgoals: Sequence[tuple[str, np.ndarray]] = (),
) -> Path:
    """Writes a PNG with rows real, imagined and difference, and time steps as columns, and a row of subgoals above.

    Args:
        real: (T, H, W, 3) uint8.
        imagined: the same shape; empty where nothing was imagined, which leaves one row.
        path: the file; its folder exists. A file there is replaced whole.
        title: the line above, for instance the instruction.
        columns: most time steps shown, spread evenly from the first to the last.
        scale: enlargement, nearest neighbour.
        subgoals: (caption, frame (H, W, 3) uint8) of each; the first `columns` are shown, each with its caption above.

    Returns:
        The path.

    Raises:
        InputError: frames of another shape or dtype, or columns or scale below 1.
    """
    real, imagined = _check(real, imagined)
    for name, value in (("columns", columns), ("scale", scale)):
        whole_number(name, value, 1, error=InputError)
    steps = np.unique(np.linspace(0, len(real) - 1, min(columns, len(real))).round().astype(int))
    rows = [("real", real)]
    if len(imagined):
        rows += [("imagined", imagined), ("difference", _difference(real, imagined))]
    height, width = (scale * side + GAP for side in real.shape[1:3])
    shown = list(subgoals)[:columns]
    left, top = 100, (LINE if title else 0) + LINE
    above = (LINES * LINE + height) if shown else 0
    across = max(len(steps), len(shown)) * width
    canvas = np.full((top + above + len(rows) * height, left + across, 3), PAPER, np.uint8)
    _write(canvas, title, 4, LINE - 6, canvas.shape[1] - 8)
    if shown:
        _write(canvas, "subgoals", 4, top - LINE + above - height // 2)
        _row_of_subgoals(canvas, shown, (left, LINE if title else 0), (width, height), scale)
    top += above
    for i, t in enumerate(steps):
        _write(canvas, f"t={t}", left + i * width + 2, top - 6)
    for j, (name, frames) in enumerate(rows):
        _write(canvas, name, 4, top + j * height + height // 2)
        for i, t in enumerate(steps):
            y, x = top + j * height, left + i * width
            canvas[y : y + height - GAP, x : x + width - GAP] = _enlarge(frames[t], scale)
    return _save_png(canvas, Path(path))


def storyboard(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: str | Path, title: str = "", scale: int = 3
) -> Path:
    """Writes a PNG with a row of frames for each story, each frame under its caption.

    Args:
        rows: (caption, frame (H, W, 3) uint8) of each; at least one, all of one size.
        path: the file; its folder exists. A file there is replaced whole.
        title: the line above, for instance the instruction.
        scale: enlargement, nearest neighbour.
    """
    side = rows[0][0][1].shape
    height, width = scale * side[0] + LINES * LINE + GAP, scale * side[1] + GAP
    top = LINE if title else 0
    canvas = np.full((top + len(rows) * height, max(map(len, rows)) * width, 3), PAPER, np.uint8)
    _write(canvas, title, 4, LINE - 6, canvas.shape[1] - 8)
    for i, row in enumerate(rows):
        _row_of_subgoals(canvas, row, (0, top + i * height), (width, height - LINES * LINE), scale)
    return _save_png(canvas, Path(path))


def _row_of_subgoals(
    canvas: np.ndarray,
    subgoals: Sequence[tuple[str, np.ndarray]],
    corner: tuple[int, int],
    size: tuple[int, int],
    scale: int,
) -> None:
    (left, top), (width, _) = corner, size
    for i, (caption, frame) in enumerate(subgoals):
        x, y, shown = left + i * width, top + LINES * LINE, _enlarge(frame, scale)
        for j, line in enumerate(textwrap.wrap(caption, max(8, width // 9))[:LINES]):
            _write(canvas, line, x + 2, top + (j + 1) * LINE - 6, width - 4)
        canvas[y : y + shown.shape[0], x : x + shown.shape[1]] = shown


def video(
    real: np.ndarray, imagined: np.ndarray, path: str | Path, caption: str = "", fps: int = 8, scale: int = 4
) -> Path:
    """Writes an MP4 (H.264, yuv420p) with the real frames on the left and the imagined ones on the right.

    Args:
        real: (T, H, W, 3) uint8.
        imagined: the same shape; empty where nothing was imagined.
        path: the file, ending in .mp4; its folder exists. A file there is replaced whole.
        caption: text below, for instance the instruction.
        fps: frames per second; the last frame rests for a second.
        scale: enlargement, nearest neighbour.

    Returns:
        The path.

    Raises:
        InputError: frames of another shape or dtype.
    """
    real, imagined = _check(real, imagined)
    return film({"real": real} | ({"imagined": imagined} if len(imagined) else {}), path, caption, fps, scale)


def film(sides: Mapping[str, np.ndarray], path: str | Path, caption: str = "", fps: int = 8, scale: int = 4) -> Path:
    """Writes an MP4, or a GIF that loops, of named frames side by side; one that is shorter rests on its last frame.

    Args:
        sides: name -> (T, H, W, 3) uint8, H and W the same.
        path: the file, ending in .mp4 or .gif; its folder exists. A file there is replaced whole.
        caption, fps, scale: see `video`.

    Returns:
        The path.

    Raises:
        InputError: no frames, or of another dtype or shape.
    """
    import imageio.v2 as imageio

    for frames in sides.values():
        _check(frames, frames)
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    steps = max(map(len, sides.values()), default=0)
    if len({frames.shape[1:] for frames in sides.values()}) != 1:
        raise InputError(
            "frames", [frames.shape for frames in sides.values()], "give some, all of one height and width"
        )
    h264 = {"fps": fps, "codec": "libx264", "pixelformat": "yuv420p", "quality": 8}
    how = {"mode": "I", "duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else h264
    try:
        with writing(path):
            writer: Any = imageio.get_writer(partial, **how)
            with writer:
                for t in [*range(steps), *[steps - 1] * round(HOLD_SECONDS * fps)]:
                    now = [(name, frames[min(t, len(frames) - 1)]) for name, frames in sides.items()]
                    writer.append_data(_page(now, f"t={t}", caption, scale))
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def _page(sides: list[tuple[str, np.ndarray]], time: str, caption: str, scale: int) -> np.ndarray:
    """One frame of a video: named frames side by side, a caption below; sides are multiples of 16, as codecs like."""
    height, width = (scale * side for side in sides[0][1].shape[:2])
    across = len(sides) * (width + GAP) - GAP
    lines = textwrap.wrap(caption, max(8, across // 9))
    size = (LINE + height + LINE * (len(lines) + 1), across)
    canvas = np.full((*(side + -side % 16 for side in size), 3), PAPER, np.uint8)
    for i, (name, frame) in enumerate(sides):
        x = i * (width + GAP)
        _write(canvas, f"{name}  {time}", x + 4, LINE - 6)
        canvas[LINE : LINE + height, x : x + width] = _enlarge(frame, scale)
    for i, line in enumerate(lines):
        _write(canvas, line, 4, LINE + height + (i + 1) * LINE - 4)
    return canvas


def _check(real: np.ndarray, imagined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, frames in (("real frames", real), ("imagined frames", imagined)):
        shape = getattr(frames, "shape", ())
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
            found = f"{getattr(frames, 'dtype', type(frames).__name__)} {shape}"
            raise InputError(name, found, "give uint8 RGB of shape (T, H, W, 3)")
    if len(real) == 0 or (len(imagined) and imagined.shape != real.shape):
        raise InputError(
            "imagined frames", f"shape {imagined.shape}", f"give as many as real ones, {real.shape}, not none"
        )
    return real, imagined


def _difference(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """|real - imagined| as uint8; black where they agree."""
    return np.abs(real.astype(np.int16) - imagined).astype(np.uint8)


def _enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    return frame.repeat(scale, 0).repeat(scale, 1)


def _write(canvas: np.ndarray, text: str, x: int, y: int, room: int | None = None) -> None:
    """Writes a line with its baseline at y, smaller where it would be wider than `room` px."""
    size = 0.5
    if room and text:
        size *= min(1.0, room / cv2.getTextSize(text, FONT, size, 1)[0][0])
    cv2.putText(canvas, text, (x, y), FONT, size, INK, 1, cv2.LINE_AA)


def _save_png(canvas: np.ndarray, path: Path) -> Path:
    write_bytes(path, cv2.imencode(".png", canvas[..., ::-1])[1].tobytes())
    return path
