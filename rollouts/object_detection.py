"""Where objects are in frames, read from pixels by fixed rules. Knows colours and shapes, no learned model.

An environment's configuration names the detector for its frames; all report px of a 64 px frame, x right, y down.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emu_embodied.envs.pusht.geometry import ARENA_CM, TIP_CM, outside
from emu_embodied.errors import InputError
from emu_embodied.metrics import colour_centroids
from emu_embodied.validation import choice

Detector = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(frames (..., H, W, 3) uint8, palette (O, 3)) -> positions (..., O, 2), NaN where not found, and found (..., O)."""

PUSHT_BACKGROUND = ((255, 255, 255), (144, 238, 144))  # the floor, and the mark that the T belongs on
PX_PER_CM = 64 / ARENA_CM
TEE_PX2, PUSHER_PX2 = 98.4, 11.0  # areas
TEE_RADIUS = 12.5  # px in which all of the T lies
WINDOW = 26  # px, side of the square about the T in which its shape is fitted
BLUR = 2.0  # px over which the fitted shape's rim fades


def see_colours(frames: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One-coloured objects by the centroids of their colours."""
    positions, areas = colour_centroids(frames, palette)
    return positions, ~np.isnan(positions[..., 0]) & (areas > 4)


def see_pusht(frames: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PushT's pusher, T's centroid and T's tip.

    Each pixel is taken as a mixture of floor, mark, pusher and T. The moments of the T's shares say roughly where it is and how
    it is turned (second moments: the axis; their skew: where the stem is); then its shape is fitted to them.
    """
    lead, size = frames.shape[:-3], frames.shape[-2]
    shares = _unmix(frames.reshape(-1, *frames.shape[-3:]), np.concatenate([palette[:2], PUSHT_BACKGROUND]))
    pusher, pusher_area, _, _ = _blob(shares[..., 0], 3.5)
    centre, area, (frame, offsets), weights = _blob(shares[..., 1], TEE_RADIUS)
    z = offsets[:, 0] + 1j * offsets[:, 1]
    axis = np.exp(0.5j * np.angle(_total(frame, weights * z**2, len(centre))))
    skew = _total(frame, weights * (z * axis.conj()[frame]).real ** 3, len(centre)).real
    yaw = np.angle(axis * np.where(skew < 0, -1, 1)) - np.pi / 2
    centre, yaw = _fit(shares[..., 1], centre, yaw, 64 / size)
    tip = centre + PX_PER_CM * TIP_CM[1] * np.stack([-np.sin(yaw), np.cos(yaw)], -1)
    found = np.stack([pusher_area > 0.3 * PUSHER_PX2, area > 0.4 * TEE_PX2], -1)[:, [0, 1, 1]]
    positions = np.where(found[..., None], np.stack([pusher, centre, tip], 1), np.nan)
    return positions.reshape(*lead, 3, 2), found.reshape(*lead, 3)


DETECTORS: dict[str, Detector] = {"colours": see_colours, "pusht": see_pusht}


def detector_named(name: str) -> Detector:
    """The object detector of a world.

    Raises:
        InputError: none of that name.
    """
    return DETECTORS[choice("eye", name, DETECTORS, InputError)]


def _unmix(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Shares (F, H, W, C) in [0, 1] of C = 4 colours (C, 3) in pixels (F, H, W, 3); small ones count as none.

    The frame's rim is left out: PushT's walls are grey, nearly like the T.
    """
    mixing = np.linalg.inv(np.column_stack([colours / 255.0, np.ones(4)])).astype(np.float32)
    shares = np.clip((pixels.astype(np.float32) / 255 @ mixing[:3] + mixing[3] - 0.15) / 0.7, 0, 1)
    rim = round(1.5 * pixels.shape[2] / 64)
    shares[:, :rim] = shares[:, -rim:] = shares[:, :, :rim] = shares[:, :, -rim:] = 0
    return shares


def _blob(shares: np.ndarray, radius: float):
    """The blob in each of F frames of shares (F, H, W): what lies within a radius of its own centroid, found in rounds.

    Returns:
        centres (F, 2); areas (F,) in px^2; the frame (P,) and offset from the centre (P, 2) of every pixel that has a share;
        and its weight (P,), 0 beyond the radius.
    """
    frame, y, x = np.nonzero(shares)
    scale, count = 64 / shares.shape[2], len(shares)
    share, places = shares[frame, y, x].astype(np.float64), (np.stack([x, y], -1) + 0.5) * scale
    weights, centres, offsets = share, np.zeros((count, 2)), places
    for _ in range(4):
        mass = _total(frame, weights, count).real
        centres = _total(frame, weights * (places[:, 0] + 1j * places[:, 1]), count) / np.maximum(mass, 1e-9)
        centres = np.stack([centres.real, centres.imag], -1)
        offsets = places - centres[frame]
        weights = share * (np.linalg.norm(offsets, axis=-1) < radius)
    return centres, _total(frame, weights, count).real * scale**2, (frame, offsets), weights


def _fit(shares: np.ndarray, centre: np.ndarray, yaw: np.ndarray, scale: float, rounds: int = 4):
    """The T's centroid (F, 2) and yaw (F,) whose shape comes nearest to shares (F, H, W), from a first guess: Gauss-Newton."""
    window = min(round(WINDOW / scale), shares.shape[1])
    corner = np.clip(np.round(centre / scale - window / 2).astype(int), 0, shares.shape[1] - window)
    y, x = np.divmod(np.arange(window**2), window)
    x, y = corner[:, :1] + x, corner[:, 1:] + y  # (F, P)
    wanted = shares[np.arange(len(shares))[:, None], y, x]
    places = (np.stack([x, y], -1) + 0.5) * scale
    pose, nudges = np.column_stack([centre, yaw]), np.diag([0.1, 0.1, 0.02])
    for _ in range(rounds):
        slopes = [(_drawn(pose + d, places) - _drawn(pose - d, places)) / (2 * d.sum()) for d in nudges]
        slopes = np.stack(slopes, -1)  # (F, P, 3)
        normal = slopes.transpose(0, 2, 1) @ slopes + 1e-3 * np.eye(3)
        change = np.linalg.solve(normal, slopes.transpose(0, 2, 1) @ (wanted - _drawn(pose, places))[..., None])
        pose = pose + np.clip(change[..., 0], [-1, -1, -0.3], [1, 1, 0.3])
    return pose[:, :2], pose[:, 2]


def _drawn(pose: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How much (F, P) of the T covers places (F, P, 2) in px where it has poses (F, 3): 1 inside, fading at the rim."""
    cos, sin, offset = np.cos(pose[:, 2:]), np.sin(pose[:, 2:]), places - pose[:, None, :2]
    own = np.stack([offset[..., 0] * cos + offset[..., 1] * sin, offset[..., 1] * cos - offset[..., 0] * sin], -1)
    return np.clip(0.5 - PX_PER_CM * outside(own / PX_PER_CM) / BLUR, 0, 1)


def _total(frame: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sums (count,) complex128 of values (P,) by their frames (P,)."""
    real, imaginary = (np.bincount(frame, part, count) for part in (np.real(values), np.imag(values)))
    return real + 1j * imaginary
