"""A picture of any size as a model's frame: one way for datasets, environments and goals. Knows no dataset, env or model."""

from __future__ import annotations

import numpy as np


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


def fitted(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture (h, w, 3) uint8 as (size, size, 3), letterboxed; one of that size as it is."""
    if picture.shape == (size, size, 3):
        return picture
    frame = np.empty((size, size, 3), np.uint8)
    letterbox(picture, frame)
    return frame
