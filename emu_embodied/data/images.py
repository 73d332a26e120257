"""Encoded pictures and videos into rows of an array, letterboxed where sizes differ. Knows no dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from emu_embodied.errors import DatasetError, InputError

THREADS = 2
AT_ONCE = 128  # video frames that are held decoded in their own size


def tiles(cameras: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """Where in a frame (height, width) each camera's picture goes: rows of equal rectangles, filled from the left."""
    columns = math.ceil(math.sqrt(cameras))
    h, w = height // math.ceil(cameras / columns), width // columns
    return [
        (slice(i // columns * h, (i // columns + 1) * h), slice(i % columns * w, (i % columns + 1) * w))
        for i in range(cameras)
    ]


def letterbox(picture: np.ndarray, into: np.ndarray) -> None:
    """Writes a picture (h, w, 3) into one of another size (H, W, 3), whole, in the middle; the rest becomes black."""
    import cv2

    if picture.shape == into.shape:
        into[:] = picture
        return
    scale = min(into.shape[0] / picture.shape[0], into.shape[1] / picture.shape[1])
    h, w = (max(1, round(scale * side)) for side in picture.shape[:2])
    small = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (into.shape[0] - h) // 2, (into.shape[1] - w) // 2
    into[:] = 0
    into[top : top + h, left : left + w] = small


def read_picture(path: str | Path, size: int) -> np.ndarray:
    """A picture file as (size, size, 3) uint8 RGB: grey ones get three channels, transparency is dropped, others letterboxed.

    Raises:
        InputError: no such file, or no picture in it.
    """
    import cv2

    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        found = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except (OSError, cv2.error) as error:
        raise InputError("image", str(path), getattr(error, "strerror", None) or "no picture can be read") from None
    if found is None:
        raise InputError("image", str(path), "no picture that can be read: give a PNG or JPEG file")
    frame = np.empty((size, size, 3), np.uint8)
    letterbox(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), frame)
    return frame


def decode_pictures(pictures: Sequence[bytes | None], into: np.ndarray, shape: tuple[int, ...]) -> dict[int, str]:
    """Decodes PNG or JPEG pictures of `shape` (h, w, 3) into (rows, H, W, 3) RGB.

    Returns:
        What was wrong, by row.
    """
    import cv2

    def one(i: int) -> str:
        try:
            found = cv2.imdecode(np.frombuffer(pictures[i] or b"\0", np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            found = None
        if found is None or found.shape != shape:
            return "cannot be decoded" if found is None else f"has the shape {found.shape}, not {shape}"
        if shape == into.shape[1:] and into[i].flags.c_contiguous:
            cv2.cvtColor(found, cv2.COLOR_BGR2RGB, dst=into[i])
        else:
            letterbox(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), into[i])
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(one, range(len(pictures)), chunksize=256)
        return {i: f"the picture of row {i} {fault}" for i, fault in enumerate(results) if fault}


def decode_video(path: Path, seconds: np.ndarray, tolerance: float, into: np.ndarray) -> str:
    """Decodes the frames of a video at ascending moments into (rows, H, W, 3) RGB, forwards, with LeRobot's decoder (PyAV).

    Returns:
        What was wrong; empty where nothing was.

    Raises:
        DatasetError: LeRobot is not installed.
    """
    try:
        from lerobot.datasets.video_utils import decode_video_frames
    except ImportError as error:
        raise DatasetError(str(path), str(error), "install LeRobot to read videos, or give a frame cache") from error

    for at in range(0, len(seconds), AT_ONCE):
        part = seconds[at : at + AT_ONCE].tolist()
        try:
            frames = decode_video_frames(path, part, tolerance, backend="pyav", return_uint8=True)
        except Exception as error:  # LeRobot and PyAV raise many kinds
            return " ".join(str(error).partition("\n")[0].split()) or repr(error)
        for frame, row in zip(frames.permute(0, 2, 3, 1).numpy(), into[at : at + AT_ONCE], strict=True):
            letterbox(frame, row)
    return ""
